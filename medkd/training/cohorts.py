"""From a configuration to the networks of a method."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medkd.config import Config, DetectionConfig, NetworkConfig
from medkd.datasets.patches import seed_of
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, Node
from medkd.distill.task import Task
from medkd.errors import ConfigError
from medkd.networks.staged import Network
from medkd.networks.zoo import configured_network
from medkd.tasks.classification import Classification
from medkd.training.checkpoint import load_network

if TYPE_CHECKING:
    from medkd.networks.anchor_grid import AnchorGrid

# Seeds of networks beside the teacher and the students of the configuration.
_FURTHER_SEEDS = 1_000


def network_config(config: Config, graph: Graph, node: Node) -> NetworkConfig:
    """The configured network of a node, or of the one that a bridge bridges."""
    if node.role == "bridge":
        return network_config(config, graph, graph.node(node.sources[0]))
    return config.train.teacher if node.role == "teacher" else config.train.students[node.index]


def network_key(graph: Graph, node: Node) -> str:
    """The key of the configuration that says a node's network."""
    if node.role == "bridge":
        return network_key(graph, graph.node(node.sources[0]))
    return "train.teacher" if node.role == "teacher" else f"train.students.{node.index}"


def learning_rates(config: Config, graph: Graph) -> dict[str, float]:
    """Peak learning rate of each node with a network.

    Stages that several networks share have that of the first of them.
    """
    rates: dict[str, float] = {}
    for node in graph.nodes:
        if node.is_network or node.role == "bridge":
            own = network_config(config, graph, node).learning_rate
            rates[node.name] = config.train.learning_rate if own is None else own
            if node.trunk is not None:
                rates.setdefault(node.trunk, rates[node.name])
    return rates


def node_record(config: Config, graph: Graph, node: Node) -> dict[str, Any]:
    """What is told of a node's network: its configuration, or what it is made of."""
    if node.is_network:
        chosen = network_config(config, graph, node)
        left_out = {"weights", "pretrained", "learning_rate", "train_only"}
        if config.task != "detection":
            left_out.add("pyramid_channels")
        return chosen.model_dump(mode="json", exclude=left_out)
    made_of = " and ".join(node.sources)
    what = {
        "mean": f"moving average of {made_of}",
        "bridge": f"bridge of {made_of}",
        "ensemble": f"{node.by} of {made_of}",
    }
    return {"network": what[node.role]}


def build_cohort(config: Config, graph: Graph) -> Cohort:
    """All networks of the graph, untrained but for weights that the configuration names.

    A network's first weights depend on the seed, its role and its number alone, so that methods
    are compared from the same start.

    Raises:
        ConfigError: no such network.
        MethodError: the networks do not fit the method.
        TrainingError: weights that are absent, or of another architecture.
    """
    networks = {}
    for node in graph.nodes:
        if node.is_network or node.role == "bridge":
            torch.manual_seed(_seed(config.seed, node))
            chosen = network_config(config, graph, node)
            if node.role == "bridge":
                chosen = chosen.model_copy(update={"pretrained": False})  # fresh, as SOKD has it
            network = _network(config, chosen, network_key(graph, node))
            if chosen.weights is not None and node.is_network:
                load_network(chosen.weights, network)
            networks[node.name] = network
    # Gates and projections draw their first weights when the cohort is made.
    torch.manual_seed(seed_of(config.seed, _FURTHER_SEEDS))
    return Cohort(graph, networks, configured_task(config))


def configured_task(config: Config) -> Task:
    """What the networks of an experiment learn."""
    if config.task == "detection":
        from medkd.tasks.detection import Detection

        settings = config.detection
        return Detection(
            anchor_grid(settings), settings.classes, settings.least_score, settings.nms_iou
        )
    train, data = config.train, config.data
    positive = data.classes.index(data.positive)
    return Classification(train.class_weights, train.label_smoothing, positive)


def _network(config: Config, chosen: NetworkConfig, where: str) -> Network:
    if config.task == "classification":
        return configured_network(chosen, classes=len(config.data.classes), where=where)
    from medkd.networks.detector import build_detector

    # Its own head is dropped, however many classes it has.
    backbone = configured_network(chosen, classes=1, where=where)
    settings = config.detection
    return build_detector(
        backbone,
        anchor_grid(settings),
        len(settings.classes),
        channels=chosen.pyramid_channels or settings.channels,
        where=where,
    )


def anchor_grid(settings: DetectionConfig) -> AnchorGrid:
    """The anchors of an experiment.

    Raises:
        ConfigError: such a grid cannot be.
    """
    from medkd.networks.anchor_grid import AnchorGrid

    sizes_px = tuple(
        tuple(size * stride for size in settings.anchor_sizes) for stride in settings.strides
    )
    try:
        return AnchorGrid(settings.image_px, settings.strides, sizes_px, settings.anchor_ratios)
    except ValueError as error:
        raise ConfigError(
            f"no anchors can be made: {error}",
            where="detection",
            remedy="Change 'image_px', 'strides', 'anchor_sizes' or 'anchor_ratios'.",
        ) from None


def trained_first(config: Config, graph: Graph) -> tuple[Node, ...]:
    """Frozen nodes whose weights no file gives: they are trained alone, before the others."""
    return tuple(
        node
        for node in graph.nodes
        if node.frozen and network_config(config, graph, node).weights is None
    )


def weight_files(config: Config) -> list[Path]:
    """Files of weights that the configuration names."""
    chosen = (config.train.teacher, *config.train.students)
    return [network.weights for network in chosen if network.weights is not None]


def _seed(seed: int, node: Node) -> int:
    if node.role == "teacher":
        return seed_of(seed, 0)
    if node.role == "student" and not node.is_extra:
        return seed_of(seed, 1 + node.index)
    return seed_of(seed, _FURTHER_SEEDS + 1 + zlib.crc32(node.name.encode()))
