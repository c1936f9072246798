"""The one module that holds every node of a method and computes every loss of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medkd.distill.averages import WeightAverages
from medkd.distill.ensembles import (
    Attention,
    ConcatenatedFeatures,
    Gate,
    Member,
    finite,
    mean_logits,
    mean_probabilities,
    shielded,
)
from medkd.distill.fit import (
    check_fit,
    make_ensembles,
    make_projections,
    projection_key,
    share_trunks,
    shared_count,
    stage_number,
)
from medkd.distill.graph import Graph, Link, Node
from medkd.distill.layout import Group, grouped, needed_states, parts_of
from medkd.distill.ramp import Moment
from medkd.distill.task import Task
from medkd.errors import MethodError
from medkd.networks.staged import Network, StagedNetwork, Tail, split_point


class Seen(NamedTuple):
    """What a node made of a batch.

    Attributes:
        logits: N x classes, at least float32.
        alive: whether they are finite, bool, on the device.
        pooled: N x channels; None where the node has none.
        states: by stage number, the state before that stage; just those that are needed.
    """

    logits: Tensor
    alive: Tensor
    pooled: Tensor | None
    states: dict[int, Tensor]


class Outputs(NamedTuple):
    """What a forward gives.

    Attributes:
        logits: of every node, N x classes, at least float32.
        terms: every weighted loss term, a scalar each: ``<node>/supervised`` and
            ``<learner>/<loss>_from_<source>``; none without labels. Go backward from their sum.
        alive: of every node, whether its logits are finite; bool, on the device. A node that is
            not alive teaches no one in this step, and its own terms are zero.
    """

    logits: dict[str, Tensor]
    terms: dict[str, Tensor]
    alive: dict[str, Tensor]


class Cohort(nn.Module):
    """All nodes of a distillation graph.

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
        super().__init__()
        wanted = {node.name for node in graph.nodes if node.is_network or node.role == "bridge"}
        if wanted != set(networks):
            raise MethodError(
                f"the method needs the networks {sorted(wanted)}, and has {sorted(networks)}",
                where=graph.method,
                remedy="Give each of its networks and bridges one.",
            )
        self.graph = graph
        self.task = task
        parts = parts_of(graph, networks)
        check_fit(graph, parts, task)
        share_trunks(graph, parts)
        self.nodes = nn.ModuleDict(parts)
        self.ensembles = make_ensembles(graph, parts)
        self.projections = make_projections(graph, parts, task)
        self.averages = WeightAverages(graph, self.nodes)
        for node in graph.nodes:
            if node.frozen:
                self.nodes[node.name].requires_grad_(False)
        self._groups = grouped(graph, parts)
        self._needed_states = needed_states(graph, parts)
        weights = torch.tensor([link.weight for link in graph.links], dtype=torch.float64)
        self.link_weights: Tensor
        self.register_buffer("link_weights", weights, persistent=False)

    # Training and its course.

    def train(self, mode: bool = True) -> Cohort:
        """As of any module; but what is frozen or an average stays in evaluation mode."""
        super().train(mode)
        self._hold()
        return self

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
        """Every parameter that can be trained, once, under the node (or trunk) that owns it."""
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
                add(node.name, self.ensembles[node.module].parameters())
        for link in self.graph.links:
            for target in link.targets:
                key = projection_key(link, target)
                if key in self.projections:
                    add(link.learner, self.projections[key].parameters())
        return found

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
            images: RGB in [0, 1], float N x 3 x H x W; or views x N x 3 x H x W, an augmentation
                for each view of the graph.
            labels: as the task takes them, int64 N for classes.
        """
        seen = self.look(images, learning=labels is not None)
        terms = self.terms(seen, labels) if labels is not None else {}
        return Outputs(
            {name: one.logits for name, one in seen.items()},
            terms,
            {name: one.alive for name, one in seen.items()},
        )

    def look(self, images: Tensor, *, learning: bool) -> dict[str, Seen]:
        """What every node makes of the images; see :meth:`forward`.

        Args:
            images: as there.
            learning: keep what the losses of links compare, too.
        """
        self._hold()
        if images.ndim == 5 and len(images) != self.graph.views:
            raise ValueError(f"{len(images)} views, and the method has {self.graph.views}")
        views = images.unbind(0) if images.ndim == 5 else (images,)
        seen: dict[str, Seen] = {}
        for node in self.graph.nodes:
            if node.name in seen:
                continue
            if node.name in self._groups:
                seen |= self._run_group(self._groups[node.name], views, learning)
            elif node.role == "bridge":
                seen[node.name] = self._run_bridge(node, seen, learning)
            else:
                seen[node.name] = self._run_ensemble(node, seen, learning)
        return seen

    def look_again(self, seen: Mapping[str, Seen], name: str, images: Tensor) -> dict[str, Seen]:
        """``seen`` with one network's view of the images renewed, after its update."""
        views = images.unbind(0) if images.ndim == 5 else (images,)
        return {**seen, **self._run_group(self._groups[name], views, learning=True)}

    def terms(
        self, seen: Mapping[str, Seen], labels: Tensor, learner: str | None = None
    ) -> dict[str, Tensor]:
        """Every weighted loss term, or those of one learner; see :class:`Outputs`.

        Computed at least in float32: in half precision small terms are lost.
        """
        device = labels.device.type
        terms: dict[str, Tensor] = {}
        with torch.autocast(device, enabled=False):
            for node in self.graph.nodes:
                if node.supervised and learner in (None, node.name):
                    own = seen[node.name]
                    loss = self.task.supervised_loss(finite(own.logits, own.alive), labels)
                    terms[f"{node.name}/supervised"] = node.supervised * loss * own.alive
            for number, link in enumerate(self.graph.links):
                if learner in (None, link.learner):
                    weight = self.link_weights[number]
                    value = self._compared(link, seen, labels)
                    terms[link.name] = weight.to(value.dtype) * value
        return terms

    def _compared(self, link: Link, seen: Mapping[str, Seen], labels: Tensor) -> Tensor:
        """The link's loss, averaged over its targets; those that are not alive count as zero."""
        loss = self.task.link_losses[link.loss]
        more = {"labels": labels} if loss.needs_labels else {}
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
        """What a link compares of a node: logits, pooled features, or a stage's map."""
        if place == "logits":
            return seen.logits
        if place == "pooled":
            assert seen.pooled is not None
            return _full(seen.pooled)
        network = self._network(name)
        assert isinstance(network, StagedNetwork | Tail)
        return _full(network.as_map(seen.states[stage_number(network, place) + 1]))

    def _network(self, name: str) -> nn.Module:
        return self.nodes[name] if name in self.nodes else self.averages[name]

    def _run_group(
        self, group: Group, views: tuple[Tensor, ...], learning: bool
    ) -> dict[str, Seen]:
        """Networks that share early stages: these run once, over all views that are wanted."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and group.with_gradient):
            first = self._network(group.names[0])
            if not isinstance(first, StagedNetwork):
                return {group.names[0]: _seen(first(views[self._view(group.names[0], views)]))}
            view_of = {name: self._view(name, views) for name in group.names}
            shown = sorted(set(view_of.values()))
            state = first.enter(
                views[shown[0]] if len(shown) == 1 else torch.cat([views[v] for v in shown])
            )
            states = {0: state}
            for number in range(group.shared_stages):
                state = first.stages[number](state)
                states[number + 1] = state
            seen = {}
            for name in group.names:
                part, count = shown.index(view_of[name]), len(shown)
                early = {
                    number: value if count == 1 else value.chunk(count)[part]
                    for number, value in states.items()
                }
                entered = early[group.shared_stages]
                if learning and len(group.names) > 1:
                    entered = shielded(entered)
                seen[name] = self._finished(name, entered, early, learning)
            return seen

    def _run_bridge(self, node: Node, seen: Mapping[str, Seen], learning: bool) -> Seen:
        source = self.nodes[node.sources[0]]
        assert isinstance(source, StagedNetwork)
        state = seen[node.sources[0]].states[split_point(source, node.from_stage)].detach()
        return self._finished(node.name, state, {0: state}, learning)

    def _finished(
        self, name: str, state: Tensor, early: Mapping[int, Tensor], learning: bool
    ) -> Seen:
        """From a state, the last of the early ones, to logits."""
        network = self._network(name)
        assert isinstance(network, StagedNetwork | Tail)
        states = dict(early)
        for number in range(max(early), len(network.stages)):
            state = network.stages[number](state)
            states[number + 1] = state
        pooled = network.pool(state)
        to_predict, to_learn = self._needed_states[name]
        needed = to_learn if learning else to_predict
        kept = {number: value for number, value in states.items() if number in needed}
        return _seen(network.classifier(pooled), pooled, kept)

    def _run_ensemble(self, node: Node, seen: Mapping[str, Seen], learning: bool) -> Seen:
        device = next(iter(seen.values())).logits.device.type
        with torch.autocast(device, enabled=False):
            members = [self._member(node, name, seen[name], learning) for name in node.sources]
            combined = _seen(self._combined(node, members))
            living = torch.stack([member.alive for member in members]).any()
            return combined._replace(alive=combined.alive & living)

    def _combined(self, node: Node, members: Sequence[Member]) -> Tensor:
        """Logits of an ensemble, N x classes."""
        if node.by == "mean logits":
            return mean_logits(members)
        if node.by == "mean probabilities":
            return mean_probabilities(members)
        module = self.ensembles[node.module or ""]
        if isinstance(module, Attention):
            return module(members, node.index)
        assert isinstance(module, Gate | ConcatenatedFeatures)
        return module(members)

    def _member(self, node: Node, name: str, seen: Seen, learning: bool) -> Member:
        shared = None
        if node.by == "gate":
            network = self.nodes[name]
            assert isinstance(network, StagedNetwork)
            count = shared_count(self.graph.node(name), network)
            shared = _full(network.as_map(seen.states[count]))
        pooled = None if seen.pooled is None else _full(seen.pooled)
        if learning and node.module is not None:
            shared, pooled = (None if x is None else shielded(x) for x in (shared, pooled))
            return Member(shielded(seen.logits), pooled, shared, seen.alive)
        return Member(seen.logits, pooled, shared, seen.alive)

    def _view(self, name: str, views: tuple[Tensor, ...]) -> int:
        """Number of the node's view; in evaluation there is but one."""
        return self.graph.node(name).view if len(views) > 1 else 0

    def _hold(self) -> None:
        """Back to evaluation mode, whoever called ``train`` on whatever part of these."""
        held = [self.nodes[node.name] for node in self.graph.nodes if node.frozen]
        for module in (*held, self.averages):
            if any(part.training for part in module.modules()):
                module.eval()

    # What ships.

    def alone(self, name: str) -> nn.Module:
        """A module from images to the logits of one node, of what that node needs and no more.

        Its parts are those of the cohort, not copies.
        """
        if name in self.nodes and self.graph.node(name).is_network:
            return self.nodes[name]
        if name in self.averages:
            return self.averages[name]
        return _OneNode(self, name)


class _OneNode(nn.Module):
    def __init__(self, cohort: Cohort, name: str) -> None:
        super().__init__()
        graph = cohort.graph.alone(name)
        self.part = Cohort.__new__(Cohort)
        nn.Module.__init__(self.part)
        kept = {node.name for node in graph.nodes}
        self.part.graph, self.part.task = graph, cohort.task
        self.part.nodes = nn.ModuleDict({n: m for n, m in cohort.nodes.items() if n in kept})
        modules = {node.module for node in graph.nodes}
        self.part.ensembles = nn.ModuleDict(
            {n: m for n, m in cohort.ensembles.items() if n in modules}
        )
        self.part.averages = cohort.averages.only(kept)
        self.part._groups = {
            n: group._replace(names=tuple(x for x in group.names if x in kept))
            for n, group in cohort._groups.items()
            if n in kept
        }
        self.part._needed_states = cohort._needed_states
        self._name = name

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes, of RGB images in [0, 1], float N x 3 x H x W."""
        return self.part.look(images, learning=False)[self._name].logits


def _seen(
    logits: Tensor, pooled: Tensor | None = None, states: dict[int, Tensor] | None = None
) -> Seen:
    logits = _full(logits)
    return Seen(logits, logits.isfinite().all(), pooled, states or {})


def _full(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()
