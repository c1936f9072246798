"""What the tests of networks share."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from medkd.networks.staged import StagedNetwork
from tests.networks.timm_stand_in import MODELS


def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """Give the batch norms the statistics of ``images``, so that outputs are neither 0 nor huge."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean, so one batch decides
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def states_of(network: StagedNetwork, images: Tensor) -> list[Tensor]:
    """The states before the first stage and after each, checked not to be changed in place."""
    states = [network.enter(images)]
    for stage in network.stages:
        before = states[-1].clone()
        states.append(stage(states[-1]))
        assert torch.equal(states[-2], before), "a stage changed its input"
    before = states[-1].clone()
    network.pool(states[-1])
    assert torch.equal(states[-1], before), "the pool changed its input"
    return states


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, int]]:
    calls: list[tuple[str, bool, int]] = []

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        calls.append((name, pretrained, num_classes))
        if name not in MODELS:
            raise RuntimeError("401: access to this model is restricted")
        return MODELS[name](num_classes=num_classes)

    module = ModuleType("timm")
    names = [name for name in MODELS if ":" not in name]
    module.create_model = create_model  # type: ignore[attr-defined]
    module.list_models = lambda: names  # type: ignore[attr-defined]
    module.is_model = lambda name: name in names  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls
