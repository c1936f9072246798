"""What the tests of networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.networks.staged import StagedNetwork


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
