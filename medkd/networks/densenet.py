"""MONAI's DenseNets (arXiv 1608.06993) in two dimensions."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DenseNet, DenseNet121, DenseNet169, DenseNet201, DenseNet264
from torch import nn

from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork, sequence

_DEPTHS: dict[str, type[DenseNet]] = {
    "densenet121": DenseNet121,
    "densenet169": DenseNet169,
    "densenet201": DenseNet201,
    "densenet264": DenseNet264,
}
NAMES = tuple(_DEPTHS)


def monai_densenet(spec: NetworkSpec) -> DenseNet:
    """MONAI's own network."""
    return _DEPTHS[spec.name](spatial_dims=2, in_channels=3, out_channels=spec.classes)


def staged(network: DenseNet) -> StagedNetwork:
    """The parts of MONAI's network.

    A transition opens the stage that it leads to, as the stride does in a ResNet; so what follows
    a stage is all that its dense block gathered.
    """
    parts: dict[str, Any] = dict(network.features.named_children())
    stages: list[nn.Module] = [sequence(block=parts["denseblock1"])]
    stages += [
        sequence(transition=parts[f"transition{i}"], block=parts[f"denseblock{i + 1}"])
        for i in (1, 2, 3)
    ]
    head: dict[str, Any] = dict(network.class_layers.named_children())
    norms = [parts[f"transition{i}"].norm for i in (1, 2, 3)] + [parts["norm5"]]
    return StagedNetwork(
        adapter=InputAdapter(),
        stem=sequence(**{key: parts[key] for key in ("conv0", "norm0", "relu0", "pool0")}),
        stages=stages,
        pool=sequence(
            norm=parts["norm5"], relu=head["relu"], average=head["pool"], flatten=head["flatten"]
        ),
        classifier=head["out"],
        # What follows a dense block normalises all its channels.
        stage_channels=[norm.num_features for norm in norms],
        pooled_channels=head["out"].in_features,
    )


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    return staged(monai_densenet(spec))
