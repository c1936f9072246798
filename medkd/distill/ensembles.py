"""Ensembles of nodes: several nodes' logits, and perhaps features, to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of OKDDip's projections, against the features' width (the authors' default).
_ATTENTION_REDUCTION = 8


@dataclass(frozen=True)
class Member:
    """What an ensemble sees of one of its nodes.

    Attributes:
        logits: N x classes; of a detector N x anchors x (classes + 4).
        pooled: N x channels, or None where the rule does not look at it.
        shared: the map after the shared stages, N x C x h x w, likewise.
        alive: whether the logits are finite, bool; a dead member counts for nothing.
    """

    logits: Tensor
    pooled: Tensor | None
    shared: Tensor | None
    alive: Tensor


def mean_logits(members: Sequence[Member]) -> Tensor:
    """The mean of the living members' logits, of the shape of one's."""
    alive = torch.stack([member.alive for member in members]).to(members[0].logits.dtype)
    logits = torch.stack([finite(m.logits, m.alive) for m in members])
    return torch.einsum("k,k...->...", alive, logits) / alive.sum().clamp_min(1)


class Gate(nn.Module):
    """ONE's gate (arXiv 1806.04606): a weighted sum of logits, weights by the shared features.

    Mean over the shared map, one linear layer, batch norm, ReLU, softmax over the members.
    """

    def __init__(self, shared_channels: int, members: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shared_channels, members, bias=False)
        self.norm = nn.BatchNorm1d(members)

    def forward(self, members: Sequence[Member]) -> Tensor:
        """Logits, N x classes."""
        shared = members[0].shared
        assert shared is not None
        scores = F.relu(self.norm(self.linear(shared.mean(dim=(2, 3)))))
        weights = _softmax_of_the_living(scores, members)
        logits = torch.stack([finite(m.logits, m.alive) for m in members], dim=1)
        return torch.einsum("nk,nk...->n...", weights, logits)


class Attention(nn.Module):
    """OKDDip's attention (arXiv 1912.00350): a mix of logits of its own for each member.

    Weights are the softmax over members of the product of two projections of the pooled features,
    one of the member that learns and one of each that teaches, itself among them.
    """

    def __init__(self, pooled_channels: int) -> None:
        super().__init__()
        width = max(pooled_channels // _ATTENTION_REDUCTION, 1)
        self.learner = nn.Linear(pooled_channels, width, bias=False)
        self.teacher = nn.Linear(pooled_channels, width, bias=False)

    def forward(self, members: Sequence[Member], own: int) -> Tensor:
        """Logits, N x classes, for the member numbered ``own``."""
        pooled = torch.stack(
            [finite(m.pooled, m.alive) for m in members if m.pooled is not None], dim=1
        )
        scores = torch.einsum("nd,nkd->nk", self.learner(pooled[:, own]), self.teacher(pooled))
        weights = _softmax_of_the_living(scores, members)
        logits = torch.stack([finite(m.logits, m.alive) for m in members], dim=1)
        return torch.einsum("nk,nk...->n...", weights, logits)


class ConcatenatedFeatures(nn.Module):
    """PCL's peer ensemble (arXiv 2006.04147): one classifier over all members' pooled features."""

    def __init__(self, pooled_channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(sum(pooled_channels), classes)

    def forward(self, members: Sequence[Member]) -> Tensor:
        """Logits, N x classes."""
        pooled = [finite(m.pooled, m.alive) for m in members if m.pooled is not None]
        logits: Tensor = self.classifier(torch.cat(pooled, dim=1))
        return logits


def _softmax_of_the_living(scores: Tensor, members: Sequence[Member]) -> Tensor:
    """Weights, N x members, of scores of that shape; zero for those that are not alive."""
    alive = torch.stack([member.alive for member in members])
    lowest = torch.finfo(scores.dtype).min
    return F.softmax(torch.where(alive, scores, lowest), dim=1)


def finite(values: Tensor, alive: Tensor) -> Tensor:
    """``values``, or zeros where a node is not alive: its gradient then is zero, not NaN."""
    return torch.where(alive, values, torch.zeros_like(values))


def shielded(values: Tensor) -> Tensor:
    """``values``, whose source is kept from gradients that are not finite: they become zero.

    A dead node's own gradient is zero, but behind its weights that is NaN (0 x NaN), and what it
    has in common with living ones would get it.
    """
    shielded_values: Tensor = _Shield.apply(values)
    return shielded_values


class _Shield(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return torch.where(gradient.isfinite().all(), gradient, torch.zeros_like(gradient))
