"""Networks of the user's own, by import path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.errors import ConfigError
from medkd.networks.staged import StagedNetwork, WholeNetwork, tail, trunk
from medkd.networks.zoo import build_network, fresh_tail

_HERE = "tests.networks.own_networks"


@torch.no_grad()
def test_a_module_without_parts_is_whole() -> None:
    network = build_network(f"{_HERE}:Whole", classes=3)
    assert isinstance(network, WholeNetwork)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(images), network.network(images))  # not normalised, as it asks
    assert network(torch.rand(2, 3, 40, 40)).shape == (2, 3)  # brought to 16 pixels


@torch.no_grad()
def test_a_module_with_parts_is_staged() -> None:
    network = build_network(f"{_HERE}:Staged", classes=3)
    assert isinstance(network, StagedNetwork)
    assert network.stage_channels == (6, 8)
    assert network.pooled_channels == 8
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(tail(network, 1)(trunk(network, 1)(images)), network(images))
    assert fresh_tail(network, 1)(trunk(network, 1)(images)).shape == (2, 3)
    assert network.training


@torch.no_grad()
def test_a_module_with_parts_may_have_a_forward_that_agrees() -> None:
    network = build_network(f"{_HERE}:WithForward", classes=3)
    assert isinstance(network, StagedNetwork)


@torch.no_grad()
def test_a_state_of_tokens_is_mapped_by_the_module() -> None:
    network = build_network(f"{_HERE}:StagedTokens", classes=3)
    assert isinstance(network, StagedNetwork)
    assert network.stage_channels == (8,)
    assert network.as_map(network.enter(torch.rand(2, 3, 16, 16))).shape == (2, 8, 4, 4)
    assert not [name for name in network.state_dict() if "to_map" in name]


def test_a_network_of_the_zoo_may_be_wrapped() -> None:
    network = build_network(f"{__name__}:small_resnet", classes=3)
    assert isinstance(network, StagedNetwork)
    assert network.spec is not None
    assert network.spec.name.endswith(":small_resnet")


def small_resnet(classes: int) -> nn.Module:
    return build_network("resnet10", classes=classes, width=0.125)


def test_the_trial_draws_nothing_from_the_experiments_generator() -> None:
    def drawn(trials: int) -> torch.Tensor:
        torch.manual_seed(0)
        for _ in range(trials):
            build_network(f"{__name__}:no_weights", classes=3)
        return torch.rand(3)

    assert torch.equal(drawn(2), drawn(0))


def no_weights(classes: int) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    pool.input_px = 8  # type: ignore[assignment]
    return pool  # three channels, so three classes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at_all:Network", r"'nowhere.at_all' cannot be imported .*PYTHONPATH"),
        (":Network", r"'' cannot be imported .*Write it as package.module:NAME"),
        (f"{_HERE}:Nothing", rf"the module '{_HERE}' has no 'Nothing'. Name a class"),
        (f"{_HERE}:", rf"the module '{_HERE}' has no ''"),
        (f"{_HERE}:NOT_CALLABLE", r"NOT_CALLABLE' cannot be called"),
        (f"{_HERE}:other_arguments", r"called with classes=3, failed with TypeError: .*unexpected"),
        (f"{_HERE}:not_a_module", r"gives a Tensor. It must give a torch.nn.Module"),
        (f"{_HERE}:whole_wrong_classes", r"its logits of .* has the shape 2 x 4, not 2 x 3"),
        (f"{_HERE}:fixed_size", r"on images of 2 x 3 x 224 x 224 failed with RuntimeError: mat1"),
        (f"{_HERE}:bad_mean", r"the attributes input_mean, input_std and input_px of .* failed"),
        (f"{_HERE}:no_stages", r"the 'stages' of .* are no list of modules"),
        (f"{_HERE}:failing_stem", r"the 'stem' of .* failed with RuntimeError: no such thing"),
        (f"{_HERE}:failing_stage", r"stage 1 of .* on a state of 2 x 4 x 16 x 16 failed with Runt"),
        (f"{_HERE}:flat_stage", r"stage 0 of .* has the shape 2 x 1024, not 2 x C x H x W"),
        (f"{_HERE}:unpooled", r"the 'pool' of .* has the shape 2 x 8 x 5 x 5, not 2 x C"),
        (f"{_HERE}:failing_classifier", r"the 'classifier' of .* on 2 x 8 failed with RuntimeErr"),
        (f"{_HERE}:wrong_classes", r"its logits of .* has the shape 2 x 4, not 2 x 3"),
        (f"{_HERE}:AtOdds", r"the forward of .*AtOdds' gives other logits than its parts"),
    ],
)
def test_what_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(name, classes=3, where="train.students.0")
    assert str(caught.value).startswith("train.students.0: ")
    assert "\n" not in str(caught.value)


def test_an_option_that_an_own_network_has_not() -> None:
    with pytest.raises(ConfigError, match="has no width factor"):
        build_network(f"{_HERE}:Whole", classes=3, width=0.5)
