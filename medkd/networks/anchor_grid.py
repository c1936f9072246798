"""The boxes that a detector starts from: anchors on the cells of a pyramid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, product
from typing import Any

import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from torch import Tensor

# MONAI rounds half a side to whole pixels; half of less than this may become nothing.
_LEAST_SIDE_PX = 2


@dataclass(frozen=True)
class AnchorGrid:
    """Where anchors lie in a square image, and how large they are.

    Attributes:
        image_px: side of the images, pixels.
        strides: of each level of the pyramid, the side of a cell, pixels: the finest first, a power
            of two from 2 on, and each twice the one before.
        sizes_px: of each level, the anchors' sizes, pixels; a size is the side of the square that
            has the anchor's area.
        ratios: height / width of the anchors, on every level.

    Raises:
        ValueError: a grid that cannot be.

    Anchors are centred in their cells, in this order: by level, then row, then column of the cell,
    then ratio, then size. Sides are rounded to even pixels, as MONAI rounds them.
    """

    image_px: int
    strides: tuple[int, ...]
    sizes_px: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        fault = _fault_of_strides(self) or _fault_of_shapes(self)
        if fault:
            raise ValueError(fault)

    @property
    def per_cell(self) -> int:
        """Anchors on each cell."""
        return len(self.ratios) * len(self.sizes_px[0])

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells along one side of the image, for each level; the last may reach beyond it."""
        return tuple(math.ceil(self.image_px / stride) for stride in self.strides)

    @property
    def cells(self) -> int:
        """Cells of all levels."""
        return sum(side * side for side in self.sides)

    @property
    def count(self) -> int:
        """Anchors of all cells."""
        return self.cells * self.per_cell

    def boxes(self) -> Tensor:
        """The anchors: x1, y1, x2, y2, pixels, float32 count x 4, on the CPU.

        They may reach beyond the image. The tensor is kept for the next call: do not change it.
        """
        return _boxes(self)


def _fault_of_strides(grid: AnchorGrid) -> str:
    strides = grid.strides
    if not strides:
        return "a grid without strides"
    # The centre of a cell of one pixel is not on a whole pixel.
    if strides[0] < 2 or strides[0].bit_count() != 1:
        return f"the finest stride is {strides[0]}, no power of two from 2 on"
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        return f"of the strides {strides} one is not twice the one before"
    if grid.image_px < strides[-1]:
        return f"a cell of {strides[-1]} px is larger than the image of {grid.image_px} px"
    return ""


def _fault_of_shapes(grid: AnchorGrid) -> str:
    if len(grid.sizes_px) != len(grid.strides):
        return f"sizes for {len(grid.sizes_px)} levels, of a pyramid of {len(grid.strides)}"
    counts = [len(sizes) for sizes in grid.sizes_px]
    if not counts[0] or len(set(counts)) > 1:
        return f"levels with {counts} sizes: each needs the same number, at least one"
    if not grid.ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in grid.ratios):
        return f"the ratios {grid.ratios} are not all above 0, or none"
    for size, ratio in product(chain(*grid.sizes_px), grid.ratios):
        least = size * math.sqrt(min(ratio, 1 / ratio))
        if not _LEAST_SIDE_PX <= least < math.inf:
            return (
                f"an anchor of {size:g} px and ratio {ratio:g}: a side must have at least "
                f"{_LEAST_SIDE_PX} px"
            )
    return ""


@lru_cache(maxsize=32)
def _boxes(grid: AnchorGrid) -> Tensor:
    # What is kept must serve whoever comes next, whatever mode the first to ask is in.
    with torch.inference_mode(False), torch.device("cpu"):
        sizes: Any = grid.sizes_px  # MONAI's annotation asks for whole numbers, its code does not
        # Rows outside columns, and x before y: as torchvision has it, not as is MONAI's default.
        generator = AnchorGenerator(sizes, (grid.ratios,) * len(grid.strides), indexing="xy")
        # Its forward would divide the image by the cells, and be wrong where that leaves a rest.
        levels = generator.grid_anchors(
            [[side, side] for side in grid.sides],
            [[torch.tensor(stride)] * 2 for stride in grid.strides],
        )
        return torch.cat(levels)
