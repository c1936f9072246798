"""MONAI's EfficientNets (arXiv 1905.11946) in two dimensions."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import EfficientNet, EfficientNetBN
from torch import nn

from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork, sequence

NAMES = tuple(f"efficientnet-b{scale}" for scale in range(8))

# The seven groups of blocks, by resolution: a stage is what lies between two halvings.
_GROUPS = ((0,), (1,), (2,), (3, 4), (5, 6))


def monai_efficientnet(spec: NetworkSpec) -> EfficientNetBN:
    """MONAI's own network."""
    network = EfficientNetBN(
        spec.name, pretrained=False, spatial_dims=2, in_channels=3, num_classes=spec.classes
    )
    # The memory-efficient swish is a custom autograd function, which ONNX cannot hold.
    network.set_swish(memory_efficient=False)
    return network


def staged(network: EfficientNet) -> StagedNetwork:
    """The parts of MONAI's network."""
    groups = [list(group.children()) for group in network._blocks.children()]
    stages: list[Any] = [
        nn.Sequential(*(block for index in indices for block in groups[index]))
        for indices in _GROUPS
    ]
    return StagedNetwork(
        adapter=InputAdapter(),
        stem=sequence(
            padding=network._conv_stem_padding,
            conv=network._conv_stem,
            norm=network._bn0,
            swish=network._swish,
        ),
        stages=stages,
        pool=sequence(
            padding=network._conv_head_padding,
            conv=network._conv_head,
            norm=network._bn1,
            swish=network._swish,
            average=network._avg_pooling,
            flatten=nn.Flatten(1),
        ),
        classifier=sequence(dropout=network._dropout, linear=network._fc),
        stage_channels=[stage[-1].out_channels for stage in stages],
        pooled_channels=network._fc.in_features,
    )


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    return staged(monai_efficientnet(spec))
