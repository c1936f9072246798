"""MobileNet, version 1 (arXiv 1704.04861), for images of 32 pixels.

The stem keeps the resolution, as else a map of one pixel would be left; the paper on deep mutual
learning (arXiv 1706.00384), which uses this network on CIFAR-100, does not say what it did there.
"""

from __future__ import annotations

from torch import nn

from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, average_pool

NAMES = ("mobilenet-cifar",)
_STEM_CHANNELS = 32
# Channels after each separable convolution; each stage but the first halves the resolution.
_STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


def _separable(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU(),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    channels_in, stages = _STEM_CHANNELS, []
    for index, widths in enumerate(_STAGES):
        modules: list[nn.Module] = []
        for place, channels in enumerate(widths):
            modules += _separable(channels_in, channels, 2 if index and place == 0 else 1)
            channels_in = channels
        stages.append(nn.Sequential(*modules))
    network = StagedNetwork(
        adapter=adapter(),
        stem=nn.Sequential(
            nn.Conv2d(3, _STEM_CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(_STEM_CHANNELS),
            nn.ReLU(),
        ),
        stages=stages,
        pool=average_pool(),
        classifier=nn.Linear(channels_in, spec.classes),
        stage_channels=[widths[-1] for widths in _STAGES],
        pooled_channels=channels_in,
    )
    draw_weights(network)
    return network
