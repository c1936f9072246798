"""What a cohort says of images, and how good that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.distill.task import Task
from medkd.progress import Advance
from medkd.training.images import device_images

ENSEMBLE = "ensemble"


@torch.no_grad()
def predict_tiles(
    cohort: Cohort,
    fabric: Fabric,
    batches: Iterable[dict[str, Tensor]],
    advance: Advance | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Predictions of every node on every tile or image.

    Args:
        cohort: on the device of ``fabric``.
        fabric: says the device and the precision.
        batches: as the loaders of ``medkd.training.data`` give them.
        advance: told how many tiles each batch had.

    Returns:
        Node name to what its task makes of logits, on the CPU: float32 N x classes, or N x anchors
        x (classes + 4); and the labels, int64 N or float32 N x boxes x 5.
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
            collected.setdefault(name, []).append(cohort.task.predictions(logits.float()))
        labels.append(batch["label"])
        if advance is not None:
            advance(len(images))
    found = {name: torch.cat(parts).cpu() for name, parts in collected.items()}
    return found, torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)


def evaluate(
    predictions: dict[str, Tensor], labels: Tensor, graph: Graph, task: Task
) -> dict[str, dict[str, float]]:
    """Metrics of every node, and of what ships, called the ensemble.

    That is the mean prediction of the deployed nodes, or the best one among them where the method
    says so.
    """
    metrics = {name: task.metrics(values, labels) for name, values in predictions.items()}
    if graph.chosen_by_validation:
        return {**metrics, ENSEMBLE: metrics[best_deployed(metrics, graph, task)]}
    shipped = task.mean_prediction([predictions[name] for name in graph.deployed])
    return {**metrics, ENSEMBLE: task.metrics(shipped, labels)}


def best_deployed(metrics: Mapping[str, Mapping[str, float]], graph: Graph, task: Task) -> str:
    """The deployed node that is best by the task's criterion."""
    return min(graph.deployed, key=lambda name: task.criterion.cost(metrics[name]))
