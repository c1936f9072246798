"""Detectors: a staged network, a pyramid of its maps, and heads that classify and move anchors.

A RetinaNet (arXiv 1708.02002) on any network with maps. MONAI's own feature extractor takes none
but MONAI's ResNets and asks for torchvision, so its blocks are put together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.apps.detection.networks.retinanet_network import (
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import ConfigError
from medkd.networks.anchor_grid import AnchorGrid
from medkd.networks.staged import Finished, Network, StagedNetwork, require_stages

CHANNELS = 64

# Background is nearly all there is: called an object half of the time at first, it would drown the
# loss of what is one (section 4.1 of the paper).
_PRIOR_PROBABILITY = 0.01
# MONAI's heads normalise in eight groups. A group of one channel on a map of one cell is a single
# number, and nothing is left of it.
_GROUPS, _LEAST_PER_GROUP = 8, 2


class Pyramid(nn.Module):
    """States of a network to maps of one width (MONAI's block, arXiv 1612.03144).

    Args:
        to_map: makes a map of a state.
        channels_in: of each map, the finest first.
        channels: of each level.
        coarser: levels to add by max-pooling, beyond the coarsest map.
    """

    def __init__(
        self, to_map: nn.Module, channels_in: Sequence[int], channels: int, coarser: int
    ) -> None:
        super().__init__()
        self.to_map = to_map
        self.network = FeaturePyramidNetwork(2, list(channels_in), channels)
        self.coarser = coarser

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Levels, N x channels x h x w, the finest first, of states in that order."""
        named = {f"level_{number}": self.to_map(state) for number, state in enumerate(states)}
        levels = list(self.network(named).values())
        for _ in range(self.coarser):
            # Rounding up keeps cells that reach beyond the image, as the grid does.
            levels.append(F.max_pool2d(levels[-1], kernel_size=2, ceil_mode=True))
        return levels


class Heads(nn.Module):
    """Class logits and box codes of every anchor: MONAI's two heads, the same on every level.

    Args:
        channels: of each level of the pyramid.
        per_cell: anchors on each cell.
        classes: number of classes; the background is none.
    """

    def __init__(self, channels: int, per_cell: int, classes: int) -> None:
        super().__init__()
        self.classification = RetinaNetClassificationHead(
            channels, per_cell, classes, spatial_dims=2, prior_probability=_PRIOR_PROBABILITY
        )
        self.regression = RetinaNetRegressionHead(channels, per_cell, spatial_dims=2)
        self.per_cell = per_cell

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Class logits, then box codes dx, dy, dw, dh, of every anchor in the grid's order.

        Args:
            levels: N x channels x h x w, the finest first.

        Returns:
            N x anchors x (classes + 4).
        """
        # By their parts: the heads' own forward looks for NaN on every level, and each look waits
        # for the device.
        classify, regress = self.classification, self.regression
        joined = []
        for level in levels:
            logits = classify.cls_logits(classify.conv(level))
            codes = regress.bbox_reg(regress.conv(level))
            joined.append(torch.cat((self._by_anchor(logits), self._by_anchor(codes)), dim=2))
        return torch.cat(joined, dim=1)

    def _by_anchor(self, values: Tensor) -> Tensor:
        """N x (per_cell * values) x h x w to N x (h * w * per_cell) x values."""
        split = values.unflatten(1, (self.per_cell, -1))
        return split.permute(0, 3, 4, 1, 2).flatten(1, 3)


class Detector(StagedNetwork):
    """A network that says what is in an image, and where; its logits are of anchors.

    Args:
        backbone: whose adapter, stem and stages become the detector's: its own modules, not copies.
            Its pool and classifier are left behind, and so are the stages after the last state
            that is used.
        grid: the anchors, for square images of ``grid.image_px``.
        classes: number of classes; the background is none.
        states: of the backbone, those that the pyramid is built on, of each, before which stage it
            is, as many as there are stages for what the last one gave; the finest first.
        channels_in: channels of each of them as a map.
        channels: of each level of the pyramid.

    ``pool`` is the pyramid, and ``classifier`` the heads. :func:`build_detector` finds the states.
    """

    has_pyramid: ClassVar[bool] = True

    def __init__(
        self,
        backbone: StagedNetwork,
        grid: AnchorGrid,
        classes: int,
        *,
        states: Sequence[int],
        channels_in: Sequence[int],
        channels: int = CHANNELS,
    ) -> None:
        used = max(states)
        super().__init__(
            adapter=backbone.adapter,
            stem=backbone.stem,
            stages=list(backbone.stages)[:used],
            pool=Pyramid(backbone.to_map, channels_in, channels, len(grid.strides) - len(states)),
            classifier=Heads(channels, grid.per_cell, classes),
            stage_channels=backbone.stage_channels[:used],
            pooled_channels=channels,
            to_map=backbone.to_map,
        )
        self.spec = backbone.spec
        self.grid = grid
        self.classes = classes
        self._states = tuple(states)

    @property
    def finish_states(self) -> tuple[int, ...]:
        """The states that the pyramid is built on, the finest first."""
        return self._states

    def enter(self, images: Tensor) -> Tensor:
        """The state before the first stage.

        Args:
            images: RGB in [0, 1], float N x 3 x S x S with S = ``grid.image_px``.

        Raises:
            ValueError: images of another size, in which the anchors would lie elsewhere.
        """
        side = self.grid.image_px
        if images.shape[-2:] != (side, side):
            raise ValueError(
                f"images of {images.shape[-1]} x {images.shape[-2]} px, to a detector for "
                f"{side} x {side} px"
            )
        return super().enter(images)

    @staticmethod
    def assembled(pool: nn.Module, classifier: nn.Module, states: Sequence[Tensor]) -> Finished:
        """What pyramid and heads make of the wanted states, in the order of ``finish_states``.

        Returns:
            Logits, N x anchors x (classes + 4): class logits, then box codes dx, dy, dw, dh, the
            anchors in the grid's order; the pyramid's mean, N x channels; the pyramid, N x channels
            x cells, the cells in the anchors' order.
        """
        levels: list[Tensor] = pool(states)
        pyramid = torch.cat([level.flatten(2) for level in levels], dim=2)
        return Finished(classifier(levels), pyramid.mean(2), pyramid)


def build_detector(
    backbone: Network,
    grid: AnchorGrid,
    classes: int,
    *,
    channels: int = CHANNELS,
    where: str = "train",
) -> Detector:
    """Build a detector on a network.

    Args:
        backbone: a network with stages whose states are maps; its modules become the detector's.
            Which of its states has which stride is found with an image of zeros.
        grid: the anchors. Levels coarser than the network's coarsest map are added by max-pooling.
        classes: number of classes; the background is none.
        channels: of each level of the pyramid and of the heads, a multiple of 8 from 16 on.
        where: the key of the configuration that errors tell of.

    Raises:
        ConfigError: the network has no stages, no maps, or none of a stride of the grid; its head
            alone is to be trained; or a wrong number of classes or channels.
    """
    network = require_stages(backbone, where)
    if classes < 1:
        raise ConfigError(f"a detector of {classes} classes", where=where, remedy="Use at least 1.")
    if channels % _GROUPS or channels < _GROUPS * _LEAST_PER_GROUP:
        raise ConfigError(
            f"a pyramid of {channels} channels",
            where=where,
            remedy=f"Use a multiple of {_GROUPS}, at least {_GROUPS * _LEAST_PER_GROUP}.",
        )
    if network.head_only:
        raise ConfigError(
            "the head of a detector cannot be trained alone",
            where=where,
            remedy="Leave 'train_only' out: the pyramid must learn too.",
        )
    maps = _maps(network, grid.image_px, where)
    states = _states_of_levels(network, maps, grid, where)
    return Detector(
        network,
        grid,
        classes,
        states=states,
        channels_in=[maps[state].channels for state in states],
        channels=channels,
    )


@dataclass(frozen=True)
class _Map:
    """A state of a network as a map: its channels, and its cells along one side."""

    channels: int
    side: int


@torch.no_grad()
def _maps(network: StagedNetwork, image_px: int, where: str) -> list[_Map]:
    """What the states of a network are for images of ``image_px``: before the first stage, ..."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        state = network.enter(network.adapter.mean.new_zeros(1, 3, image_px, image_px))
        states = [state]
        for stage in network.stages:
            state = stage(state)
            states.append(state)
        if any(state.ndim != 4 for state in states):
            raise ConfigError(
                f"the states of the network {_name(network)} are no maps",
                where=where,
                remedy="Choose a convolutional network, such as resnet18 or efficientnet-lite0.",
            )
        shapes = [network.as_map(state).shape for state in states]
    finally:
        for module, training in modes:
            module.training = training
    return [_Map(channels=shape[1], side=shape[3]) for shape in shapes]


def _states_of_levels(
    network: StagedNetwork, maps: Sequence[_Map], grid: AnchorGrid, where: str
) -> list[int]:
    """The last state of each level's resolution, of as many levels as the network has."""
    # A later state of the same resolution takes the place of an earlier one.
    last = {one.side: number for number, one in enumerate(maps)}
    coarsest = min(last)
    states = []
    for stride, side in zip(grid.strides, grid.sides, strict=True):
        if side in last:
            states.append(last[side])
        elif side > coarsest or not states:
            strides = [f"{grid.image_px / one:.3g}" for one in last]
            raise ConfigError(
                f"the network {_name(network)} has maps of strides {', '.join(strides)} for images "
                f"of {grid.image_px} px, and none of {stride}",
                where=where,
                remedy="Choose strides that it has (coarser ones can be added, finer ones cannot), "
                "an image size that they divide, or another network.",
            )
    if not any(states):
        raise ConfigError(
            f"of the network {_name(network)} the grid would use the stem alone",
            where=where,
            remedy="Give the grid a coarser stride.",
        )
    return states


def _name(network: StagedNetwork) -> str:
    return f"'{network.spec.name}'" if network.spec is not None else type(network).__name__
