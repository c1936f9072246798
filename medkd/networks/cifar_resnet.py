"""The ResNets of 6n + 2 layers for images of 32 pixels (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, average_pool, sequence

_DEPTHS = {f"cifar-resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
NAMES = tuple(_DEPTHS)
_CHANNELS = (16, 32, 64)


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights ("option A" of the paper)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.added:
            # The channels that are new begin as zeros.
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return F.relu(shortcut + residual)


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    blocks = (_DEPTHS[spec.name] - 2) // 6
    channels_in, stages = _CHANNELS[0], []
    for channels in _CHANNELS:
        stride = 1 if channels == channels_in else 2
        first = _Block(channels_in, channels, stride)
        others = [_Block(channels, channels, 1) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(first, *others))
        channels_in = channels
    network = StagedNetwork(
        adapter=adapter(),
        stem=sequence(
            conv=nn.Conv2d(3, _CHANNELS[0], 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(_CHANNELS[0]),
            relu=nn.ReLU(),
        ),
        stages=stages,
        pool=average_pool(),
        classifier=nn.Linear(_CHANNELS[-1], spec.classes),
        stage_channels=_CHANNELS,
        pooled_channels=_CHANNELS[-1],
    )
    draw_weights(network)
    return network
