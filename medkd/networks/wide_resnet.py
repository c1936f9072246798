"""Wide residual networks of D layers, K times as wide (arXiv 1605.07146)."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import ConfigError
from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, sequence

# Those that papers on distillation use; any other wrn-D-K is built as well. What they call
# WRN-20-8 is in cifar_bottleneck.py.
NAMES = ("wrn-16-2", "wrn-40-1", "wrn-40-2", "wrn-28-10")
_PATTERN = re.compile(r"wrn-(\d+)-(\d+)")
_STEM_CHANNELS = 16
# The paper goes to 1,001 layers; beyond is a slip of the keyboard that would take all memory.
_MOST_LAYERS, _MOST_WIDTH = 1010, 64


class _Block(nn.Module):
    """Norm and activation come before each convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels_in != channels or stride != 1:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        # Where the shape changes, the shortcut too starts from what is activated.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        total: Tensor = shortcut + residual
        return total


def matches(name: str) -> bool:
    """Whether a name has the form wrn-D-K."""
    return _PATTERN.fullmatch(name) is not None


def _blocks_and_width(spec: NetworkSpec) -> tuple[int, int]:
    found = _PATTERN.fullmatch(spec.name)
    if found is None:
        raise ValueError(f"'{spec.name}' is not wrn-D-K")
    depth, width = int(found[1]), int(found[2])
    blocks, rest = divmod(depth - 4, 6)
    if rest or not 1 <= blocks <= (_MOST_LAYERS - 4) // 6 or not 1 <= width <= _MOST_WIDTH:
        raise ConfigError(
            f"'{spec.name}' cannot be built",
            remedy="In wrn-D-K, D is a multiple of 6 plus 4, such as 16, 28 or 40 (1,006 at most), "
            f"and K is from 1 to {_MOST_WIDTH}.",
        )
    return blocks, width


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec.

    Raises:
        ConfigError: there is no such depth or width.
    """
    blocks, width = _blocks_and_width(spec)
    stage_channels = [16 * width, 32 * width, 64 * width]
    channels_in, stages = _STEM_CHANNELS, []
    for index, channels in enumerate(stage_channels):
        first = _Block(channels_in, channels, 1 if index == 0 else 2)
        others = [_Block(channels, channels, 1) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(first, *others))
        channels_in = channels
    network = StagedNetwork(
        adapter=adapter(),
        stem=nn.Conv2d(3, _STEM_CHANNELS, 3, padding=1, bias=False),
        stages=stages,
        pool=sequence(
            norm=nn.BatchNorm2d(channels_in),
            relu=nn.ReLU(),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
        ),
        classifier=nn.Linear(channels_in, spec.classes),
        stage_channels=stage_channels,
        pooled_channels=channels_in,
    )
    draw_weights(network)
    return network
