"""One node of a cohort as a module of its own: what ships."""

from __future__ import annotations

from torch import Tensor, nn

from medkd.distill.nodes import Nodes


class OneNode(Nodes):
    """From images to the logits of one node, with the parts of a cohort that this needs.

    Args:
        whole: the cohort; its parts are used as they are, not copied.
        name: of the node.
    """

    def __init__(self, whole: Nodes, name: str) -> None:
        graph = whole.graph.alone(name)
        kept = {node.name for node in graph.nodes}
        modules = {node.module for node in graph.nodes}
        super().__init__(
            graph,
            nn.ModuleDict({k: module for k, module in whole.nodes.items() if k in kept}),
            nn.ModuleDict({k: module for k, module in whole.ensembles.items() if k in modules}),
            whole.averages.only(kept),
            {
                key: group._replace(names=tuple(n for n in group.names if n in kept))
                for key, group in whole._groups.items()
                if key in kept
            },
            whole._needed_states,
            whole.task,
        )
        self._name = name

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes, of RGB images in [0, 1], float N x 3 x H x W."""
        return self.logits_and_pooled(images)[0]

    def logits_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and the node's pooled features, N x channels; None where it has none."""
        seen = self.look(images, learning=False)[self._name]
        return seen.logits, seen.pooled
