"""The loop: one forward of each network, one backward over all losses, one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medkd.datasets.patches import seed_of
from medkd.distill.ramp import Moment
from medkd.errors import TrainingError
from medkd.progress import warn
from medkd.training.augmentation import BatchAugmentation
from medkd.training.devices import mean_over_ranks
from medkd.training.engine import Engine
from medkd.training.images import device_images
from medkd.training.loading import Batches
from medkd.training.memory import is_out_of_memory, out_of_memory
from medkd.training.optimization import clip_by_node, drop_broken_gradients
from medkd.training.pace import Pace

_STEP_SEEDS = 1_000_000

Flags = dict[str, Tensor]
Terms = dict[str, Tensor]


@dataclass
class EpochCourse:
    """How far an epoch is.

    Attributes:
        steps_done: of it.
        sums: of each loss term over these steps, on the device.
        dead: in how many of these steps each node's numbers were not finite.
    """

    steps_done: int = 0
    sums: Terms = field(default_factory=dict)
    dead: Flags = field(default_factory=dict)

    def add(self, terms: Terms, alive: Flags) -> None:
        """One step more; nothing is read, which would make the host wait for the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        for name, flag in alive.items():
            none = torch.zeros_like(flag, dtype=torch.int64)
            self.dead[name] = self.dead.get(name, none) + ~flag
        self.steps_done += 1

    def means(self) -> dict[str, float]:
        """The mean of each loss term over the steps done; waits for the device once."""
        if not self.sums:
            return {}
        read = torch.stack([value.double() for value in self.sums.values()]).tolist()
        return {name: value / self.steps_done for name, value in zip(self.sums, read, strict=True)}

    def broken(self) -> dict[str, int]:
        """In how many steps each node's numbers were not finite, where there were any."""
        if not self.dead:
            return {}
        counts = torch.stack(list(self.dead.values())).tolist()
        return {name: int(n) for name, n in zip(self.dead, counts, strict=True) if n}


def train_epoch(
    engine: Engine,
    batches: Sequence[dict[str, Tensor]] | DataLoader | Batches,
    *,
    epoch: int,
    course: EpochCourse | None = None,
    pace: Pace | None = None,
    after_step: Callable[[EpochCourse], None] | None = None,
) -> dict[str, float]:
    """Train on all batches.

    Args:
        engine: see there.
        batches: with ``label`` and what :func:`medkd.training.images.device_images` takes; what
            remains of the epoch, this process's share of each step.
        epoch: its number, from 0.
        course: what of the epoch was done before; None: nothing. It is kept up to date.
        pace: told of images and of waiting.
        after_step: called with the course after each step.

    Returns:
        The mean of each loss term over the epoch, and over all processes.

    Raises:
        TrainingError: a loss is not finite, and the run is to stop then. The weights of this epoch
            are worthless.
    """
    engine.forward.train()
    config, cohort, device = engine.config, engine.cohort, engine.fabric.device
    augment = BatchAugmentation(config.augment).to(device)
    course = course or EpochCourse()
    pace = pace or Pace()
    steps = course.steps_done + len(batches)
    for batch in pace.timed(batches):
        step = epoch * steps + course.steps_done
        _seed(device, _step_seed(engine, step))
        cohort.set_moment(Moment(epoch, step, config.epochs, steps))
        images = device_images(batch, device, augment, channels_last=config.channels_last)
        labels = batch["label"].to(device, non_blocking=True)
        terms, alive = _step(engine, images, labels)
        engine.schedule.step()
        cohort.update_averages(step)
        if engine.average is not None:
            engine.average.update(cohort, step)
        course.add(terms, alive)
        pace.count(len(labels) * engine.ranks.count)
        if after_step is not None:
            after_step(course)
    course.sums = mean_over_ranks(course.sums, engine.ranks)
    check_finite(course, engine, epoch)
    return course.means()


def check_finite(course: EpochCourse, engine: Engine, epoch: int) -> None:
    """Stop, or warn at the end of an epoch, where numbers are not finite any more.

    Raises:
        TrainingError: some are not, and the run is to stop then.
    """
    means, broken = course.means(), course.broken()
    if engine.config.non_finite == "continue":
        for name, count in broken.items():
            warn(
                f"epoch {epoch + 1}: {name} gave numbers that are not finite in {count} of "
                f"{course.steps_done} steps; the others went on without it"
            )
        return
    lost = {name.split("/")[0] for name, value in means.items() if not math.isfinite(value)}
    if broken or lost:
        raise TrainingError(
            f"the loss is not a finite number any more ({', '.join(sorted({*broken, *lost}))})",
            where="train",
            remedy="Lower train.learning_rate, lengthen train.warmup_epochs or set "
            "train.clip_norm; the checkpoint before this epoch is kept. To go on with the other "
            "networks, set train.non_finite to continue.",
        )


def _seed(device: torch.device, seed: int) -> None:
    """Seed what this device draws from.

    ``torch.manual_seed`` seeds all devices; for those that are not in use it keeps the call with
    its stack, in case they will be, which takes 2 to 4 ms of every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _step_seed(engine: Engine, step: int) -> int:
    seed = seed_of(engine.seed, _STEP_SEEDS + step)
    return seed if engine.ranks.is_first else seed_of(seed, engine.ranks.rank)


def _step(engine: Engine, images: Tensor, labels: Tensor) -> tuple[Terms, Flags]:
    """One step of whatever kind the method takes."""
    take = _joint_step if engine.cohort.graph.update == "simultaneous" else _alternating_step
    try:
        return take(engine, images, labels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here, where the exception no longer holds the tensors of the failed step.
    raise out_of_memory(engine, images, labels)


def _joint_step(engine: Engine, images: Tensor, labels: Tensor) -> tuple[Terms, Flags]:
    """One forward of all, one backward, one step of the optimizer."""
    engine.optimizer.zero_grad(set_to_none=True)
    terms: Terms = {}
    alive: Flags = {}
    several_views = images.ndim == 5
    shares = labels.chunk(engine.config.accumulate)
    parts = len(shares)
    own = zip(images.chunk(parts, dim=int(several_views)), shares, strict=True)
    for number, (own_images, own_labels) in enumerate(own, start=1):
        with _gradients_meet(engine, number == parts):
            outputs = engine.forward(own_images, own_labels)
            engine.fabric.backward(torch.stack(list(outputs.terms.values())).sum() / parts)
        for name, value in outputs.terms.items():
            mean = value.detach() / parts
            terms[name] = terms[name] + mean if name in terms else mean
        for name, flag in outputs.alive.items():
            # A replayed CUDA graph writes its flags where the last one did.
            alive[name] = alive[name] & flag if name in alive else flag.clone()
    _update(engine, alive)
    return terms, alive


def _gradients_meet(engine: Engine, last: bool) -> AbstractContextManager[None]:
    """Processes exchange their gradients once in a step, in its last backward."""
    if engine.ranks.count == 1 or last:
        return nullcontext()
    return engine.fabric.no_backward_sync(engine.forward)  # type: ignore[arg-type]


def _update(engine: Engine, alive: Flags) -> None:
    """One step of the optimizer with the gradients at hand; tells in ``alive`` which were not."""
    config = engine.config
    if config.non_finite == "continue":
        engine.cohort.drop_dead_gradients(alive)
        for owner, is_finite in drop_broken_gradients(engine.parameters).items():
            if owner in alive:
                alive[owner] = alive[owner] & is_finite
    if config.clip_norm is not None:
        engine.fabric.strategy.precision.unscale_gradients(engine.optimizer)
        clip_by_node(engine.parameters, config.clip_norm)
    engine.optimizer.step()


def _alternating_step(engine: Engine, images: Tensor, labels: Tensor) -> tuple[Terms, Flags]:
    """DML's algorithm 1: each network is updated, and looks again before the next one learns."""
    cohort, fabric = engine.cohort, engine.fabric
    with fabric.autocast():
        seen = cohort.look(images, learning=True)
    terms: Terms = {}
    alive = {name: one.alive for name, one in seen.items()}
    for node in cohort.graph.nodes:
        own = cohort.terms(seen, labels, learner=node.name)
        if not own:
            continue
        engine.optimizer.zero_grad(set_to_none=True)
        fabric.backward(torch.stack(list(own.values())).sum())
        # The others have no gradient, and are left as they are.
        _update(engine, alive)
        terms |= {name: value.detach() for name, value in own.items()}
        with torch.no_grad(), fabric.autocast():
            seen = cohort.look_again(seen, node.name, images)
        alive |= {name: alive[name] & one.alive for name, one in seen.items()}
    return terms, alive
