"""MONAI's SE-ResNets (arXiv 1709.01507) in two dimensions."""

from __future__ import annotations

from collections.abc import Callable

from monai.networks.nets import SENet, SEResNet50, SEResNet101, SEResNet152

from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork, average_pool

_DEPTHS: dict[str, Callable[..., SENet]] = {
    "seresnet50": SEResNet50,
    "seresnet101": SEResNet101,
    "seresnet152": SEResNet152,
}
NAMES = tuple(_DEPTHS)


def monai_se_resnet(spec: NetworkSpec) -> SENet:
    """MONAI's own network."""
    return _DEPTHS[spec.name](spatial_dims=2, in_channels=3, num_classes=spec.classes)


def staged(network: SENet) -> StagedNetwork:
    """The parts of MONAI's network."""
    return StagedNetwork(
        adapter=InputAdapter(),
        stem=network.layer0,
        stages=[network.layer1, network.layer2, network.layer3, network.layer4],
        pool=average_pool(),
        classifier=network.last_linear,
        stage_channels=(256, 512, 1024, 2048),
        pooled_channels=network.last_linear.in_features,
    )


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    return staged(monai_se_resnet(spec))
