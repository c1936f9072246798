"""What the networks for images of 32 pixels share."""

from __future__ import annotations

import math

from torch import nn

from medkd.networks.staged import InputAdapter

INPUT_PX = 32

# Of the training images of CIFAR-10, for RGB in [0, 1].
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


def adapter() -> InputAdapter:
    """Normalises as is usual for CIFAR; takes images of any size."""
    return InputAdapter(_MEAN, _STD)


def draw_weights(network: nn.Module) -> None:
    """Draw a convolution's weights with a variance of 2 / fan-out (arXiv 1502.01852).

    Norms begin as the identity and the classifier without a bias.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Counted by hand: torch's own function overlooks groups, and a depthwise convolution
            # would begin near zero.
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
