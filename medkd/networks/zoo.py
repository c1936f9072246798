"""The networks that a configuration can name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from medkd.errors import ConfigError
from medkd.networks import densenet, efficientnet, resnet, se_resnet, vit
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import Network, StagedNetwork, Tail, require_stages, split_point, tail

_PLACE = "train"


@dataclass(frozen=True)
class Family:
    """Networks that are built by one function.

    Attributes:
        title: as in a table's heading.
        names: of its networks.
        build: builds a network of a spec whose options were checked.
        options: of the spec's options, those that the networks have.
        input_px: side of the images that its authors tell of.
    """

    title: str
    names: tuple[str, ...]
    build: Callable[[NetworkSpec], StagedNetwork]
    options: frozenset[str] = frozenset()
    input_px: int = 224


FAMILIES = (
    Family("ResNet (MONAI)", resnet.NAMES, resnet.build, resnet.OPTIONS),
    Family("SE-ResNet (MONAI)", se_resnet.NAMES, se_resnet.build),
    Family("DenseNet (MONAI)", densenet.NAMES, densenet.build),
    Family("EfficientNet (MONAI)", efficientnet.NAMES, efficientnet.build),
    Family("Vision transformer (MONAI)", vit.NAMES, vit.build),
)
NETWORK_NAMES = tuple(name for family in FAMILIES for name in family.names)
_FAMILY_OF = {name: family for family in FAMILIES for name in family.names}


def build_network(
    name: str,
    *,
    classes: int,
    width: float = 1.0,
    stem_stride: int | None = None,
    max_pool: bool | None = None,
    pretrained: bool = False,
    where: str = _PLACE,
) -> Network:
    """Build a network.

    Args:
        name: one of :data:`NETWORK_NAMES`.
        classes: number of logits.
        width: factor on the number of channels (ResNets).
        stem_stride: stride of the first convolution, 1 or 2 (ResNets); None: 2.
        max_pool: whether the stem ends in a max-pool (ResNets); None: it does.
        pretrained: start from the weights that come with the network.
        where: the key of the configuration that errors tell of.

    Raises:
        ConfigError: no such network, or an option that the network does not have.
    """
    spec = NetworkSpec(name, classes, width, stem_stride, max_pool, pretrained)
    return build(spec, where)


def build(spec: NetworkSpec, where: str = _PLACE) -> Network:
    """Build the network of a spec; see :func:`build_network`."""
    family = _family(spec.name, where)
    _check_options(spec, family.options, where)
    network = family.build(spec)
    network.spec = spec
    return network


def fresh_tail(network: Network, from_stage: int, where: str = _PLACE) -> Tail:
    """A freshly initialised copy of a network from a stage on.

    Args:
        network: a staged network that :func:`build_network` made.
        from_stage: the first stage of the copy; negative: counted from the end.
        where: the key of the configuration that errors tell of.

    Returns:
        A module that takes the state before that stage and gives logits, N x classes. Its weights
        are drawn as the network's own were before any training.

    Raises:
        ConfigError: the network has no stages, or not so many.
    """
    staged = require_stages(network, where)
    first = split_point(staged, from_stage, where)
    if staged.spec is None:
        raise ValueError("a network without a spec cannot be built anew")
    return tail(build(replace(staged.spec, pretrained=False), where), first)


def count_parameters(network: nn.Module) -> int:
    """Number of trained and frozen parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _family(name: str, where: str) -> Family:
    if name in _FAMILY_OF:
        return _FAMILY_OF[name]
    close = difflib.get_close_matches(name, NETWORK_NAMES, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "'medkd networks' lists them."
    raise ConfigError(f"unknown network '{name}'", where=where, remedy=hint)


def _check_options(spec: NetworkSpec, known: frozenset[str], where: str) -> None:
    told = {"width": "width factor", "stem_stride": "choice of stem stride"}
    told |= {"max_pool": "choice of max-pool", "pretrained": "pretrained weights"}
    for option in spec.options():
        if option not in known:
            raise ConfigError(
                f"'{spec.name}' has no {told[option]}",
                where=where,
                remedy=f"Leave '{option}' out.",
            )
    if spec.stem_stride not in (None, 1, 2):
        raise ConfigError(
            f"the stem stride is {spec.stem_stride}", where=where, remedy="Use 1 or 2."
        )
    narrowest = resnet.PLANES[0]
    if not (math.isfinite(spec.width) and int(narrowest * spec.width) >= 1):
        raise ConfigError(
            f"a width of {spec.width:g} leaves '{spec.name}' no channels",
            where=where,
            remedy=f"Use at least {1 / narrowest:g}.",
        )
