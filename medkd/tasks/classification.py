"""What a classification task is: its supervised loss, and what is measured on tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from medkd.distill.links import LOSSES, LinkLoss


@dataclass(frozen=True)
class Classification:
    """The task of telling classes apart; a :class:`medkd.distill.task.Task`.

    Attributes:
        class_weights: factor on the loss of each class, in their order; None: all alike.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    @property
    def link_losses(self) -> Mapping[str, LinkLoss]:
        """The losses that links can carry, by name."""
        return LOSSES

    def supervised_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the batch (by class weight, where there are any).

        Args:
            logits: float N x classes.
            labels: int64 N.
        """
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)


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
