"""What training together costs over training alone, measured before training begins."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from medkd.distill.cohort import Cohort
from medkd.training.engine import Engine


def measure_rho(engine: Engine, tiles: int, side_px: int, steps: int) -> float:
    """Time of a joint step over the sum of every trained network's own: 1 is for nothing.

    A step is a forward and a backward, not compiled; what the optimizer takes is the same on both
    sides and left out. Weights, buffers and random numbers of the training are left as they are.

    Args:
        engine: see there.
        tiles: of a forward; they are noise.
        side_px: of a tile.
        steps: of each side, after one that does not count.
    """
    cohort, fabric = engine.cohort, engine.fabric
    before = [buffer.clone() for buffer in cohort.buffers()]
    layout = torch.channels_last if engine.config.channels_last else torch.contiguous_format
    one_view = torch.rand(tiles, 3, side_px, side_px).to(fabric.device, memory_format=layout)
    views = cohort.graph.views
    images = one_view if views == 1 else torch.stack([one_view] * views)
    task = cohort.task
    labels = task.example_labels(tiles, fabric.device)
    targets = task.targets(labels)

    def joint() -> None:
        with fabric.autocast():
            terms = cohort(images, labels).terms
        fabric.backward(torch.stack(list(terms.values())).sum())

    def alone(name: str) -> Callable[[], None]:
        network = cohort.alone(name)

        def step() -> None:
            with fabric.autocast():
                logits = network(one_view)
            fabric.backward(task.supervised_loss(logits.float(), targets))

        return step

    names = _trained(cohort)
    cohort.train()
    try:
        sides = [joint, *(alone(name) for name in names)]
        seconds = [_seconds(side, steps, fabric.device) for side in sides]
    finally:
        engine.optimizer.zero_grad(set_to_none=True)
        for buffer, kept in zip(cohort.buffers(), before, strict=True):
            buffer.copy_(kept)
    return seconds[0] / sum(seconds[1:])


def _trained(cohort: Cohort) -> list[str]:
    """Networks that have something to learn."""
    return [
        node.name
        for node in cohort.graph.nodes
        if node.is_network and any(p.requires_grad for p in cohort.nodes[node.name].parameters())
    ]


def _seconds(side: Callable[[], None], steps: int, device: torch.device) -> float:
    """The least of a few: whatever else the machine does only adds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken = []
    for _ in range(steps + 1):
        wait()
        began = time.perf_counter()
        side()
        wait()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
