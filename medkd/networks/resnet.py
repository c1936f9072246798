"""MONAI's ResNets (arXiv 1512.03385) in two dimensions."""

from __future__ import annotations

import math

from monai.networks.nets import ResNet
from torch import nn

from medkd.errors import ConfigError
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork, average_pool, sequence

# block, blocks in each stage
_DEPTHS: dict[str, tuple[str, list[int]]] = {
    "resnet10": ("basic", [1, 1, 1, 1]),
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
    "resnet200": ("bottleneck", [3, 24, 36, 3]),
}
NAMES = tuple(_DEPTHS)
OPTIONS = frozenset({"width", "stem_stride", "max_pool"})
PLANES = (64, 128, 256, 512)


def monai_resnet(spec: NetworkSpec) -> ResNet:
    """MONAI's own network."""
    block, layers = _DEPTHS[spec.name]
    return ResNet(
        block=block,
        layers=layers,
        block_inplanes=list(PLANES),
        spatial_dims=2,
        n_input_channels=3,
        # MONAI's default stride of 1 keeps the stem at full size: four times the arithmetic.
        conv1_t_stride=spec.stem_stride or 2,
        no_max_pool=spec.max_pool is False,
        # A bias before a batch norm is cancelled by it.
        bias_downsample=False,
        widen_factor=spec.width,
        num_classes=spec.classes,
    )


def staged(network: ResNet) -> StagedNetwork:
    """The parts of MONAI's network."""
    if network.fc is None:
        raise ValueError("a ResNet without its last layer gives no logits")
    stem = {"conv1": network.conv1, "bn1": network.bn1, "act": network.act}
    if not network.no_max_pool:
        stem["maxpool"] = network.maxpool
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    return StagedNetwork(
        adapter=InputAdapter(),
        stem=sequence(**stem),
        stages=stages,
        pool=average_pool(),
        classifier=network.fc,
        stage_channels=[_channels(stage) for stage in stages],
        pooled_channels=network.fc.in_features,
    )


def _channels(stage: nn.Sequential) -> int:
    last = [m for m in stage[-1].modules() if isinstance(m, nn.Conv2d)]
    # The convolutions of a block's shortcut give as many channels as its last one.
    return int(last[-1].out_channels)


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec.

    Raises:
        ConfigError: a stem stride other than 1 and 2, or a width that leaves no channels.
    """
    if spec.stem_stride not in (None, 1, 2):
        raise ConfigError(f"the stem stride is {spec.stem_stride}", remedy="Use 1 or 2.")
    if not (math.isfinite(spec.width) and int(PLANES[0] * spec.width) >= 1):
        raise ConfigError(
            f"a width of {spec.width:g} leaves '{spec.name}' no channels",
            remedy=f"Use at least {1 / PLANES[0]:g}.",
        )
    return staged(monai_resnet(spec))
