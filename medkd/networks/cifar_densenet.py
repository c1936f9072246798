"""DenseNets of 40 layers, growing by 12, for images of 32 pixels (arXiv 1608.06993, section 3).

densenet-40-12 is the plain network of 1.0 M weights. densenet-bc-40-12, with bottlenecks and
compression, has 0.18 M; papers on online distillation that follow the code of OKDDip (arXiv
1912.00350) report this one under the name of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medkd.networks.cifar import adapter, draw_weights
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork, sequence

_GROWTH = 12
_BLOCKS = 3


@dataclass(frozen=True)
class _Form:
    """The two forms of the paper; both have 36 convolutions in blocks, and four outside."""

    stem_channels: int
    layers: int  # in each block
    bottleneck: int  # channels before the 3 x 3 convolution; 0: no bottleneck
    compression: float  # share of the channels that a transition keeps


_FORMS = {
    "densenet-40-12": _Form(stem_channels=16, layers=12, bottleneck=0, compression=1.0),
    "densenet-bc-40-12": _Form(
        stem_channels=2 * _GROWTH, layers=6, bottleneck=4 * _GROWTH, compression=0.5
    ),
}
NAMES = tuple(_FORMS)


class _Layer(nn.Module):
    """Adds the channels that its convolutions give to those it was given."""

    def __init__(self, channels_in: int, bottleneck: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        if bottleneck:
            modules += [
                nn.BatchNorm2d(channels_in),
                nn.ReLU(),
                nn.Conv2d(channels_in, bottleneck, 1, bias=False),
            ]
            channels_in = bottleneck
        modules += [
            nn.BatchNorm2d(channels_in),
            nn.ReLU(),
            nn.Conv2d(channels_in, _GROWTH, 3, padding=1, bias=False),
        ]
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.layers(x)), dim=1)


def _transition(channels_in: int, channels: int) -> nn.Sequential:
    return sequence(
        norm=nn.BatchNorm2d(channels_in),
        relu=nn.ReLU(),
        conv=nn.Conv2d(channels_in, channels, 1, bias=False),
        average=nn.AvgPool2d(2),
    )


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec. A transition opens the stage that it leads to."""
    form = _FORMS[spec.name]
    channels, stages, stage_channels = form.stem_channels, [], []
    for index in range(_BLOCKS):
        modules: list[nn.Module] = []
        if index:
            kept = int(channels * form.compression)
            modules.append(_transition(channels, kept))
            channels = kept
        for _ in range(form.layers):
            modules.append(_Layer(channels, form.bottleneck))
            channels += _GROWTH
        stages.append(nn.Sequential(*modules))
        stage_channels.append(channels)
    network = StagedNetwork(
        adapter=adapter(),
        stem=nn.Conv2d(3, form.stem_channels, 3, padding=1, bias=False),
        stages=stages,
        pool=sequence(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
        ),
        classifier=nn.Linear(channels, spec.classes),
        stage_channels=stage_channels,
        pooled_channels=channels,
    )
    draw_weights(network)
    return network
