"""Whether networks fit a graph, and the modules that make them fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from medkd.distill.ensembles import Attention, ConcatenatedFeatures, Gate
from medkd.distill.graph import Graph, Link, Node
from medkd.distill.task import Task
from medkd.errors import MethodError
from medkd.networks.heads import is_head_only
from medkd.networks.staged import Network, StagedNetwork, Tail, Trunk
from medkd.networks.timm_models import PooledNetwork

Part: TypeAlias = Network | Tail
"""What a node is made of: a whole network, or a bridge's late part of one."""

Pooling: TypeAlias = StagedNetwork | Tail | PooledNetwork
"""Parts that have pooled features."""

LOOK_AT_POOLED = ("attention", "concatenated features")
"""How ensembles combine that look at the pooled features of their members."""

# Of both sides of a contrastive link (arXiv 1910.10699).
_CONTRASTIVE_WIDTH = 128

_STAGED = "Choose a network with stages ('medkd networks' says which), or compare logits."


class Projection(nn.Module):
    """Brings the learner's features, and perhaps the target's, to one width without bias."""

    def __init__(self, learner: int, target: int, *, both: bool, place: str) -> None:
        super().__init__()

        def to(channels: int, width: int) -> nn.Module:
            if place == "pooled":
                return nn.Linear(channels, width, bias=False)
            convolution = nn.Conv1d if place == "pyramid" else nn.Conv2d
            return convolution(channels, width, kernel_size=1, bias=False)

        width = _CONTRASTIVE_WIDTH if both else target
        self.learner = to(learner, width)
        self.target = to(target, width) if both else nn.Identity()

    def forward(self, learner: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of one width."""
        return self.learner(learner), self.target(target)


def projection_key(link: Link, target: str) -> str:
    """Name of the module that projects features of a link."""
    return f"{link.name}:{target}"


def shared_count(node: Node, network: StagedNetwork) -> int:
    """How many stages the network has in common with others."""
    assert node.shared_stages is not None
    return node.shared_stages % len(network.stages) if node.shared_stages else 0


def stage_number(network: nn.Module, place: str) -> int:
    """The number, from 0, of the stage that a place such as ``stage -1`` names."""
    assert isinstance(network, StagedNetwork | Tail)
    return int(place.split()[1]) % len(network.stages)


def check_fit(graph: Graph, parts: Mapping[str, Part], task: Task) -> None:
    """Refuse networks that lack what the graph's links and ensembles look at.

    Raises:
        MethodError: with the line of the method.
    """
    for name, network in parts.items():
        # A bridge is made of the same kind of network as what it bridges.
        why = task.refusal(network) if graph.node(name).is_network else ""
        if why:
            _refuse(graph.node(name), f"'{name}' does not fit: {why}", "Choose another network.")
    for link in graph.links:
        if link.loss not in task.link_losses:
            _refuse(link, f"this task has no loss '{link.loss}'", "Choose another loss.")
        ends = [(link.learner, link.learner_place)]
        ends += [(target, link.target_place) for target in link.targets]
        for name, place in ends:
            if place != "logits":
                _check_place(graph, parts, link, name, place)
    for node in graph.nodes:
        _check_looks_at(node, parts)
        if node.role == "ensemble":
            _check_ensemble(graph, node, parts)


def _check_looks_at(node: Node, parts: Mapping[str, Part]) -> None:
    """Whether networks have what the node shares, or looks at of its members."""
    needed: tuple[type[nn.Module], ...] = (nn.Module,)
    if node.trunk is not None or node.by == "gate":
        needed = (StagedNetwork,)
    elif node.by in LOOK_AT_POOLED:
        needed = (StagedNetwork, PooledNetwork)
    for name in node.sources or (node.name,):
        part = parts.get(name)
        if part is not None and not isinstance(part, needed):
            _refuse(node, f"'{name}' has no stages, and the method looks at them", _STAGED)
    if node.trunk is not None and is_head_only(parts[node.name]):
        _refuse(
            node,
            f"'{node.name}' shares stages with others, and trains its head alone",
            "Leave 'train_only' out of its network, or share no stages.",
        )


def _check_ensemble(graph: Graph, node: Node, parts: Mapping[str, Part]) -> None:
    """Whether the members of an ensemble can be taken together by its rule."""
    if node.by == "concatenated features" and any(
        _has_pyramid(parts[name]) for name in node.sources
    ):
        _refuse(
            node,
            f"the classifier of '{node.name}' sees whole images, and its members are detectors",
            "Choose a method that combines logits.",
        )
    if node.by == "attention":
        widths = {name: _part(graph, parts, name).pooled_channels for name in node.sources}
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{name} {width}" for name, width in widths.items())
            _refuse(
                node,
                f"attention compares pooled features of one width, and they have: {told}",
                "Give all its members the same network.",
            )


def share_trunks(graph: Graph, parts: Mapping[str, Part]) -> None:
    """Give networks with a common trunk the very modules of the first of them.

    Raises:
        MethodError: their early stages differ.
    """
    leaders: dict[str, tuple[str, StagedNetwork]] = {}
    for node in graph.nodes:
        if node.trunk is None:
            continue
        network = parts[node.name]
        assert isinstance(network, StagedNetwork)
        stages = node.shared_stages or 0
        if not -len(network.stages) <= stages < len(network.stages):
            _refuse(
                node,
                f"{stages} stages cannot be shared of {len(network.stages)}",
                "Leave each network at least its last stage.",
            )
        if node.trunk not in leaders:
            leaders[node.trunk] = (node.name, network)
            continue
        name, leader = leaders[node.trunk]
        count = shared_count(node, network)
        if _shapes(Trunk(leader, count)) != _shapes(Trunk(network, count)):
            _refuse(
                node,
                f"the early stages of '{node.name}' are not like those of '{name}'",
                "Networks that share stages must be of one architecture in train.students.",
            )
        network.adapter, network.stem = leader.adapter, leader.stem
        for number in range(count):
            network.stages[number] = leader.stages[number]


def make_ensembles(graph: Graph, parts: Mapping[str, Part]) -> nn.ModuleDict:
    """The modules of ensembles that learn, by the name that their nodes give."""
    made = nn.ModuleDict()
    for node in graph.nodes:
        if node.module is None or node.module in made:
            continue
        members = [_part(graph, parts, name) for name in node.sources]
        if node.by == "gate":
            first = members[0]
            assert isinstance(first, StagedNetwork)
            count = shared_count(graph.node(node.sources[0]), first)
            if count == 0:
                _refuse(node, "a gate needs at least one shared stage", "Share more stages.")
            made[node.module] = Gate(first.stage_channels[count - 1], len(members))
        elif node.by == "attention":
            made[node.module] = Attention(members[0].pooled_channels)
        else:
            channels = [member.pooled_channels for member in members]
            made[node.module] = ConcatenatedFeatures(channels, _classes(members[0]))
    return made


def make_projections(graph: Graph, parts: Mapping[str, Part], task: Task) -> nn.ModuleDict:
    """The modules that bring features of links to one width."""
    made = nn.ModuleDict()
    for link in graph.links:
        kind = task.link_losses[link.loss].projects
        if kind == "none":
            continue
        for target in link.targets:
            made[projection_key(link, target)] = Projection(
                _channels(graph, parts, link.learner, link.learner_place),
                _channels(graph, parts, target, link.target_place),
                both=kind == "both",
                place=link.learner_place,
            )
    return made


def _check_place(
    graph: Graph, parts: Mapping[str, Part], link: Link, name: str, place: str
) -> None:
    node = graph.node(name)
    if node.role == "ensemble":
        _refuse(link, f"'{name}' is an ensemble, it has logits alone", "Compare logits.")
    part = parts[name if name in parts else node.sources[0]]
    if place == "pyramid" and not _has_pyramid(part):
        _refuse(link, f"'{name}' is no detector, and has no pyramid", "Compare logits.")
    if not isinstance(part, StagedNetwork | Tail) and not (
        place == "pooled" and isinstance(part, PooledNetwork)
    ):
        _refuse(link, f"'{name}' has no stages, and '{place}' is compared", _STAGED)
    if name == link.learner and is_head_only(part):
        _refuse(
            link,
            f"'{name}' trains its head alone, and '{place}' comes before it",
            "Compare logits, or leave 'train_only' out of its network.",
        )
    if not isinstance(part, PooledNetwork) and place.startswith("stage"):
        number, count = int(place.split()[1]), len(part.stages)
        if not -count <= number < count:
            _refuse(
                link,
                f"'{name}' has no '{place}', only {count} stages",
                f"Name one from 0 to {count - 1}, or from -{count} to -1.",
            )


def _has_pyramid(part: nn.Module) -> bool:
    return isinstance(part, StagedNetwork | Tail) and part.has_pyramid


def _part(graph: Graph, parts: Mapping[str, Part], name: str) -> Pooling:
    part = parts[name if name in parts else graph.node(name).sources[0]]
    assert isinstance(part, Pooling)
    return part


def _channels(graph: Graph, parts: Mapping[str, Part], name: str, place: str) -> int:
    part = _part(graph, parts, name)
    if place in ("pooled", "pyramid"):
        return part.pooled_channels
    assert not isinstance(part, PooledNetwork)
    return part.stage_channels[stage_number(part, place)]


def _classes(part: Pooling) -> int:
    """Logits that a classifier gives: whatever it is, it is asked."""
    if isinstance(part, PooledNetwork):
        return part.classes
    weight = next(part.classifier.parameters())
    training = part.classifier.training
    part.classifier.eval()
    with torch.no_grad():
        logits = part.classifier(weight.new_zeros(1, part.pooled_channels))
    part.classifier.train(training)
    return int(logits.shape[1])


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _refuse(at: Node | Link, what: str, remedy: str) -> NoReturn:
    raise MethodError(what, where=at.where, remedy=remedy)
