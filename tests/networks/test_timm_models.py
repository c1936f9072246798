"""Networks of timm, by an untrained module of timm's interface: timm itself needs torchvision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medkd.config import load_config
from medkd.errors import ConfigError
from medkd.networks.staged import StagedNetwork, WholeNetwork, tail, trunk
from medkd.networks.timm_models import PooledNetwork
from medkd.networks.zoo import build_network, configured_network, count_parameters, fresh_tail
from tests.networks.timm_stand_in import MEAN, MODELS, STD, Convolutional, Transformer


def images_and_normalised() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return images, (images - mean) / std


@pytest.mark.parametrize("name", ["vit_small", "vit_mean"])
@torch.no_grad()
def test_a_transformer_is_staged(fake_timm: list[Any], name: str) -> None:
    torch.manual_seed(0)
    original = MODELS[name](num_classes=3).eval()
    torch.manual_seed(0)
    network = build_network(f"timm:{name}", classes=3).eval()
    assert isinstance(network, StagedNetwork)
    images, normalised = images_and_normalised()
    torch.testing.assert_close(network(images), original(normalised), rtol=0, atol=0)
    assert count_parameters(network) == count_parameters(original)
    assert [len(stage) for stage in network.stages] == [2, 1, 1, 2]
    assert network.adapter.input_px == 32
    state = network.enter(images)
    assert network.as_map(state).shape == (2, 12, 4, 4)
    assert torch.equal(tail(network, -1)(trunk(network, -1)(images)), network(images))


@torch.no_grad()
def test_a_convolutional_network_is_whole_but_for_its_classifier(fake_timm: list[Any]) -> None:
    torch.manual_seed(0)
    original = Convolutional(3)
    torch.manual_seed(0)
    network = build_network("timm:convnet", classes=3)
    assert isinstance(network, WholeNetwork)
    assert isinstance(network, PooledNetwork)
    assert not network.has_stages
    images, normalised = images_and_normalised()
    assert torch.equal(network(images), original(normalised))
    logits, pooled = network.logits_and_pooled(images)
    assert torch.equal(logits, network(images))
    assert torch.equal(original.classifier(pooled), logits)
    assert pooled.shape == (2, network.pooled_channels)
    assert network.classes == 3
    assert network.classifier.weight.shape == (3, network.pooled_channels)
    assert network.adapter.input_px is None  # it takes any size


def test_pretrained_weights_are_asked_for_and_not_in_a_fresh_tail(fake_timm: list[Any]) -> None:
    network = build_network("timm:hf-hub:someone/vit", classes=2, pretrained=True)
    fresh_tail(network, -1)
    name = "hf-hub:someone/vit"
    assert fake_timm == [(name, True, 2), (name, False, 2)]


def test_the_example_of_a_foundation_model_as_teacher(
    fake_timm: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "foundation_teacher.yaml")
    chosen = config.train.teacher
    monkeypatch.setitem(MODELS, chosen.network.removeprefix("timm:"), Transformer)
    network = configured_network(chosen, classes=2, where="train.teacher")
    assert isinstance(network, StagedNetwork)  # as the method's bridge needs it
    assert config.train.method == "sokd"
    assert fake_timm[0][1]  # pretrained


def test_the_weights_can_be_kept_as_safetensors(fake_timm: list[Any]) -> None:
    # safetensors refuses a tensor that stands under two names.
    for name in ("vit_small", "convnet"):
        state = build_network(f"timm:{name}", classes=2).state_dict()
        assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_what_is_refused(fake_timm: list[Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"timm knows no network 'vit_smal'. Did you mean 'timm:v"
    ):
        build_network("timm:vit_smal", classes=2)
    with pytest.raises(ConfigError, match=r"timm cannot make 'hf-hub:a/b': RuntimeError: 401: acc"):
        build_network("timm:hf-hub:a/b", classes=2, pretrained=True)
    with pytest.raises(ConfigError, match=r"'timm:convnet' has no width factor"):
        build_network("timm:convnet", classes=2, width=0.5)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"'timm:resnet18' needs timm.*pip install 'medkd\[timm\]'"
    ):
        build_network("timm:resnet18", classes=2)
