"""The loop: one forward of each network, one backward over all losses, one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medkd.config import TrainConfig
from medkd.distill.cohort import Cohort
from medkd.errors import TrainingError
from medkd.progress import Advance
from medkd.tasks.classification import tile_metrics

ENSEMBLE = "ensemble"


@dataclass
class Engine:
    """What a step needs, set up for the device."""

    fabric: Fabric
    cohort: Cohort
    # The cohort as Fabric wraps it: its forward runs in the chosen precision.
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR


def set_up(cohort: Cohort, config: TrainConfig, steps_per_epoch: int) -> Engine:
    """Move the cohort to the device and make its optimizer and learning rate schedule."""
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
    return Engine(fabric, cohort, forward, wrapped, schedule)


def parameter_groups(cohort: Cohort, config: TrainConfig) -> list[dict[str, object]]:
    """Two named groups per node: weights decay, biases and norms do not."""
    groups: list[dict[str, object]] = []
    for name, network in cohort.nodes.items():
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups.append(
            {"name": f"{name}/decay", "params": decayed, "weight_decay": config.weight_decay}
        )
        groups.append({"name": f"{name}/no_decay", "params": others, "weight_decay": 0.0})
    return groups


def train_epoch(
    engine: Engine, batches: Iterable[dict[str, Tensor]], advance: Advance
) -> dict[str, float]:
    """Train on all batches.

    Returns:
        The mean of each loss term over the epoch.

    Raises:
        TrainingError: a loss is not finite. The weights of this epoch are then worthless.
    """
    engine.forward.train()
    device = engine.fabric.device
    sums: dict[str, Tensor] = {}
    steps = 0
    for batch in batches:
        images = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = batch["label"].to(device, non_blocking=True)
        terms = engine.cohort.losses(engine.forward(images), labels)
        engine.optimizer.zero_grad(set_to_none=True)
        engine.fabric.backward(torch.stack(list(terms.values())).sum())
        engine.optimizer.step()
        engine.schedule.step()
        # Summed on the device: reading a value here would make the host wait for it.
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        steps += 1
        advance(1)
    means = {name: float(value) / steps for name, value in sums.items()}
    broken = sorted(name for name, value in means.items() if not math.isfinite(value))
    if broken:
        raise TrainingError(
            f"the loss is not a finite number any more ({', '.join(broken)})",
            where="train",
            remedy="Lower train.learning_rate or lengthen train.warmup_epochs; the checkpoint "
            "before this epoch is kept.",
        )
    return means


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
        for name, logits in forward(images).items():
            collected.setdefault(name, []).append(torch.softmax(logits.float(), dim=1))
        labels.append(batch["label"])
        if advance is not None:
            advance(len(images))
    return {name: torch.cat(parts).cpu() for name, parts in collected.items()}, torch.cat(labels)


def evaluate(
    probabilities: dict[str, Tensor], labels: Tensor, deployed: Sequence[str], positive: int
) -> dict[str, dict[str, float]]:
    """Tile metrics of every node, and of the ensemble: the mean probability of the deployed."""
    ensemble = torch.stack([probabilities[name] for name in deployed]).mean(0)
    return {
        name: tile_metrics(values, labels, positive)
        for name, values in {**probabilities, ENSEMBLE: ensemble}.items()
    }
