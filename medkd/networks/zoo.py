"""The networks that a configuration can name: MONAI's, in two dimensions."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from monai.networks.nets import DenseNet121, EfficientNetBN, ResNet
from torch import Tensor, nn

from medkd.errors import ConfigError

# Of ImageNet, for RGB in [0, 1]; a later pretrained network then fits without a change of input.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class TileClassifier(nn.Module):
    """A network together with the normalisation of its input.

    Args:
        network: takes normalised images, float N x 3 x H x W; gives logits, float N x classes.

    Every network of a cohort takes the same RGB images in [0, 1] and normalises them itself, so
    that what ships needs no preprocessing but a division by 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes, of RGB images in [0, 1], float N x 3 x H x W."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def _resnet(block: str, layers: list[int], *, classes: int, width: float = 1.0) -> nn.Module:
    return ResNet(
        block=block,
        layers=layers,
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=3,
        # MONAI's default stride of 1 keeps the stem at full size: four times the arithmetic.
        conv1_t_stride=2,
        # A bias before a batch norm is cancelled by it.
        bias_downsample=False,
        widen_factor=width,
        num_classes=classes,
    )


def _densenet121(*, classes: int) -> nn.Module:
    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=classes)


def _efficientnet_b0(*, classes: int) -> nn.Module:
    network = EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3, num_classes=classes
    )
    # The memory-efficient swish is a custom autograd function, which ONNX cannot hold.
    network.set_swish(memory_efficient=False)
    return network


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": partial(_resnet, "basic", [1, 1, 1, 1]),
    "resnet18": partial(_resnet, "basic", [2, 2, 2, 2]),
    "resnet34": partial(_resnet, "basic", [3, 4, 6, 3]),
    "resnet50": partial(_resnet, "bottleneck", [3, 4, 6, 3]),
    "densenet121": _densenet121,
    "efficientnet-b0": _efficientnet_b0,
}

NETWORK_NAMES = tuple(_BUILDERS)


def build_network(name: str, *, classes: int, width: float = 1.0) -> TileClassifier:
    """Build an untrained network.

    Args:
        name: one of :data:`NETWORK_NAMES`.
        classes: number of logits.
        width: factor on the number of channels; ResNets only.

    Raises:
        ConfigError: no such network, or a width for a network that has none.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name, NETWORK_NAMES, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(NETWORK_NAMES)}."
        raise ConfigError(f"unknown network '{name}'", where="train", remedy=remedy)
    if width != 1.0 and not name.startswith("resnet"):
        raise ConfigError(
            f"'{name}' has no width factor", where="train", remedy="Leave 'width' out, or use 1.0."
        )
    options = {"width": width} if name.startswith("resnet") else {}
    return TileClassifier(_BUILDERS[name](classes=classes, **options))


def count_parameters(network: nn.Module) -> int:
    """Number of trained and frozen parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
