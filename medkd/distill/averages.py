"""Means of a network's weights over the course of training (mean teachers)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medkd.distill.graph import Graph


class WeightAverages(nn.Module):
    """The exponential moving averages of a graph's mean nodes.

    Networks that share stages share them here too. An average takes part in no gradient and is
    always in evaluation mode; buffers (the statistics of batch norm) are copied, not averaged.
    Before the first update it is a copy of its source.

    torch's own ``AveragedModel`` counts its updates on the device and looks at the count in each
    one, which waits for the device; here the step is told.
    """

    def __init__(self, graph: Graph, networks: nn.ModuleDict) -> None:
        super().__init__()
        self._means = {node.name: node for node in graph.nodes if node.role == "mean"}
        decays = {(node.decay, node.warm_start) for node in self._means.values()}
        self.networks = nn.ModuleDict()
        for decay in sorted(decays):
            alike = [
                node for node in self._means.values() if (node.decay, node.warm_start) == decay
            ]
            # Copied together, so that shared parts are copied once.
            sources = nn.ModuleDict({node.sources[0]: networks[node.sources[0]] for node in alike})
            copied = copy.deepcopy(sources).requires_grad_(False)
            for node in alike:
                self.networks[node.name] = copied[node.sources[0]]
        self.eval()

    def __contains__(self, name: str) -> bool:
        return name in self.networks

    def __getitem__(self, name: str) -> nn.Module:
        return self.networks[name]

    def only(self, names: set[str]) -> WeightAverages:
        """The averages called ``names``, not copies."""
        part = WeightAverages.__new__(WeightAverages)
        nn.Module.__init__(part)
        part._means = {name: node for name, node in self._means.items() if name in names}
        part.networks = nn.ModuleDict({n: m for n, m in self.networks.items() if n in names})
        return part

    @torch.no_grad()
    def update(self, networks: nn.ModuleDict, step: int) -> None:
        """average = decay average + (1 - decay) weights, decay at most 1 - 1 / (step + 1).

        An average stays as it is after a step in which its source has a number that is not finite,
        or it would never be finite again. Nothing waits for the device.

        Args:
            networks: the sources as they are now.
            step: number of the step that was done, from 0: after it an average with a warm start
                is just its source.
        """
        means = {
            name: min(1 - 1 / (step + 1), node.decay) if node.warm_start else node.decay
            for name, node in self._means.items()
        }
        for decay in sorted(set(means.values())):
            alike = [name for name, its_decay in means.items() if its_decay == decay]
            self._update_alike(alike, networks, decay)

    def _update_alike(self, names: Sequence[str], networks: nn.ModuleDict, decay: float) -> None:
        """Means of one decay, together."""
        averaged: dict[int, _Pair] = {}
        copied: dict[int, _Pair] = {}
        for name in names:
            mean, source = self.networks[name], networks[self._means[name].sources[0]]
            sound = is_finite(source)
            for pairs, ours, theirs in (
                (averaged, mean.parameters(), source.parameters()),
                (copied, mean.buffers(), source.buffers()),
            ):
                for own, now in zip(ours, theirs, strict=True):
                    # What networks share is there once, and sound if one of them is.
                    before = pairs.get(id(own))
                    either = sound if before is None else before.sound | sound
                    pairs[id(own)] = _Pair(own, now, either)
        if averaged:
            torch._foreach_lerp_(
                [pair.mean for pair in averaged.values()],
                [pair.shown() for pair in averaged.values()],
                1 - decay,
            )
        if copied:
            torch._foreach_copy_(
                [pair.mean for pair in copied.values()],
                [pair.shown() for pair in copied.values()],
            )


class _Pair(NamedTuple):
    """A tensor of a mean, the same of its source, and whether the source is sound."""

    mean: Tensor
    source: Tensor
    sound: Tensor

    def shown(self) -> Tensor:
        """What the mean takes up: itself in place of a source that is not sound."""
        if self.sound.device.type == "cpu":
            # Nothing to wait for, and a copy of all weights costs more than the mean itself.
            return self.source if self.sound else self.mean
        return torch.where(self.sound, self.source, self.mean)


def is_finite(module: nn.Module) -> Tensor:
    """Whether all weights and buffers are finite numbers, bool, on the device."""
    values = [*module.parameters(), *module.buffers()]
    # Sums of sizes keep NaN, which not every maximum of torch does; squares would overflow early.
    sizes = torch._foreach_norm([v for v in values if v.is_floating_point()], 1)
    return torch.stack(sizes).isfinite().all()
