"""What a classification task is: its supervised loss, and what is measured on tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from medkd.distill.ensembles import Member, finite
from medkd.distill.links import LOSSES, LinkLoss
from medkd.distill.task import Criterion

_LOG_LOSS = Criterion("log_loss", higher_is_better=False, label="log loss")


@dataclass(frozen=True)
class Classification:
    """The task of telling classes apart; a :class:`medkd.distill.task.Task`.

    Attributes:
        class_weights: factor on the loss of each class, in their order; None: all alike.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        positive: index of the class that AUROC speaks of.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    positive: int = 1

    @property
    def link_losses(self) -> Mapping[str, LinkLoss]:
        """The losses that links can carry, by name."""
        return LOSSES

    @property
    def criterion(self) -> Criterion:
        """Epochs are chosen by log loss."""
        return _LOG_LOSS

    def refusal(self, network: nn.Module) -> str:
        """A detector has no logits of a whole image."""
        is_detector = bool(getattr(network, "has_pyramid", False))
        return "it is a detector, and whole images are told apart" if is_detector else ""

    def targets(self, labels: Tensor) -> Tensor:
        """The labels themselves, int64 N."""
        return labels

    def supervised_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the batch (by class weight, where there are any).

        Args:
            logits: float N x classes.
            targets: int64 N.
        """
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(
            logits, targets, weight=weights, label_smoothing=self.label_smoothing
        )

    def mean_probabilities(self, members: Sequence[Member]) -> Tensor:
        """Logarithm of the mean of the living members' probabilities, N x classes."""
        logs = torch.stack(
            [
                torch.where(m.alive, F.log_softmax(finite(m.logits, m.alive), dim=1), -torch.inf)
                for m in members
            ]
        )
        count = torch.stack([m.alive for m in members]).sum().clamp_min(1)
        mean = logs.logsumexp(dim=0) - count.to(logs.dtype).log()
        # Without a living member there is nothing to say: all classes alike.
        return torch.where(mean.isfinite(), mean, -math.log(mean.shape[1]))

    def predictions(self, logits: Tensor) -> Tensor:
        """Probabilities, N x classes."""
        return torch.softmax(logits, dim=1)

    def mean_prediction(self, predictions: Sequence[Tensor]) -> Tensor:
        """Mean probabilities, N x classes."""
        return torch.stack(list(predictions)).mean(0)

    def metrics(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """See :func:`tile_metrics`."""
        return tile_metrics(predictions, labels, self.positive)

    def example_labels(self, count: int, device: torch.device) -> Tensor:
        """Two classes in turn, int64 N."""
        return torch.arange(count, device=device) % 2


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
