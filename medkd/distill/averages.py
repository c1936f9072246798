"""Means of a network's weights over the course of training (mean teachers)."""

from __future__ import annotations

import copy

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

        Args:
            networks: the sources as they are now.
            step: number of the step that was done, from 0: after it an average with a warm start
                is just its source.
        """
        by_decay: dict[float, dict[int, tuple[Tensor, Tensor]]] = {}
        for name, node in self._means.items():
            decay = min(1 - 1 / (step + 1), node.decay) if node.warm_start else node.decay
            pairs = by_decay.setdefault(decay, {})
            average, source = self.networks[name], networks[node.sources[0]]
            for mean, now in zip(average.parameters(), source.parameters(), strict=True):
                pairs[id(mean)] = (mean, now)  # once, where networks share it
            for copied, buffer in zip(average.buffers(), source.buffers(), strict=True):
                copied.copy_(buffer)
        for decay, pairs in by_decay.items():
            means = [mean for mean, _ in pairs.values()]
            torch._foreach_lerp_(means, [now for _, now in pairs.values()], 1 - decay)
