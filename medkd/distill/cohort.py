"""A method's nodes and the losses of a step: supervised ones, and those of links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medkd.distill.averages import WeightAverages
from medkd.distill.ensembles import finite
from medkd.distill.fit import (
    check_fit,
    make_ensembles,
    make_projections,
    projection_key,
    share_trunks,
    shared_count,
    stage_number,
)
from medkd.distill.graph import Graph, Link
from medkd.distill.layout import grouped, needed_states, parts_of
from medkd.distill.nodes import Nodes, Seen, full
from medkd.distill.one_node import OneNode
from medkd.distill.ramp import Moment
from medkd.distill.task import Task
from medkd.errors import MethodError
from medkd.networks.heads import freeze_backbone
from medkd.networks.staged import Network, StagedNetwork, Tail


class Outputs(NamedTuple):
    """What a forward gives.

    Attributes:
        logits: of every node, N x classes, or a detector's N x anchors x (classes + 4); at least
            float32.
        terms: every weighted loss term, a scalar each: ``<node>/supervised`` and
            ``<learner>/<loss>_from_<source>``; none without labels. Go backward from their sum.
        alive: of every node, whether its logits are finite; bool, on the device. A node that is
            not alive teaches no one in this step, and its own terms are zero.
    """

    logits: dict[str, Tensor]
    terms: dict[str, Tensor]
    alive: dict[str, Tensor]


class Cohort(Nodes):
    """All nodes of a distillation graph, and what they learn by.

    Args:
        graph: the expanded method.
        networks: for each network of the graph a network, and for each bridge a fresh network of
            the kind that it bridges. What the cohort needs of them becomes part of it.
        task: what labels mean.

    Unless a link says otherwise its targets are detached, so that one backward over the sum of
    all terms equals a backward for each node alone. Nothing here waits for the device.

    Raises:
        MethodError: the networks do not fit the graph, with the line of the method.
    """

    def __init__(self, graph: Graph, networks: Mapping[str, Network], task: Task) -> None:
        wanted = {node.name for node in graph.nodes if node.is_network or node.role == "bridge"}
        if wanted != set(networks):
            raise MethodError(
                f"the method needs the networks {sorted(wanted)}, and has {sorted(networks)}",
                where=graph.method,
                remedy="Give each of its networks and bridges one.",
            )
        parts = parts_of(graph, networks)
        check_fit(graph, parts, task)
        share_trunks(graph, parts)
        nodes = nn.ModuleDict(parts)
        super().__init__(
            graph,
            nodes,
            make_ensembles(graph, parts),
            WeightAverages(graph, nodes),
            grouped(graph, parts),
            needed_states(graph, parts),
            task,
        )
        self.projections = make_projections(graph, parts, task)
        for name, part in parts.items():
            freeze_backbone(part)
            if graph.node(name).frozen:
                part.requires_grad_(False)
        weights = torch.tensor([link.weight for link in graph.links], dtype=torch.float64)
        self.link_weights: Tensor
        self.register_buffer("link_weights", weights, persistent=False)

    # Training and its course.

    def set_moment(self, moment: Moment) -> None:
        """Set the weights of links to what their ramps say."""
        if any(link.ramp is not None for link in self.graph.links):
            weights = [
                link.weight * (link.ramp(moment) if link.ramp is not None else 1.0)
                for link in self.graph.links
            ]
            self.link_weights.copy_(torch.tensor(weights, dtype=torch.float64))

    def update_averages(self, step: int) -> None:
        """Bring the means up to date, after each step; ``step`` is its number, from 0."""
        self.averages.update(self.nodes, step)

    def parameters_by_node(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter that can be trained, once, under the name of what owns it.

        That is a node; or the trunk of a set, such as ``peer_trunk``; or, of ensembles that share
        one module, their set. What projects features of a link is the learner's.
        """
        found: dict[str, list[nn.Parameter]] = {}
        seen: set[int] = set()

        def add(owner: str, parameters: Iterable[nn.Parameter]) -> None:
            for parameter in parameters:
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found.setdefault(owner, []).append(parameter)

        for node in self.graph.nodes:
            if node.trunk is not None:
                network = self.nodes[node.name]
                assert isinstance(network, StagedNetwork)
                count = shared_count(node, network)
                for module in (network.stem, *list(network.stages)[:count]):
                    add(node.trunk, module.parameters())
            if node.name in self.nodes:
                add(node.name, self.nodes[node.name].parameters())
            if node.module is not None:
                add(node.module, self.ensembles[node.module].parameters())
        for link in self.graph.links:
            for target in link.targets:
                key = projection_key(link, target)
                if key in self.projections:
                    add(link.learner, self.projections[key].parameters())
        return found

    @torch.no_grad()
    def drop_dead_gradients(self, alive: Mapping[str, Tensor]) -> None:
        """Set the gradients of nodes that are not alive to zero; call it before clipping.

        A dead node's terms are zero, but the gradients behind its numbers are not: 0 x NaN is NaN,
        and a step would make good weights of a node with one bad batch NaN for ever. What several
        nodes share keeps its gradient while one of them lives, to which the dead add nothing.
        Nothing waits for the device.

        An optimizer still steps on a gradient of zero: momentum runs out, and weights decay. To
        leave that out without a wait would need an optimizer for each node, since the
        ``found_inf`` of torch's fused ones stops all their groups together.

        Args:
            alive: as :class:`Outputs` has it; who is not named lives.
        """
        for owner, parameters in self.parameters_by_node().items():
            users = [
                node.name
                for node in self.graph.nodes
                if owner in (node.name, node.trunk, node.module)
            ]
            if not alive.keys() >= set(users):
                continue
            dead = ~torch.stack([alive[name] for name in users]).any()
            for parameter in parameters:
                if parameter.grad is not None:
                    # Not a product with zero: that keeps NaN.
                    parameter.grad.masked_fill_(dead, 0)

    def own_modules(self) -> dict[str, nn.Module]:
        """What holds weights, by name: networks, bridges, averages, and ensembles that learn."""
        return {
            **dict(self.nodes.items()),
            **dict(self.averages.networks.items()),
            **dict(self.ensembles.items()),
        }

    # Forward.

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Outputs:
        """Run every node once; with labels, compute every loss.

        Args:
            images: as :meth:`~medkd.distill.nodes.Nodes.look` takes them.
            labels: as the task takes them, int64 N for classes.
        """
        seen = self.look(images, learning=labels is not None)
        terms = self.terms(seen, labels) if labels is not None else {}
        return Outputs(
            {name: one.logits for name, one in seen.items()},
            terms,
            {name: one.alive for name, one in seen.items()},
        )

    def terms(
        self, seen: Mapping[str, Seen], labels: Tensor, learner: str | None = None
    ) -> dict[str, Tensor]:
        """Every weighted loss term, or those of one learner; see :class:`Outputs`.

        Computed at least in float32: in half precision small terms are lost.
        """
        device = labels.device.type
        terms: dict[str, Tensor] = {}
        with torch.autocast(device, enabled=False):
            targets = self.task.targets(labels)
            for node in self.graph.nodes:
                if node.supervised and learner in (None, node.name):
                    own = seen[node.name]
                    loss = self.task.supervised_loss(finite(own.logits, own.alive), targets)
                    terms[f"{node.name}/supervised"] = node.supervised * loss * own.alive
            for number, link in enumerate(self.graph.links):
                if learner in (None, link.learner):
                    weight = self.link_weights[number]
                    value = self._compared(link, seen, targets)
                    terms[link.name] = weight.to(value.dtype) * value
        return terms

    def _compared(self, link: Link, seen: Mapping[str, Seen], targets: Tensor) -> Tensor:
        """The link's loss, averaged over its targets; those that are not alive count as zero."""
        loss = self.task.link_losses[link.loss]
        more = {"targets": targets} if loss.needs_labels else {}
        learner = seen[link.learner]
        own = finite(self._place(link.learner, learner, link.learner_place), learner.alive)
        values = []
        for name in link.targets:
            target = seen[name]
            shown = finite(self._place(name, target, link.target_place), target.alive)
            shown = shown.detach() if link.detach else shown
            projection = projection_key(link, name)
            if projection in self.projections:
                ours, theirs = self.projections[projection](own, shown)
            else:
                ours, theirs = own, shown
            value = loss.compute(theirs, ours, **more, **link.settings)
            values.append(value * (target.alive & learner.alive))
        return torch.stack(values).mean()

    def _place(self, name: str, seen: Seen, place: str) -> Tensor:
        """What a link compares of a node: logits, features, or a stage's map."""
        if place == "logits":
            return seen.logits
        if place in ("pooled", "pyramid"):
            features = seen.pooled if place == "pooled" else seen.pyramid
            assert features is not None
            return full(features)
        network = self.network(name)
        assert isinstance(network, StagedNetwork | Tail)
        return full(network.as_map(seen.states[stage_number(network, place) + 1]))

    # What ships.

    def alone(self, name: str) -> nn.Module:
        """A module from images to the logits of one node, of what that node needs and no more.

        Its parts are those of the cohort, not copies.
        """
        if name in self.nodes and self.graph.node(name).is_network:
            return self.nodes[name]
        if name in self.averages:
            return self.averages[name]
        return OneNode(self, name)
