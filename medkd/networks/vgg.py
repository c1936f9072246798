"""VGG-16 (arXiv 1409.1556) with batch norms, for images of 32 pixels.

In place of the paper's three dense layers, which hold nine tenths of its weights, there is one, as
is usual for CIFAR.
"""

from __future__ import annotations

from torch import nn

from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, sequence

NAMES = ("vgg16-bn-cifar",)
# Channels of the convolutions between two max-pools.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _convolution(channels_in: int, channels: int) -> list[nn.Module]:
    # A bias before a batch norm is cancelled by it.
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec. A max-pool opens the stage that it leads to."""
    first = _STAGES[0][0]
    channels_in, stages = first, []
    for index, widths in enumerate(_STAGES):
        # The very first convolution is the stem.
        modules: list[nn.Module] = [] if index == 0 else [nn.MaxPool2d(2)]
        for channels in widths if index else widths[1:]:
            modules += _convolution(channels_in, channels)
            channels_in = channels
        stages.append(nn.Sequential(*modules))
    network = StagedNetwork(
        adapter=adapter(),
        stem=nn.Sequential(*_convolution(3, first)),
        stages=stages,
        pool=sequence(
            # Rounding up leaves a pixel of the smallest images.
            maximum=nn.MaxPool2d(2, ceil_mode=True),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
        ),
        classifier=nn.Linear(channels_in, spec.classes),
        stage_channels=[widths[-1] for widths in _STAGES],
        pooled_channels=channels_in,
    )
    draw_weights(network)
    return network
