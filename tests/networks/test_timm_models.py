"""Networks of timm, by an untrained module of timm's interface: timm itself needs torchvision."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.config import load_config
from medkd.errors import ConfigError
from medkd.networks.staged import StagedNetwork, WholeNetwork, tail, trunk
from medkd.networks.timm_models import PooledNetwork
from medkd.networks.zoo import build_network, configured_network, count_parameters, fresh_tail

_MEAN, _STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Transformer(nn.Module):
    """A vision transformer as timm lays it out, with tokens in front as registers are."""

    def __init__(self, num_classes: int, global_pool: str = "token") -> None:
        super().__init__()
        self.num_classes, self.embed_dim, self.num_features = num_classes, 12, 12
        self.num_prefix_tokens, self.global_pool = 3, global_pool
        self.patch_embed = nn.Conv2d(3, 12, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 3, 12))
        self.blocks = nn.Sequential(*(nn.Linear(12, 12) for _ in range(6)))
        self.norm = nn.LayerNorm(12)
        self.fc_norm = nn.LayerNorm(12) if global_pool == "avg" else nn.Identity()
        self.head_drop = nn.Dropout(0.0)
        self.head = nn.Linear(12, num_classes)
        self.pretrained_cfg = {"mean": _MEAN, "std": _STD, "input_size": (3, 32, 32)}

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.prefix.expand(len(images), -1, -1), patches), dim=1)
        return self.norm(self.blocks(tokens))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = tokens[:, 0] if self.global_pool == "token" else tokens[:, 3:].mean(1)
        pooled = self.head_drop(self.fc_norm(pooled))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class Convolutional(nn.Module):
    """A convolutional network as timm lays it out."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, 7, 9
        self.conv = nn.Conv2d(3, 7, 3, stride=2)
        self.hidden = nn.Linear(7, 9)
        self.classifier = nn.Linear(9, num_classes)
        self.pretrained_cfg = {"mean": _MEAN, "std": _STD, "input_size": (3, 32, 32)}

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.hidden(features.mean((2, 3)))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


_MODELS: dict[str, Any] = {
    "vit_small": Transformer,
    "vit_mean": lambda num_classes: Transformer(num_classes, "avg"),
    "convnet": Convolutional,
    "hf-hub:someone/vit": Transformer,
}


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, int]]:
    calls: list[tuple[str, bool, int]] = []

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        calls.append((name, pretrained, num_classes))
        if name not in _MODELS:
            raise RuntimeError("401: access to this model is restricted")
        return _MODELS[name](num_classes=num_classes)

    module = ModuleType("timm")
    names = [name for name in _MODELS if ":" not in name]
    module.create_model = create_model  # type: ignore[attr-defined]
    module.list_models = lambda: names  # type: ignore[attr-defined]
    module.is_model = lambda name: name in names  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls


def images_and_normalised() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return images, (images - mean) / std


@pytest.mark.parametrize("name", ["vit_small", "vit_mean"])
@torch.no_grad()
def test_a_transformer_is_staged(fake_timm: list[Any], name: str) -> None:
    torch.manual_seed(0)
    original = _MODELS[name](num_classes=3).eval()
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
    monkeypatch.setitem(_MODELS, chosen.network.removeprefix("timm:"), Transformer)
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
