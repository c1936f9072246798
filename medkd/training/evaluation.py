"""What a cohort says of tiles, and how good that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.progress import Advance
from medkd.tasks.classification import tile_metrics
from medkd.training.images import device_images

ENSEMBLE = "ensemble"


@torch.no_grad()
def predict_tiles(
    cohort: Cohort,
    fabric: Fabric,
    batches: Iterable[dict[str, Tensor]],
    advance: Advance | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Probabilities of every node on every tile.

    Args:
        cohort: on the device of ``fabric``.
        fabric: says the device and the precision.
        batches: as the loaders of ``medkd.training.data`` give them.
        advance: told how many tiles each batch had.

    Returns:
        Node name to float32 N x classes on the CPU, and the labels, int64 N.
    """
    cohort.eval()
    device = fabric.device
    collected: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for batch in batches:
        images = device_images(batch, device)
        with fabric.autocast():
            found = cohort(images).logits
        for name, logits in found.items():
            collected.setdefault(name, []).append(torch.softmax(logits.float(), dim=1))
        labels.append(batch["label"])
        if advance is not None:
            advance(len(images))
    found = {name: torch.cat(parts).cpu() for name, parts in collected.items()}
    return found, torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)


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
