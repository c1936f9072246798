from __future__ import annotations

import numpy as np
import pytest

from medkd.inference.engine import ScoredTile
from medkd.inference.maps.grid import TileGrid, colours

GRID = TileGrid(columns=3, rows=2, step_px=448.7, extent_px=448.7)


def test_tiles_lie_in_their_cells():
    tiles = [ScoredTile(897, 449, 0.25), ScoredTile(0, 0, 0.5)]
    expected = [[0.5, np.nan, np.nan], [np.nan, np.nan, 0.25]]
    np.testing.assert_array_equal(GRID.values(tiles, [0.5, 0.25][::-1]), expected)


@pytest.mark.parametrize(("x", "y"), [(224, 0), (0, 451), (1346, 0), (0, 897), (-449, 0)])
def test_a_tile_elsewhere_is_refused(x, y):
    with pytest.raises(ValueError, match=rf"the tile at \({x}, {y}\) is not on the grid of 3 x 2"):
        GRID.values([ScoredTile(x, y, 0.5)], [0.5])


def test_the_colours_are_viridis_from_0_to_1():
    """Its ends and middle as its authors published them."""
    expected = [[68, 1, 84], [253, 231, 36], [32, 144, 140]]
    np.testing.assert_allclose(colours(np.array([0, 1, 0.5])), expected, atol=1)
