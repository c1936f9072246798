"""Which networks run together, and which of their states others look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from medkd.distill.fit import LOOK_AT_POOLED, Part, shared_count, stage_number
from medkd.distill.graph import Graph, Node
from medkd.errors import ConfigError, MethodError
from medkd.networks.staged import Network, StagedNetwork, split_point, tail


class Needs(NamedTuple):
    """What is looked at, of each network.

    Attributes:
        to_predict: before which stages its state, by its name.
        to_learn: likewise, with what the losses of links compare.
        pooled: names of those whose pooled features are.
    """

    to_predict: dict[str, frozenset[int]]
    to_learn: dict[str, frozenset[int]]
    pooled: frozenset[str]


class Group(NamedTuple):
    """Networks that run together because they share early stages; mostly just one."""

    names: tuple[str, ...]
    shared_stages: int
    with_gradient: bool


def parts_of(graph: Graph, networks: Mapping[str, Network]) -> dict[str, Part]:
    """Of each network all of it, of each bridge the late part."""
    parts: dict[str, Part] = {}
    for node in graph.nodes:
        if node.is_network:
            parts[node.name] = networks[node.name]
        elif node.role == "bridge":
            for network in (networks[node.sources[0]], networks[node.name]):
                if not isinstance(network, StagedNetwork):
                    raise MethodError(
                        f"the bridge '{node.name}' needs a network with stages, and "
                        f"'{node.sources[0]}' has none",
                        where=node.where,
                        remedy="Choose a network with stages ('medkd networks' says which).",
                    )
            try:
                parts[node.name] = tail(networks[node.name], node.from_stage)
            except ConfigError as error:
                raise MethodError(error.what, where=node.where, remedy=error.remedy) from None
    return parts


def grouped(graph: Graph, parts: Mapping[str, Part]) -> dict[str, Group]:
    """Of each node that is a network, the group that it runs in."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in graph.nodes:
        if node.is_network or node.role == "mean":
            source = node if node.is_network else graph.node(node.sources[0])
            kind = "mean" if node.role == "mean" else "network"
            key = source.trunk if source.trunk is not None else f"alone {node.name}"
            # Averages of different decay have different trunks.
            decay = f"{node.decay} {node.warm_start}" if node.role == "mean" else ""
            groups.setdefault((kind + decay, key), []).append(node)
    found: dict[str, Group] = {}
    for nodes in groups.values():
        source = nodes[0] if nodes[0].is_network else graph.node(nodes[0].sources[0])
        part = parts[source.name]
        shared = 0
        if isinstance(part, StagedNetwork) and source.trunk is not None:
            shared = shared_count(source, part)
        group = Group(
            tuple(node.name for node in nodes),
            shared,
            nodes[0].role != "mean" and not nodes[0].frozen,
        )
        found |= dict.fromkeys(group.names, group)
    return found


def needed_states(graph: Graph, parts: Mapping[str, Part]) -> Needs:
    """What links, bridges and ensembles look at."""
    predict: dict[str, set[int]] = {node.name: set() for node in graph.nodes}
    pooled: set[str] = set()
    for node in graph.nodes:
        if node.role == "bridge":
            source = parts[node.sources[0]]
            assert isinstance(source, StagedNetwork)
            split = split_point(source, node.from_stage)
            early = {number for number in source.finish_states if number < split}
            predict[node.sources[0]] |= early | {split}
        elif node.by == "gate":
            for name in node.sources:
                network = parts[name]
                assert isinstance(network, StagedNetwork)
                predict[name].add(shared_count(graph.node(name), network))
        elif node.by in LOOK_AT_POOLED:
            pooled.update(node.sources)
    learn = {name: set(numbers) for name, numbers in predict.items()}
    for link in graph.links:
        ends = [(link.learner, link.learner_place)]
        ends += [(target, link.target_place) for target in link.targets]
        for name, place in ends:
            if place.startswith("stage"):
                node = graph.node(name)
                part = parts[name if name in parts else node.sources[0]]
                learn[name].add(stage_number(part, place) + 1)
            elif place == "pooled":
                pooled.add(name)
    return Needs(
        {name: frozenset(numbers) for name, numbers in predict.items()},
        {name: frozenset(numbers) for name, numbers in learn.items()},
        frozenset(pooled),
    )
