"""What a classification task is: its supervised loss, and what is measured on tiles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc


def supervised_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over the batch.

    Args:
        logits: float N x classes.
        labels: int64 N.
    """
    return F.cross_entropy(logits, labels)


def tile_metrics(probabilities: Tensor, labels: Tensor, positive: int) -> dict[str, float]:
    """How well tiles are told apart.

    Args:
        probabilities: float N x classes, rows that add up to 1.
        labels: int64 N.
        positive: index of the class that AUROC speaks of.

    Returns:
        ``log_loss`` (nats), ``accuracy`` and, where both classes are there, ``auroc``.
    """
    chosen = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float32).tiny)
    metrics = {
        "log_loss": float(-chosen.log().mean()),
        "accuracy": float((probabilities.argmax(1) == labels).float().mean()),
    }
    is_positive = (labels == positive).long()
    if 0 < int(is_positive.sum()) < len(is_positive):
        metrics["auroc"] = float(binary_auroc(probabilities[:, positive], is_positive))
    return metrics
