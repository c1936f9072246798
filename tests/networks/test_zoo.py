"""Every network of the zoo, its input and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.errors import ConfigError
from medkd.networks.zoo import NETWORK_NAMES, build_network, count_parameters


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_logits_have_one_column_per_class(name: str) -> None:
    network = build_network(name, classes=3).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_the_resnet_stem_halves_the_image() -> None:
    network = build_network("resnet18", classes=2).network
    assert network.conv1.stride == (2, 2)
    sizes = {}
    network.layer4.register_forward_hook(lambda _m, _i, out: sizes.update(layer4=out.shape))
    network.eval()(torch.rand(1, 3, 224, 224))
    assert sizes["layer4"] == (1, 512, 7, 7)


def test_parameters_of_resnet18() -> None:
    # The published ResNet-18 has 11,689,512 parameters with 1,000 classes; with 2 classes the last
    # layer has 998 outputs fewer, of 512 weights and a bias each.
    assert count_parameters(build_network("resnet18", classes=2)) == 11_689_512 - 513 * 998


def test_width_scales_the_channels() -> None:
    network = build_network("resnet10", classes=2, width=0.25)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].out_channels == 16
    assert network.network.fc.in_features == 128


def test_the_network_normalises_its_own_input() -> None:
    network = build_network("resnet10", classes=2, width=0.25)
    seen = {}
    network.network.register_forward_pre_hook(lambda _m, args: seen.update(images=args[0]))
    network.eval()(torch.full((1, 3, 64, 64), 0.5))
    # (0.5 - mean) / std of ImageNet, by hand
    expected = [0.0655, 0.1964, 0.4178]
    assert seen["images"][0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'resnet19'. Did you mean 'resnet1"):
        build_network("resnet19", classes=2)
    with pytest.raises(ConfigError, match="'densenet121' has no width factor"):
        build_network("densenet121", classes=2, width=0.5)
