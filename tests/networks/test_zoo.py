"""Every network of the zoo: what it gives, how it is exported, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from medkd.errors import ConfigError
from medkd.networks.zoo import FAMILIES, NETWORK_NAMES, Family, build_network, count_parameters
from medkd.training.export import export_onnx
from tests.networks.conftest import settle


def small_network(family: Family, classes: int) -> nn.Module:
    """One network of a family that is quick to trace."""
    if family.title == "ResNet (MONAI)":
        return build_network("resnet10", classes=classes, width=0.25)
    name = {"Bottlenecks for CIFAR": "wrn-20-8", "DenseNet for CIFAR": "densenet-bc-40-12"}
    return build_network(name.get(family.title, family.names[0]), classes=classes)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_logits_have_one_column_per_class(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=3).eval()
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_parameters_of_resnet18() -> None:
    # The published ResNet-18 has 11,689,512 parameters with 1,000 classes; with 2 classes the last
    # layer has 998 outputs fewer, of 512 weights and a bias each.
    assert count_parameters(build_network("resnet18", classes=2)) == 11_689_512 - 513 * 998


def test_width_scales_the_channels() -> None:
    network = build_network("resnet10", classes=2, width=0.25)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].out_channels == 16
    assert network.pooled_channels == 128


# Exporting these takes as long as all the others together; they are in 'make test-slow'.
LARGE = (
    "DenseNet (MONAI)",
    "EfficientNet (MONAI)",
    "SE-ResNet (MONAI)",
    "Vision transformer (MONAI)",
)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(one, id=one.title, marks=pytest.mark.slow if one.title in LARGE else ())
        for one in FAMILIES
    ],
)
def test_the_exported_network_gives_the_same_probabilities(family: Family) -> None:
    torch.manual_seed(0)
    px = min(family.input_px, 64)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (3, px, px, 3), dtype=np.uint8)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    network = small_network(family, classes=3)
    settle(network, images)
    with torch.no_grad():
        expected = torch.softmax(network(images), dim=1).numpy()
    session = onnxruntime.InferenceSession(export_onnx(network, px))
    (probabilities,) = session.run(["probabilities"], {"tiles": tiles})
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
@torch.no_grad()
def test_the_network_is_one_graph(family: Family) -> None:
    px = min(family.input_px, 64)
    network = small_network(family, classes=3).eval()
    images = torch.rand(2, 3, px, px)
    # All networks share one forward, and torch compiles one just a few times anew.
    torch.compiler.reset()
    # fullgraph refuses whatever torch.compile would have to run outside a graph.
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'resnet19'. Did you mean 'resnet1"):
        build_network("resnet19", classes=2)
    with pytest.raises(ConfigError, match=r"train: unknown network 'u'. 'medkd networks' lists"):
        build_network("u", classes=2)
    with pytest.raises(ConfigError, match=r"'densenet121' has no width factor. Leave 'width' out"):
        build_network("densenet121", classes=2, width=0.5)
    with pytest.raises(ConfigError, match="'vit-tiny' has no choice of stem stride"):
        build_network("vit-tiny", classes=2, stem_stride=1)
    with pytest.raises(ConfigError, match="'densenet121' has no choice of max-pool"):
        build_network("densenet121", classes=2, max_pool=False)
    with pytest.raises(ConfigError, match="'resnet18' has no pretrained weights"):
        build_network("resnet18", classes=2, pretrained=True)
    with pytest.raises(ConfigError, match=r"the stem stride is 3. Use 1 or 2"):
        build_network("resnet10", classes=2, stem_stride=3)
    for width in (0.001, -1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"leaves 'resnet10' no channels. Use at least 0.01"):
            build_network("resnet10", classes=2, width=width)
    with pytest.raises(ConfigError, match=r"^train.students.1: unknown network"):
        build_network("u", classes=2, where="train.students.1")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_a_copy_is_a_network_of_its_own(family: Family) -> None:
    # Moving averages of a network begin as its copy.
    network = small_network(family, classes=3).eval()
    copied = copy.deepcopy(network)
    before = copied.state_dict()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(copied(images), network(images))
        for parameter in network.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, before[key]) for key, value in copied.state_dict().items())
    assert all(not bool((p == 7).all()) for p in copied.parameters() if p.numel() > 1)
