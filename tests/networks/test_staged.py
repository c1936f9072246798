"""Adapter, trunk, tail: the parts of a network, used one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.errors import ConfigError
from medkd.networks.staged import (
    InputAdapter,
    StagedNetwork,
    WholeNetwork,
    average_pool,
    tail,
    trunk,
)
from medkd.networks.zoo import build_network, fresh_tail


def small(name: str = "resnet10", width: float = 0.125) -> StagedNetwork:
    network = build_network(name, classes=3, width=width)
    assert isinstance(network, StagedNetwork)
    return network


def test_the_adapter_normalises() -> None:
    adapted = InputAdapter()(torch.full((1, 3, 8, 8), 0.5))
    # (0.5 - mean) / std of ImageNet, by hand
    assert adapted[0, :, 0, 0].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-4)


def test_the_adapter_resizes_only_what_has_another_size() -> None:
    adapter = InputAdapter((0.0,) * 3, (1.0,) * 3, input_px=4)
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(adapter(images), images)
    # Halving by a bilinear filter with antialias keeps a ramp's values inside: pixels at 0.5, 2.5
    # and so on of the ramp 0, 1, 2 ...
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    assert adapter(ramp)[0, 0, 0, 1:3].tolist() == pytest.approx([2.5, 4.5])
    assert adapter(torch.rand(1, 3, 4, 6)).shape == (1, 3, 4, 4)


def test_the_adapter_is_kept_with_the_weights() -> None:
    assert {"adapter.mean", "adapter.std"} <= set(small().state_dict())


@pytest.mark.parametrize("stages", [1, 3, -1])
@torch.no_grad()
def test_trunk_and_tail_are_the_network(stages: int) -> None:
    network = small().eval()
    images = torch.rand(2, 3, 32, 32)
    early, late = trunk(network, stages), tail(network, stages)
    assert torch.equal(late(early(images)), network(images))
    own = {id(p) for p in network.parameters()}
    assert {id(p) for m in (early, late) for p in m.parameters()} == own
    assert late.stage_channels == network.stage_channels[stages:]


@torch.no_grad()
def test_a_fresh_tail_has_the_shape_and_other_weights() -> None:
    network = small()
    state = trunk(network, -1)(torch.rand(2, 3, 32, 32))
    fresh = fresh_tail(network, -1)
    own = dict(tail(network, -1).named_parameters())
    for name, parameter in fresh.named_parameters():
        assert parameter.shape == own[name].shape
        assert parameter is not own[name]
        # Batch norms and biases start at 1 and 0 in every network.
        assert (parameter.ndim == 1) == torch.equal(parameter, own[name])
    assert fresh(state).shape == (2, 3)


def test_a_fresh_tail_is_drawn_as_the_network_was() -> None:
    torch.manual_seed(3)
    network = small()
    torch.manual_seed(3)
    fresh = fresh_tail(network, 2)
    own = tail(network, 2).state_dict()
    assert all(torch.equal(value, own[key]) for key, value in fresh.state_dict().items())


def test_a_fresh_tail_keeps_the_options() -> None:
    network = small(width=0.25)
    assert fresh_tail(network, -1).pooled_channels == network.pooled_channels == 128


def test_what_trunk_and_tail_refuse() -> None:
    network = small()
    with pytest.raises(ConfigError, match=r"no stage 4: the network has 4. Name a stage from 0"):
        tail(network, 4)
    with pytest.raises(ConfigError, match="no stage -5"):
        fresh_tail(network, -5)
    whole = WholeNetwork(InputAdapter(), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"WholeNetwork has no stages. Choose one that has"):
        trunk(whole, 1)


def test_stages_and_channels_must_agree() -> None:
    with pytest.raises(ValueError, match="1 stages with 2 stage_channels"):
        StagedNetwork(
            adapter=InputAdapter(),
            stem=nn.Identity(),
            stages=[nn.Identity()],
            pool=average_pool(),
            classifier=nn.Linear(3, 2),
            stage_channels=(3, 3),
            pooled_channels=3,
        )


def test_has_stages() -> None:
    assert StagedNetwork.has_stages
    assert not WholeNetwork.has_stages
