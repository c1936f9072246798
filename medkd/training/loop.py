"""The loop: one forward of each network, one backward over all losses, one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medkd.config import TrainConfig
from medkd.datasets.patches import seed_of
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.distill.ramp import Moment
from medkd.errors import TrainingError
from medkd.progress import Advance, warn
from medkd.tasks.classification import tile_metrics

ENSEMBLE = "ensemble"

_STEP_SEEDS = 1_000_000


@dataclass
class Engine:
    """What a step needs, set up for the device."""

    fabric: Fabric
    cohort: Cohort
    # The cohort as Fabric wraps it: its forward runs in the chosen precision.
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    seed: int = 0


@dataclass
class EpochCourse:
    """How far an epoch is.

    Attributes:
        steps_done: of it.
        sums: of each loss term over these steps, on the device.
        dead: in how many of these steps each node's numbers were not finite.
    """

    steps_done: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    dead: dict[str, Tensor] = field(default_factory=dict)


def set_up(cohort: Cohort, config: TrainConfig, steps_per_epoch: int, *, seed: int = 0) -> Engine:
    """Move the cohort to the device and make its optimizer and learning rate schedule.

    What networks draw at random (dropout) depends on ``seed`` and the step alone.
    """
    accelerator = "auto" if config.device == "auto" else config.device
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "no CUDA device is here",
            where="train.device",
            remedy="Set it to auto or cpu; 'medkd doctor' shows what torch finds.",
        )
    fabric = Fabric(accelerator=accelerator, devices=1, precision=config.precision)
    cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(parameter_groups(cohort, config), lr=config.learning_rate)
    forward, wrapped = fabric.setup(cohort, optimizer)
    total = steps_per_epoch * config.epochs
    warmup = max(round(steps_per_epoch * config.warmup_epochs), 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return Engine(fabric, cohort, forward, wrapped, schedule, seed)


def parameter_groups(cohort: Cohort, config: TrainConfig) -> list[dict[str, object]]:
    """Two named groups per node: weights decay, biases and norms do not."""
    groups: list[dict[str, object]] = []
    for name, parameters in cohort.parameters_by_node().items():
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        for kind, chosen, decay in (
            ("decay", decayed, config.weight_decay),
            ("no_decay", others, 0.0),
        ):
            if chosen:
                groups.append({"name": f"{name}/{kind}", "params": chosen, "weight_decay": decay})
    return groups


def train_epoch(
    engine: Engine,
    batches: Sequence[dict[str, Tensor]] | DataLoader,
    advance: Advance,
    *,
    epoch: int,
    config: TrainConfig,
    course: EpochCourse | None = None,
    after_step: Callable[[EpochCourse], None] | None = None,
) -> dict[str, float]:
    """Train on all batches.

    Args:
        engine: see there.
        batches: with ``image``, N x 3 x H x W, or N x views x 3 x H x W, and ``label``; what
            remains of the epoch.
        advance: told of each step.
        epoch: its number, from 0.
        config: of the run.
        course: what of the epoch was done before; None: nothing. It is kept up to date.
        after_step: called with it after each step.

    Returns:
        The mean of each loss term over the epoch.

    Raises:
        TrainingError: a loss is not finite, and the run is to stop then. The weights of this epoch
            are worthless.
    """
    engine.forward.train()
    device = engine.fabric.device
    cohort = engine.cohort
    course = course or EpochCourse()
    steps = course.steps_done + len(batches)
    for batch in batches:
        step = epoch * steps + course.steps_done
        torch.manual_seed(seed_of(engine.seed, _STEP_SEEDS + step))
        cohort.set_moment(Moment(epoch, step, config.epochs, steps))
        images = _on_device(batch["image"], device)
        labels = batch["label"].to(device, non_blocking=True)
        if cohort.graph.update == "alternating":
            terms, alive = _alternating_step(engine, images, labels)
        else:
            terms, alive = _joint_step(engine, images, labels, config)
        engine.schedule.step()
        cohort.update_averages(step)
        # Summed on the device: reading a value here would make the host wait for it.
        for name, value in terms.items():
            course.sums[name] = course.sums.get(name, torch.zeros_like(value)) + value.detach()
        for name, flag in alive.items():
            none = torch.zeros_like(flag, dtype=torch.int64)
            course.dead[name] = course.dead.get(name, none) + ~flag
        course.steps_done += 1
        if after_step is not None:
            after_step(course)
        advance(1)
    means = {name: float(value) / steps for name, value in course.sums.items()}
    broken = {name: int(count) for name, count in course.dead.items() if int(count)}
    lost = sorted(name for name, value in means.items() if not math.isfinite(value))
    if (broken or lost) and config.non_finite == "stop":
        told = ", ".join(sorted({*broken, *(name.split("/")[0] for name in lost)}))
        raise TrainingError(
            f"the loss is not a finite number any more ({told})",
            where="train",
            remedy="Lower train.learning_rate or lengthen train.warmup_epochs; the checkpoint "
            "before this epoch is kept. To go on with the other networks, set train.non_finite to "
            "continue.",
        )
    for name, count in broken.items():
        warn(
            f"epoch {epoch + 1}: {name} gave numbers that are not finite in {count} of {steps} "
            "steps; the others went on without it"
        )
    return means


def _joint_step(
    engine: Engine, images: Tensor, labels: Tensor, config: TrainConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward of all, one backward, one step of the optimizer."""
    outputs = engine.forward(images, labels)
    engine.optimizer.zero_grad(set_to_none=True)
    engine.fabric.backward(torch.stack(list(outputs.terms.values())).sum())
    if config.non_finite == "continue":
        parameters = engine.cohort.parameters_by_node()
        for name, alive in outputs.alive.items():
            if not alive:
                for parameter in parameters.get(name, ()):
                    parameter.grad = None
    engine.optimizer.step()
    return outputs.terms, outputs.alive


def _alternating_step(
    engine: Engine, images: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """DML's algorithm 1: each network is updated, and looks again before the next one learns."""
    cohort, fabric = engine.cohort, engine.fabric
    with fabric.autocast():
        seen = cohort.look(images, learning=True)
    terms: dict[str, Tensor] = {}
    for node in cohort.graph.nodes:
        own = cohort.terms(seen, labels, learner=node.name)
        if not own:
            continue
        engine.optimizer.zero_grad(set_to_none=True)
        fabric.backward(torch.stack(list(own.values())).sum())
        # The others have no gradient, and are left as they are.
        engine.optimizer.step()
        terms |= own
        with torch.no_grad(), fabric.autocast():
            seen = cohort.look_again(seen, node.name, images)
    return terms, {name: one.alive for name, one in seen.items()}


def _on_device(images: Tensor, device: torch.device) -> Tensor:
    if images.ndim == 4:
        return images.to(device, non_blocking=True, memory_format=torch.channels_last)
    return images.to(device, non_blocking=True).transpose(0, 1)


@torch.no_grad()
def predict_tiles(
    forward: nn.Module,
    device: torch.device,
    batches: Iterable[dict[str, Tensor]],
    advance: Advance | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Probabilities of every node on every tile.

    Args:
        forward: the cohort, as Fabric wraps it.
        device: where it lies.
        batches: as the loaders of ``medkd.training.data`` give them.
        advance: told how many tiles each batch had.

    Returns:
        Node name to float32 N x classes on the CPU, and the labels, int64 N.
    """
    forward.eval()
    collected: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for batch in batches:
        images = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last)
        for name, logits in forward(images).logits.items():
            collected.setdefault(name, []).append(torch.softmax(logits.float(), dim=1))
        labels.append(batch["label"])
        if advance is not None:
            advance(len(images))
    return {name: torch.cat(parts).cpu() for name, parts in collected.items()}, torch.cat(labels)


def evaluate(
    probabilities: dict[str, Tensor], labels: Tensor, graph: Graph, positive: int
) -> dict[str, dict[str, float]]:
    """Tile metrics of every node, and of what ships, called the ensemble.

    That is the mean probability of the deployed nodes, or the one among them with the least log
    loss where the method says so.
    """
    metrics = {
        name: tile_metrics(values, labels, positive) for name, values in probabilities.items()
    }
    if graph.chosen_by_validation:
        return {**metrics, ENSEMBLE: metrics[best_deployed(metrics, graph)]}
    shipped = torch.stack([probabilities[name] for name in graph.deployed]).mean(0)
    return {**metrics, ENSEMBLE: tile_metrics(shipped, labels, positive)}


def best_deployed(metrics: Mapping[str, Mapping[str, float]], graph: Graph) -> str:
    """The deployed node with the least log loss."""
    return min(graph.deployed, key=lambda name: metrics[name]["log_loss"])
