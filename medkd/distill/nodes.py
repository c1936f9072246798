"""The nodes of a graph in one module, and how they run: each once, shared stages together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from medkd.distill.averages import WeightAverages
from medkd.distill.ensembles import (
    Attention,
    ConcatenatedFeatures,
    Gate,
    Member,
    mean_logits,
    shielded,
)
from medkd.distill.fit import shared_count
from medkd.distill.graph import Graph, Node
from medkd.distill.layout import Group, Needs
from medkd.distill.task import Task
from medkd.networks.heads import hold_backbone
from medkd.networks.staged import Finished, StagedNetwork, Tail, split_point
from medkd.networks.timm_models import PooledNetwork


class Seen(NamedTuple):
    """What a node made of a batch.

    Attributes:
        logits: N x classes, or a detector's N x anchors x (classes + 4); at least float32.
        alive: whether they are finite, bool, on the device.
        pooled: N x channels; None where the node has none, or none that is needed.
        pyramid: a detector's, N x channels x cells; None of others.
        states: by stage number, the state before that stage; just those that are needed.
    """

    logits: Tensor
    alive: Tensor
    pooled: Tensor | None
    pyramid: Tensor | None
    states: dict[int, Tensor]


class Nodes(nn.Module):
    """Nodes that run together.

    Args:
        graph: of these nodes.
        networks: of each network the whole of it, of each bridge its late part.
        ensembles: the modules of ensembles that learn.
        averages: of the mean nodes.
        groups: of each network and mean, those that it runs with.
        needed_states: what others look at.
        task: what logits mean.

    Nothing here waits for the device.
    """

    def __init__(
        self,
        graph: Graph,
        networks: nn.ModuleDict,
        ensembles: nn.ModuleDict,
        averages: WeightAverages,
        groups: Mapping[str, Group],
        needed_states: Needs,
        task: Task,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.task = task
        self.nodes = networks
        self.ensembles = ensembles
        self.averages = averages
        self._groups = dict(groups)
        self._needed_states = needed_states

    def train(self, mode: bool = True) -> Self:
        """As of any module; but what is frozen or an average stays in evaluation mode."""
        super().train(mode)
        self._hold()
        return self

    def look(self, images: Tensor, *, learning: bool) -> dict[str, Seen]:
        """What every node makes of the images.

        Args:
            images: RGB in [0, 1], float N x 3 x H x W; or views x N x 3 x H x W, an augmentation
                for each view of the graph.
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

    def network(self, name: str) -> nn.Module:
        """The module of a network, a bridge or a mean."""
        return self.nodes[name] if name in self.nodes else self.averages[name]

    def _run_group(
        self, group: Group, views: tuple[Tensor, ...], learning: bool
    ) -> dict[str, Seen]:
        """Networks that share early stages: these run once, over all views that are wanted."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and group.with_gradient):
            name = group.names[0]
            first = self.network(name)
            if not isinstance(first, StagedNetwork):
                return {name: self._run_whole(name, first, views[self._view(name, views)])}
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

    def _run_whole(self, name: str, network: nn.Module, images: Tensor) -> Seen:
        """A network without stages; its pooled features cost a second run of its head."""
        wanted = name in self._needed_states.pooled or not self.training
        if isinstance(network, PooledNetwork) and wanted:
            return _seen(Finished(*network.logits_and_pooled(images)))
        return _alone(network(images))

    def _run_bridge(self, node: Node, seen: Mapping[str, Seen], learning: bool) -> Seen:
        source = self.nodes[node.sources[0]]
        assert isinstance(source, StagedNetwork)
        split = split_point(source, node.from_stage)
        early = {
            number - split: state.detach()
            for number, state in seen[node.sources[0]].states.items()
            if number <= split
        }
        return self._finished(node.name, early[0], early, learning)

    def _finished(
        self, name: str, state: Tensor, early: Mapping[int, Tensor], learning: bool
    ) -> Seen:
        """From a state, the last of the early ones, to logits."""
        network = self.network(name)
        assert isinstance(network, StagedNetwork | Tail)
        states = dict(early)
        for number in range(max(early), len(network.stages)):
            state = network.stages[number](state)
            states[number + 1] = state
        needs = self._needed_states
        needed = (needs.to_learn if learning else needs.to_predict)[name]
        kept = {number: value for number, value in states.items() if number in needed}
        return _seen(network.finish(states), kept)

    def _run_ensemble(self, node: Node, seen: Mapping[str, Seen], learning: bool) -> Seen:
        device = next(iter(seen.values())).logits.device.type
        with torch.autocast(device, enabled=False):
            members = [self._member(node, name, seen[name], learning) for name in node.sources]
            combined = _alone(self._combined(node, members))
            living = torch.stack([member.alive for member in members]).any()
            return combined._replace(alive=combined.alive & living)

    def _combined(self, node: Node, members: Sequence[Member]) -> Tensor:
        """Logits of an ensemble, of the shape of a member's."""
        if node.by == "mean logits":
            return mean_logits(members)
        if node.by == "mean probabilities":
            return self.task.mean_probabilities(members)
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
            shared = full(network.as_map(seen.states[count]))
        pooled = None if seen.pooled is None else full(seen.pooled)
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
        for module in self.nodes.values():
            hold_backbone(module)


def _seen(finished: Finished, states: dict[int, Tensor] | None = None) -> Seen:
    logits = full(finished.logits)
    return Seen(logits, logits.isfinite().all(), finished.pooled, finished.pyramid, states or {})


def _alone(logits: Tensor) -> Seen:
    """Logits that come with nothing else."""
    logits = full(logits)
    return Seen(logits, logits.isfinite().all(), None, None, {})


def full(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()
