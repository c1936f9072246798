"""The one module that holds every network of a method and computes every loss of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from medkd.distill.graph import Graph
from medkd.distill.links import LOSSES
from medkd.errors import MethodError

SupervisedLoss = Callable[[Tensor, Tensor], Tensor]


class Cohort(nn.Module):
    """All nodes of a distillation graph.

    Args:
        graph: the expanded method.
        networks: a network for each node of the graph, by name.
        supervised_loss: takes logits (float N x classes) and labels (int64 N), gives a scalar.

    All targets are detached, so one backward over the summed terms equals a backward for each
    node alone.
    """

    def __init__(
        self, graph: Graph, networks: Mapping[str, nn.Module], supervised_loss: SupervisedLoss
    ) -> None:
        super().__init__()
        names = {node.name for node in graph.nodes}
        if names != set(networks):
            raise MethodError(
                f"the method has the nodes {sorted(names)}, the networks are {sorted(networks)}",
                where=graph.method,
                remedy="Give each node one network.",
            )
        self.graph = graph
        self.nodes = nn.ModuleDict(dict(networks))
        self.supervised_loss = supervised_loss

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every node, each network run once.

        Args:
            images: float N x 3 x H x W.

        Returns:
            Node name to N x classes, at least in float32: losses in half precision lose terms.
        """
        logits = {name: network(images) for name, network in self.nodes.items()}
        return {
            name: value if value.dtype == torch.float64 else value.float()
            for name, value in logits.items()
        }

    def losses(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Every weighted loss term of a step; their sum is what to go backward from.

        Args:
            logits: as :meth:`forward` gives them.
            labels: int64 N.

        Returns:
            Term name to a scalar float32 tensor: ``<node>/supervised`` and
            ``<learner>/<loss>_from_<target>``. Nothing is copied off the device.
        """
        terms: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            if node.supervised:
                loss = self.supervised_loss(logits[node.name], labels)
                terms[f"{node.name}/supervised"] = node.supervised * loss
        for link in self.graph.links:
            compare = LOSSES[link.loss]
            values = [
                compare(logits[target].detach(), logits[link.learner], link.temperature)
                for target in link.targets
            ]
            terms[link.name] = link.weight * torch.stack(values).mean()
        return terms
