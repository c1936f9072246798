"""The networks that a configuration can name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from medkd.config import NetworkConfig
from medkd.errors import ConfigError
from medkd.networks import (
    cifar_bottleneck,
    cifar_densenet,
    cifar_resnet,
    densenet,
    efficientnet,
    efficientnet_lite,
    imported,
    mobilenet,
    resnet,
    se_resnet,
    timm_models,
    vgg,
    vit,
    wide_resnet,
)
from medkd.networks.heads import train_head_only
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import Network, Tail, require_stages, split_point, tail

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
    build: Callable[[NetworkSpec], Network]
    options: frozenset[str] = frozenset()
    input_px: int = 224


_WIDE_RESNETS = Family("Wide ResNet", wide_resnet.NAMES, wide_resnet.build, input_px=32)
_TIMM = Family("timm", (), timm_models.build, timm_models.OPTIONS)
_IMPORTED = Family("imported", (), imported.build)

FAMILIES = (
    Family("ResNet (MONAI)", resnet.NAMES, resnet.build, resnet.OPTIONS),
    Family("SE-ResNet (MONAI)", se_resnet.NAMES, se_resnet.build),
    Family("DenseNet (MONAI)", densenet.NAMES, densenet.build),
    Family("EfficientNet (MONAI)", efficientnet.NAMES, efficientnet.build),
    Family("Vision transformer (MONAI)", vit.NAMES, vit.build),
    Family(
        "EfficientNet-Lite",
        efficientnet_lite.NAMES,
        efficientnet_lite.build,
        efficientnet_lite.OPTIONS,
    ),
    Family("ResNet for CIFAR", cifar_resnet.NAMES, cifar_resnet.build, input_px=32),
    _WIDE_RESNETS,
    Family("Bottlenecks for CIFAR", cifar_bottleneck.NAMES, cifar_bottleneck.build, input_px=32),
    Family("VGG for CIFAR", vgg.NAMES, vgg.build, input_px=32),
    Family("DenseNet for CIFAR", cifar_densenet.NAMES, cifar_densenet.build, input_px=32),
    Family("MobileNet for CIFAR", mobilenet.NAMES, mobilenet.build, input_px=32),
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
        name: one of :data:`NETWORK_NAMES`; or wrn-D-K, a wide ResNet of D layers; or timm:NAME, a
            network of timm; or package.module:NAME, a class or function of the user's that is
            called with ``classes`` and gives a module (see :mod:`medkd.networks.imported`).
        classes: number of logits.
        width: factor on the number of channels (ResNets).
        stem_stride: stride of the first convolution, 1 or 2 (ResNets); None: 2.
        max_pool: whether the stem ends in a max-pool (ResNets); None: it does.
        pretrained: start from the weights that come with the network (efficientnet-lite0, timm).
        where: the key of the configuration that errors tell of.

    Raises:
        ConfigError: no such network, an option that the network does not have, or a module of the
            user's that does not keep to the contract.
    """
    spec = NetworkSpec(name, classes, width, stem_stride, max_pool, pretrained)
    return build(spec, where)


def build(spec: NetworkSpec, where: str = _PLACE) -> Network:
    """Build the network of a spec; see :func:`build_network`."""
    try:
        if spec.classes < 1:
            raise ConfigError(f"a network of {spec.classes} classes", remedy="Use at least 1.")
        family = family_of(spec.name)
        _check_options(spec, family.options)
        network = family.build(spec)
    except ConfigError as error:
        # The families know what is wrong, and this function where it was asked for.
        raise ConfigError(error.what, where=where, remedy=error.remedy) from error.__cause__
    network.spec = spec
    return network


def configured_network(config: NetworkConfig, *, classes: int, where: str) -> Network:
    """Build the network that a configuration asks for; see :func:`build_network`."""
    network = build_network(
        config.network,
        classes=classes,
        width=config.width,
        stem_stride=config.stem_stride,
        max_pool=config.max_pool,
        pretrained=config.pretrained,
        where=where,
    )
    if config.train_only is not None:
        train_head_only(network, where)
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


def family_of(name: str) -> Family:
    """The family that builds the network of that name.

    Raises:
        ConfigError: none does.
    """
    if name in _FAMILY_OF:
        return _FAMILY_OF[name]
    if wide_resnet.matches(name):
        return _WIDE_RESNETS
    if name.startswith(timm_models.PREFIX):
        return _TIMM
    if ":" in name:
        return _IMPORTED
    close = difflib.get_close_matches(name, NETWORK_NAMES, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "'medkd networks' lists them."
    raise ConfigError(f"unknown network '{name}'", remedy=hint)


_OPTION_WORDS = {
    "width": "width factor",
    "stem_stride": "choice of stem stride",
    "max_pool": "choice of max-pool",
    "pretrained": "pretrained weights",
}


def _check_options(spec: NetworkSpec, known: frozenset[str]) -> None:
    for option in spec.options():
        if option not in known:
            raise ConfigError(
                f"'{spec.name}' has no {_OPTION_WORDS[option]}", remedy=f"Leave '{option}' out."
            )
