"""The least time that a GPU needs for one co-training step, by its traffic and its arithmetic.

What is counted is a step in bfloat16 by autocast, in which everything element by element (ReLU,
sums, casts) rides along with what reads or writes the tensor anyway, but convolutions and batch
norms are passes of their own. Caches keep nothing from one pass to the next: at batch 32 the small
maps of late stages would fit in the H200's 50 MB, so there the floor is a little too high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cotrain_ways import Sizes
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from medkd.networks.staged import InputAdapter
from medkd.networks.zoo import build

# NVIDIA's datasheet of the H200 SXM: dense bfloat16 and HBM3e. A plain copy reaches some 0.9 and a
# large matrix product some 0.8 of them, so nobody sees a ratio of 1.
H200_FLOP_PER_S = 989e12
H200_BYTES_PER_S = 4.8e12

_ACTIVATION_BYTES = 2
# float32: AdamW reads weight, gradient and two moments and writes all but the gradient (28); the
# forward casts the weight (6), the backward its gradient (6).
_BYTES_PER_PARAMETER = 28 + 6 + 6

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


@dataclass
class StepCost:
    """What one step of all networks costs at least.

    Attributes:
        flop: of convolutions and linear layers, forward and backward.
        bytes: read and written.
    """

    flop: float = 0.0
    bytes: float = 0.0

    @property
    def traffic_s(self) -> float:
        """Seconds at the H200's bandwidth."""
        return self.bytes / H200_BYTES_PER_S

    @property
    def arithmetic_s(self) -> float:
        """Seconds at the H200's peak."""
        return self.flop / H200_FLOP_PER_S

    @property
    def floor_s(self) -> float:
        """The larger of both: at best they overlap."""
        return max(self.traffic_s, self.arithmetic_s)


def step_cost(sizes: Sizes) -> StepCost:
    """Count one step of KD+ML; nothing is computed. The losses' few numbers do not count."""
    cost = StepCost()
    for spec in sizes.specs:
        with torch.device("meta"):
            network = build(spec)
            images = torch.empty(sizes.batch, 3, sizes.side_px, sizes.side_px)
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        for module in network.modules():
            module.register_forward_hook(_counting(cost, is_first=module is first))
        network.train()
        network(images)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        cost.bytes += parameters * _BYTES_PER_PARAMETER
    return cost


def _counting(cost: StepCost, *, is_first: bool) -> Hook:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        flop, elements = _of(module, inputs[0], output, is_first=is_first)
        cost.flop += flop
        cost.bytes += elements * _ACTIVATION_BYTES

    return count


def _of(module: nn.Module, x: Tensor, y: Tensor, *, is_first: bool) -> tuple[float, float]:
    """Operations of a layer, and elements it reads or writes, forward and backward."""
    taken, given = x.numel(), y.numel()
    flop, elements = 0.0, 0
    if isinstance(module, nn.Conv2d | nn.Linear):
        # Forward, gradient of the weight, gradient of the input: each a sum over one row of the
        # weight for each output, and each goes over both maps. The image needs no gradient.
        passes = 2 if is_first else 3
        flop = passes * 2 * given * module.weight[0].numel()
        elements = passes * (taken + given)
    elif isinstance(module, nn.BatchNorm2d):
        # Forward: statistics, then read and write. Backward: sums over map and gradient, then both
        # again, and write.
        elements = 3 * given + 5 * given
    elif isinstance(module, ResNetBlock | ResNetBottleneck):
        # The shortcut is read for the sum, and so is its gradient.
        elements = given + taken
    elif isinstance(module, nn.MaxPool2d):
        elements = 2 * (taken + given)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        elements = 2 * taken
    elif isinstance(module, InputAdapter):
        # Reads float32, twice as wide, and writes; there is no backward.
        elements = 2 * taken + given
    return flop, elements
