"""What a cohort must know of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from medkd.distill.links import LinkLoss


class Task(Protocol):
    """What labels mean, and what the losses of links compare. See :mod:`medkd.tasks`."""

    @property
    def link_losses(self) -> Mapping[str, LinkLoss]:
        """The losses that links can carry, by name."""

    def supervised_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A scalar: the loss of logits, N x classes, by their labels."""
