"""MONAI's networks, regrouped: the same numbers, in parts that fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medkd.networks import densenet, efficientnet, resnet, se_resnet, vit
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import StagedNetwork
from medkd.networks.zoo import build_network, count_parameters
from tests.networks.conftest import settle, states_of

_CASES: list[tuple[Any, Callable[[NetworkSpec], nn.Module], NetworkSpec]] = [
    (resnet, resnet.monai_resnet, NetworkSpec("resnet10", 3, width=0.25)),
    (resnet, resnet.monai_resnet, NetworkSpec("resnet18", 3, stem_stride=1, max_pool=False)),
    (resnet, resnet.monai_resnet, NetworkSpec("resnet50", 3)),
    (se_resnet, se_resnet.monai_se_resnet, NetworkSpec("seresnet50", 3)),
    (densenet, densenet.monai_densenet, NetworkSpec("densenet121", 3)),
    (densenet, densenet.monai_densenet, NetworkSpec("densenet169", 3)),
    (efficientnet, efficientnet.monai_efficientnet, NetworkSpec("efficientnet-b0", 3)),
    (efficientnet, efficientnet.monai_efficientnet, NetworkSpec("efficientnet-b3", 3)),
    (vit, vit.monai_vit, NetworkSpec("vit-tiny", 3)),
]


@pytest.mark.parametrize(("family", "monai", "spec"), _CASES, ids=lambda x: getattr(x, "name", ""))
@torch.no_grad()
def test_the_numbers_are_monais_own(
    family: Any, monai: Callable[[NetworkSpec], nn.Module], spec: NetworkSpec
) -> None:
    torch.manual_seed(0)
    original = monai(spec)
    px = 224 if family is vit else 64
    images = torch.rand(2, 3, px, px)
    settle(original, images)
    staged = family.staged(original).eval()
    expected = original(staged.adapter(images))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert expected.abs().max() > 1e-3
    assert torch.equal(staged(images), expected)
    assert count_parameters(staged) == count_parameters(original)


# What each network's authors give for 1,000 classes at 224 pixels: parameters in millions, and the
# map after each stage. Maps: arXiv 1512.03385, 1608.06993, 1905.11946, 1709.01507, 2012.12877.
# Parameters: the authors' code, where a paper rounds more.
_PUBLISHED = [
    ("resnet18", 11.69, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    ("resnet34", 21.80, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    ("resnet50", 25.56, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ("resnet101", 44.55, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ("resnet152", 60.19, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ("seresnet50", 28.09, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ("densenet121", 7.98, [(256, 56), (512, 28), (1024, 14), (1024, 7)]),
    ("densenet169", 14.15, [(256, 56), (512, 28), (1280, 14), (1664, 7)]),
    ("densenet201", 20.01, [(256, 56), (512, 28), (1792, 14), (1920, 7)]),
    ("efficientnet-b0", 5.29, [(16, 112), (24, 56), (40, 28), (112, 14), (320, 7)]),
    ("efficientnet-b1", 7.79, [(16, 112), (24, 56), (40, 28), (112, 14), (320, 7)]),
    ("efficientnet-b2", 9.11, [(16, 112), (24, 56), (48, 28), (120, 14), (352, 7)]),
    ("efficientnet-b3", 12.23, [(24, 112), (32, 56), (48, 28), (136, 14), (384, 7)]),
    ("vit-tiny", 5.72, [(192, 14)] * 4),
    ("vit-small", 22.05, [(384, 14)] * 4),
    ("vit-base", 86.57, [(768, 14)] * 4),
]


@pytest.mark.parametrize(("name", "millions", "maps"), _PUBLISHED)
def test_published_sizes(name: str, millions: float, maps: list[tuple[int, int]]) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=1000).eval()
        assert isinstance(network, StagedNetwork)
        states = [network.enter(torch.zeros(2, 3, 224, 224))]
        for stage in network.stages:
            states.append(stage(states[-1]))
        shapes = [tuple(network.as_map(state).shape) for state in states[1:]]
        pooled = network.pool(states[-1])
    # MONAI's ViT has no position for the class token: 0.0002 to 0.0008 M fewer.
    assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.006)
    assert shapes == [(2, channels, side, side) for channels, side in maps]
    assert network.stage_channels == tuple(channels for channels, _ in maps)
    assert pooled.shape == (2, network.pooled_channels)


@pytest.mark.parametrize(
    "name", ["resnet10", "resnet50", "seresnet50", "densenet121", "efficientnet-b0", "vit-tiny"]
)
@torch.no_grad()
def test_the_parts_make_the_whole(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    network = build_network(name, classes=3)
    assert isinstance(network, StagedNetwork)
    settle(network, images)
    states = states_of(network, images)
    logits = network.classifier(network.pool(states[-1]))
    assert logits.shape == (2, 3)
    assert torch.equal(logits, network(images))


def test_a_vit_state_is_tokens_and_its_map_keeps_their_places() -> None:
    tokens = torch.arange(1 + 2 * 2, dtype=torch.float32).view(1, 5, 1)
    assert vit.TokensToMap(prefix=1)(tokens).tolist() == [[[[1, 2], [3, 4]]]]


def test_stem_of_a_resnet() -> None:
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        sides = {
            (stride, pool): build_network(
                "resnet10", classes=2, width=0.25, stem_stride=stride, max_pool=pool
            )
            .enter(images)  # type: ignore[union-attr]
            .shape[-1]
            for stride, pool in ((None, None), (2, True), (2, False), (1, True), (1, False))
        }
    assert sides == {(None, None): 16, (2, True): 16, (2, False): 32, (1, True): 32, (1, False): 64}
