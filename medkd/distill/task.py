"""What a cohort must know of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from medkd.distill.ensembles import Member
from medkd.distill.links import LinkLoss


@dataclass(frozen=True)
class Criterion:
    """The metric by which epochs, and members of an ensemble, are chosen on validation data.

    Attributes:
        metric: a name among those of :meth:`Task.metrics`.
        higher_is_better: whether more of it is better.
        label: as it is told in the terminal.
    """

    metric: str
    higher_is_better: bool
    label: str

    def cost(self, metrics: Mapping[str, float]) -> float:
        """The metric, or its negative: the lower the better."""
        value = metrics[self.metric]
        return -value if self.higher_is_better else value


class Task(Protocol):
    """What labels mean, and what the losses of links compare. See :mod:`medkd.tasks`."""

    @property
    def link_losses(self) -> Mapping[str, LinkLoss]:
        """The losses that links can carry, by name."""

    @property
    def criterion(self) -> Criterion:
        """What epochs are chosen by."""

    def refusal(self, network: nn.Module) -> str:
        """Why this network cannot do the task; empty: it can."""

    def targets(self, labels: Tensor) -> Tensor:
        """What losses compare with, made once in each step of the labels of a batch."""

    def supervised_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar: the loss of a network's logits."""

    def mean_probabilities(self, members: Sequence[Member]) -> Tensor:
        """Logits whose probabilities are the mean of the living members'."""

    def predictions(self, logits: Tensor) -> Tensor:
        """What logits say: probabilities, and of a detector its boxes."""

    def mean_prediction(self, predictions: Sequence[Tensor]) -> Tensor:
        """The predictions of several networks as one."""

    def metrics(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """How good predictions are."""

    def example_labels(self, count: int, device: torch.device) -> Tensor:
        """Labels of ``count`` images that every network can learn from, to measure time with."""
