"""Networks of which the head alone is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medkd.config import NetworkConfig
from medkd.config.load import load_config
from medkd.errors import ConfigError
from medkd.networks.heads import freeze_backbone, hold_backbone, is_head_only, train_head_only
from medkd.networks.zoo import build_network, configured_network

OWN = "tests.networks.own_networks"


def probe(name: str, **options: Any) -> nn.Module:
    config = NetworkConfig(network=name, train_only="head", **options)
    return configured_network(config, classes=3, where="train.teacher")


def names(network: nn.Module, *, learning: bool) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad == learning}


def test_what_learns_is_the_classifier(fake_timm: list[Any]) -> None:
    """Of a network with stages, of timm's without, and of the user's own."""
    expected = {
        "timm:vit_small": {"classifier.linear.weight", "classifier.linear.bias"},
        "timm:convnet": {"network.classifier.weight", "network.classifier.bias"},
        f"{OWN}:Staged": {"classifier.weight", "classifier.bias"},
    }
    for name, learning in expected.items():
        more = {"pretrained": True} if name.startswith("timm:") else {}
        network = probe(name, **more)
        assert is_head_only(network)
        # Marked, and not yet frozen: a bridge is a fresh copy of its kind and learns whole.
        assert names(network, learning=False) == set()
        freeze_backbone(network)
        assert names(network, learning=True) == learning
        assert names(network, learning=False)


def test_the_backbone_stays_in_evaluation_mode_and_the_head_as_it_was() -> None:
    network = build_network("resnet10", classes=3, width=0.125)
    train_head_only(network, "train.teacher")
    network.classifier = nn.Sequential(nn.Dropout(0.5), network.classifier)
    for training in (True, False):
        network.train(training)
        hold_backbone(network)
        head = list(network.classifier.modules())
        assert {part.training for part in head} == {training}
        others = [part for part in network.modules() if part not in head]
        assert {part.training for part in others} == {False}


def test_others_are_left_alone() -> None:
    network = build_network("resnet10", classes=3, width=0.125).train()
    assert not is_head_only(network)
    freeze_backbone(network)
    hold_backbone(network)
    assert names(network, learning=False) == set()
    assert {part.training for part in network.modules()} == {True}


def test_a_network_without_a_known_head() -> None:
    with pytest.raises(ConfigError) as error:
        probe(f"{OWN}:Whole")
    assert str(error.value) == (
        f"train.teacher: the network '{OWN}:Whole' has no classifier that could be trained alone. "
        "Leave 'train_only' out, or give your module the parts stem, stages, pool and classifier."
    )


def test_a_head_without_weights(fake_timm: list[Any]) -> None:
    network = build_network("timm:convnet", classes=3)
    network.network.classifier = nn.Identity()
    with pytest.raises(ConfigError, match="'timm:convnet' has no classifier that could be trained"):
        train_head_only(network, "train.teacher")


@pytest.mark.parametrize("network", ["resnet18", "timm:resnet18"])
def test_a_probe_of_nothing_is_refused(network: str, tmp_path) -> None:
    path = tmp_path / "medkd.yaml"
    path.write_text(f"train:\n  teacher: {{network: {network}, train_only: head}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(
        f"{path}:2: 'train.teacher': 'train_only: head' needs 'pretrained: true' or 'weights': a "
        "backbone that nobody trained has nothing to tell."
    )


def test_a_probe_computes_what_the_network_does() -> None:
    torch.manual_seed(0)
    plain = build_network(f"{OWN}:Staged", classes=3)
    torch.manual_seed(0)
    network = probe(f"{OWN}:Staged")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(images), plain(images))
