"""Residual networks of bottleneck blocks for images of 32 pixels.

The code of OKDDip (arXiv 1912.00350), which later papers on online distillation follow, calls them
ResNet-110 and WRN-20-8; they are other networks than the ResNet-110 of arXiv 1512.03385, and there
is no wide ResNet of 20 layers in the sense of arXiv 1605.07146.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, average_pool, sequence


@dataclass(frozen=True)
class _Form:
    blocks: int  # in each stage, of three convolutions each
    width: int  # factor on the inner channels of a block


_FORMS = {
    "cifar-resnet110-bottleneck": _Form(blocks=12, width=1),
    "wrn-20-8": _Form(blocks=2, width=8),
}
NAMES = tuple(_FORMS)
_PLANES = (16, 32, 64)
_EXPANSION = 4


class _Block(nn.Module):
    """Three convolutions, and a shortcut with weights where the shape changes."""

    def __init__(self, channels_in: int, inner: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels or stride != 1:
            self.shortcut = sequence(
                conv=nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                norm=nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.norm2(self.conv2(inner)))
        return F.relu(self.shortcut(x) + self.norm3(self.conv3(inner)))


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    form = _FORMS[spec.name]
    channels_in, stages = _PLANES[0], []
    stage_channels = [_EXPANSION * planes for planes in _PLANES]
    for index, (planes, channels) in enumerate(zip(_PLANES, stage_channels, strict=True)):
        inner = planes * form.width
        first = _Block(channels_in, inner, channels, 2 if index else 1)
        others = [_Block(channels, inner, channels, 1) for _ in range(form.blocks - 1)]
        stages.append(nn.Sequential(first, *others))
        channels_in = channels
    network = StagedNetwork(
        adapter=adapter(),
        stem=sequence(
            conv=nn.Conv2d(3, _PLANES[0], 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(_PLANES[0]),
            relu=nn.ReLU(),
        ),
        stages=stages,
        pool=average_pool(),
        classifier=nn.Linear(channels_in, spec.classes),
        stage_channels=stage_channels,
        pooled_channels=channels_in,
    )
    draw_weights(network)
    return network
