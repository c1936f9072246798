"""The grid that a slide's tiles lie on, and what every map says and colours alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps

from medkd.config import TileConfig
from medkd.inference.engine import ScoredTile
from medkd.inference.heatmap import COLOUR_MAP
from medkd.inference.result import Result
from medkd.slides.reader import SlideProperties

SECTION_MM = 0.004
"""Nominal thickness of a section, for formats that ask: hardly a slide says its own, 3 to 5 um."""

# A place is rounded to a whole level-0 pixel, and the last one kept within the slide.
_OFF_GRID_PX = 1.0


@dataclass(frozen=True)
class TileGrid:
    """One cell for each place of a tile; where tiles overlap, cells are smaller than tiles.

    Attributes:
        columns, rows: how many tiles lie beside and below one another on the whole slide.
        step_px: from one tile to the next, level-0 pixels.
        extent_px: side of a tile, level-0 pixels.
    """

    columns: int
    rows: int
    step_px: float
    extent_px: float

    def values(self, tiles: Sequence[ScoredTile], values: Sequence[float]) -> np.ndarray:
        """The tiles' values in their cells: float32, rows x columns, nan where no tile is.

        Raises:
            ValueError: a tile does not lie on the grid.
        """
        grid = np.full((self.rows, self.columns), np.nan, np.float32)
        for tile, value in zip(tiles, values, strict=True):
            column, row = round(tile.x / self.step_px), round(tile.y / self.step_px)
            off_px = max(abs(tile.x - column * self.step_px), abs(tile.y - row * self.step_px))
            inside = 0 <= column < self.columns and 0 <= row < self.rows
            if not inside or off_px > _OFF_GRID_PX:
                raise ValueError(
                    f"the tile at ({tile.x}, {tile.y}) is not on the grid of "
                    f"{self.columns} x {self.rows} tiles, {self.step_px:g} px apart"
                )
            grid[row, column] = value
        return grid


def tile_grid(properties: SlideProperties, parameters: TileConfig) -> TileGrid:
    """The grid of a slide that is tiled by ``parameters``."""
    scale = parameters.mpp / properties.mpp
    extent_px = parameters.size_px * scale
    step_px = (parameters.step_px or parameters.size_px) * scale

    def count(length_px: int) -> int:
        return math.floor((length_px - extent_px) / step_px + 1e-9) + 1

    return TileGrid(count(properties.width_px), count(properties.height_px), step_px, extent_px)


def colours(probabilities: np.ndarray) -> np.ndarray:
    """RGB of probabilities on the fixed scale from 0 to 1, uint8, of one dimension more."""
    return colormaps[COLOUR_MAP](probabilities, bytes=True)[..., :3]


def disclaimer(result: Result) -> str:
    """What every map says of itself: what it may be used for, and what in it was drawn."""
    parts = ["Research use only."]
    if result.synthetic.slide:
        parts.append("Synthetic slide.")
    if result.synthetic.model:
        parts.append("Model of synthetic slides.")
    return " ".join(parts)
