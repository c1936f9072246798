"""The ways of taking one co-training step that cotrain_step.py holds against each other.

All of them train one teacher and three students by KD+ML on the same batch, from the same weights,
with AdamW. Each way is a function that takes one step and returns the sum of the step's losses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.config import Config, NetworkConfig, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.networks.resnet import monai_resnet
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import IMAGENET_MEAN, IMAGENET_STD, StagedNetwork
from medkd.networks.zoo import build
from medkd.progress import live_progress
from medkd.tasks.classification import Classification
from medkd.training import checkpoint
from medkd.training.data import TileTable
from medkd.training.devices import make_fabric
from medkd.training.engine import Engine, set_up
from medkd.training.interruption import StopRequest
from medkd.training.loop import train_epoch
from medkd.training.optimization import parameter_groups
from medkd.training.phase import Phase
from medkd.training.recompute import recompute_stages
from medkd.training.run_tracking import CohortTracker
from medkd.training.tile_set import TileSet
from medkd.training.train_stage import write_settings
from medkd.training.watch import Watch

Step = Callable[[], Tensor]

TEACHER_TEMPERATURE = 4.0
# The weights hardly move, so every step computes the same numbers and every way's losses can be
# held against the others'. AdamW's arithmetic does not depend on it.
LEARNING_RATE = 1e-7


@dataclass(frozen=True)
class Sizes:
    """What is trained on what.

    Attributes:
        teacher: the teacher's network, one of MONAI's ResNets.
        students: the students' networks.
        side_px: of the images.
        batch: images of a step.
    """

    teacher: NetworkSpec
    students: tuple[NetworkSpec, ...]
    side_px: int
    batch: int

    @property
    def specs(self) -> tuple[NetworkSpec, ...]:
        """All networks, the teacher first."""
        return (self.teacher, *self.students)


SIZES = {
    "small": Sizes(
        NetworkSpec("resnet18", 2, width=0.5), (NetworkSpec("resnet10", 2, width=0.5),) * 3, 96, 32
    ),
    "issue": Sizes(NetworkSpec("resnet50", 2), (NetworkSpec("resnet18", 2),) * 3, 224, 64),
}


@dataclass(frozen=True)
class Batch:
    """Random images and labels on the device.

    Attributes:
        images: RGB in [0, 1], float32 N x 3 x H x W, channels_last: what medkd takes.
        normalised: the same, contiguous, with ImageNet's mean and deviation: a hand loop's loader
            normalises once for all networks.
        labels: int64 N.
    """

    images: Tensor
    normalised: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Settings:
    """How a step is run; the same for the joint step and for the steps alone.

    Attributes:
        fused: the fused AdamW instead of torch's choice.
        compiled: torch.compile, default mode: the whole cohort, or each network alone.
        bf16: autocast to bfloat16.
        mode: of torch.compile.
        recompute: activation checkpointing; of the joint step only.
    """

    fused: bool = False
    compiled: bool = False
    bf16: bool = False
    mode: str = "default"
    recompute: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context of a forward."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def runnable(self, module: nn.Module) -> Callable[..., Any]:
        """The module as it is called."""
        return torch.compile(module, mode=self.mode) if self.compiled else module

    def optimizer(self, groups: Iterable[dict[str, object]]) -> torch.optim.Optimizer:
        """AdamW of these groups."""
        chosen = True if self.fused else None
        return torch.optim.AdamW(list(groups), lr=LEARNING_RATE, fused=chosen)


def random_batch(sizes: Sizes, device: torch.device) -> Batch:
    """Images of noise and labels of two classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(sizes.batch, 3, sizes.side_px, sizes.side_px, generator=generator)
    labels = torch.randint(0, 2, (sizes.batch,), generator=generator)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return Batch(
        images.to(device, memory_format=torch.channels_last),
        ((images - mean) / std).contiguous().to(device),
        labels.to(device),
    )


# medkd.


def staged_networks(sizes: Sizes) -> list[StagedNetwork]:
    """The networks as medkd builds them, each time with the same weights."""
    torch.manual_seed(0)
    networks = [build(spec) for spec in sizes.specs]
    assert all(isinstance(network, StagedNetwork) for network in networks)
    return networks  # type: ignore[return-value]


def cohort_of(sizes: Sizes) -> Cohort:
    """KD+ML's cohort."""
    graph = expand(load_method("kd_ml"), len(sizes.students))
    names = [node.name for node in graph.nodes]
    return Cohort(graph, dict(zip(names, staged_networks(sizes), strict=True)), Classification())


def joint_step(sizes: Sizes, batch: Batch, settings: Settings) -> Step:
    """medkd's step: one forward of each network, one backward, one optimizer."""
    device = batch.labels.device
    cohort = cohort_of(sizes).to(device)
    cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cohort.train()
    if settings.recompute:
        recompute_stages(cohort)
    optimizer = settings.optimizer(parameter_groups(cohort, TrainConfig()))
    forward = settings.runnable(cohort)

    def step() -> Tensor:
        with settings.autocast(device):
            terms = forward(batch.images, batch.labels).terms
        return _learned(torch.stack(list(terms.values())).sum(), optimizer)

    return step


def solo_steps(sizes: Sizes, batch: Batch, settings: Settings) -> Step:
    """Every network alone with cross-entropy, one after another."""
    device = batch.labels.device

    def alone(network: StagedNetwork) -> Step:
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()
        optimizer = settings.optimizer(decay_groups(network))
        forward = settings.runnable(network)

        def step() -> Tensor:
            with settings.autocast(device):
                logits = forward(batch.images)
            return _learned(F.cross_entropy(logits.float(), batch.labels), optimizer)

        return step

    steps = [alone(network) for network in staged_networks(sizes)]
    return lambda: torch.stack([step() for step in steps]).sum()


def decay_groups(network: nn.Module) -> list[dict[str, object]]:
    """The groups that medkd's loop makes of one node."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def loop_and_bare_step(
    sizes: Sizes, batch: Batch, closing: ExitStack, epoch_steps: int = 1
) -> tuple[Step, Step]:
    """An epoch through the training loop, and as many steps without it.

    The loop is the whole of it: it checks the losses, looks for signals, shows a live progress line
    (to nowhere) and logs to MLflow (sqlite), until ``closing`` is closed. Both train the same
    cohort, so that they differ in nothing but that. What the loop does once in an epoch counts for
    these few steps, so its cost is told rather too high. What a save of the state costs depends on
    the disk; it comes every ten minutes and is left out.
    """
    teacher, *students = [
        NetworkConfig(network=spec.name, width=spec.width) for spec in sizes.specs
    ]
    train = TrainConfig(
        teacher=teacher,
        students=tuple(students),
        learning_rate=LEARNING_RATE,
        epochs=1_000_000,
        device="cuda" if batch.labels.is_cuda else "cpu",
        batch_size=sizes.batch,
        save_minutes=1e6,
    )
    folder = Path(closing.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
    config = Config(output=folder, train=train)
    fabric, ranks = make_fabric(train)
    engine = set_up(cohort_of(sizes), train, epoch_steps, fabric, ranks=ranks)
    batches = [{"image": batch.images, "label": batch.labels}] * epoch_steps
    epochs = iter(range(train.epochs))
    watch = _watch(config, engine, closing, epoch_steps)

    def loop() -> Tensor:
        means = train_epoch(
            engine, batches, epoch=next(epochs), pace=watch.pace, after_step=watch.after_step
        )
        return torch.tensor(sum(means.values()))

    def bare() -> Tensor:
        return torch.stack([bare_step(engine, batch) for _ in batches]).mean()

    return loop, bare


def _watch(config: Config, engine: Engine, closing: ExitStack, epoch_steps: int) -> Watch:
    """What looks after a training, with a real tracker."""
    graph = engine.cohort.graph
    write_settings(config, load_method(graph.method))
    config.splits_file.write_bytes(b"")
    tiles = pd.DataFrame({"role": ["train"], "patient_id": ["noise"], "slide_id": ["noise"]})
    table = TileTable(tiles, digest="noise", synthetic=True)
    data = TileSet(config, (), table)
    tracker = CohortTracker(config, graph, engine.cohort, data)
    closing.callback(tracker.finish, "FINISHED")
    phase = Phase(
        config=config,
        graph=graph,
        data=data,
        cohort=engine.cohort,
        identity="noise",
        tracker=tracker,
        fabric=engine.fabric,
        ranks=engine.ranks,
    )
    advance = closing.enter_context(live_progress("training", 1_000_000, file=io.StringIO()))
    return Watch(phase, engine, checkpoint.Progress(), StopRequest(), advance, epoch_steps)


def bare_step(engine: Engine, batch: Batch) -> Tensor:
    """The joint step with what :func:`set_up` made, and nothing around it."""
    terms = engine.cohort(batch.images, batch.labels).terms
    # Fabric's wrapper holds the one that it wraps.
    return _learned(torch.stack(list(terms.values())).sum(), engine.optimizer.optimizer)  # type: ignore[attr-defined]


def _learned(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


# Without medkd: MONAI's own networks, float32, contiguous memory, an optimizer for each.


def monai_networks(sizes: Sizes, device: torch.device) -> list[ResNet]:
    """MONAI's networks with the weights of :func:`staged_networks`."""
    networks = []
    for spec, staged in zip(sizes.specs, staged_networks(sizes), strict=True):
        network = monai_resnet(spec)
        adapter = {f"adapter.{name}" for name in staged.adapter.state_dict()}
        weights = [v for name, v in staged.state_dict().items() if name not in adapter]
        # medkd keeps the order of MONAI's parts, under other names.
        network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
        networks.append(network.to(device).train())
    return networks


def _adamw_of_each(networks: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(n.parameters(), lr=LEARNING_RATE) for n in networks]


def _divergence(target: Tensor, learner: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || learner)."""
    p, log_q = F.softmax(target / temperature, 1), F.log_softmax(learner / temperature, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def hand_loop(sizes: Sizes, batch: Batch) -> Step:
    """As one writes it by hand: N forwards, then for each network its loss, backward and step."""
    networks = monai_networks(sizes, batch.labels.device)
    optimizers = _adamw_of_each(networks)

    def step() -> Tensor:
        teacher, *students = [network(batch.normalised) for network in networks]
        losses = [F.cross_entropy(teacher, batch.labels)]
        for k, student in enumerate(students):
            loss = F.cross_entropy(student, batch.labels)
            loss = loss + _divergence(teacher.detach(), student, TEACHER_TEMPERATURE)
            for j, peer in enumerate(students):
                if j != k:
                    loss = loss + _divergence(peer.detach(), student, 1.0) / (len(students) - 1)
            losses.append(loss)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return torch.stack([loss.detach() for loss in losses]).sum()

    return step


def kdlib_pattern(sizes: Sizes, batch: Batch) -> Step:
    """The pattern of KD_Lib's mutual learning, for the links of KD+ML.

    Every comparison runs its learner and its target anew and goes backward through both; the
    learner runs once more for the labels, and every network once more for the training accuracy.
    N peers that all learn from one another come to 2 N^2 forwards, 32 for four. Here the teacher
    learns from nobody, which leaves 26.
    """
    networks = monai_networks(sizes, batch.labels.device)
    optimizers = _adamw_of_each(networks)
    images, labels = batch.normalised, batch.labels
    peers = len(sizes.students) - 1

    def loss_of(k: int) -> Tensor:
        learner = networks[k]
        loss = F.cross_entropy(learner(images), labels)
        for j, target in enumerate(networks):
            if k in (0, j):
                continue
            temperature, weight = (TEACHER_TEMPERATURE, 1.0) if j == 0 else (1.0, 1 / peers)
            loss = loss + weight * _divergence(target(images), learner(images), temperature)
        return loss

    def step() -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = []
        for k, optimizer in enumerate(optimizers):
            loss = loss_of(k)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        for network in networks:
            (network(images).argmax(1) == labels).sum()
        return torch.stack(losses).sum()

    return step
