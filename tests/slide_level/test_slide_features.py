"""What is measured of a slide's tiles, against numbers worked out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medkd.slide_level.slide_features import STAIN, TileSums, tile_stains


def half_and_half(first: int, second: int, side: int = 8) -> np.ndarray:
    """A tile of two levels in all colours: rows 0 to 3 of the first, the others of the second."""
    tile = np.full((side, side, 3), first, np.uint8)
    tile[side // 2 :] = second
    return tile


def test_strength_and_hues_of_a_tile_worked_out_by_hand() -> None:
    """Grey of 119 and 59 lets through 1/2 and 1/4 of 240: densities ln 2 and ln 4."""
    (found,) = tile_stains(half_and_half(119, 59)[None])
    mean, deviation = 1.5 * math.log(2), 0.5 * math.log(2)
    expected = [math.sqrt(3) * math.log(mean), 0, 0, math.sqrt(3) * math.log(deviation), 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_stronger_stain_changes_strength_alone() -> None:
    """Densities of red, green and blue of 0.3, 0.6 and 0.2, and all of them twice."""
    density = np.array([0.3, 0.6, 0.2])
    tiles = [
        np.broadcast_to(np.rint(240 * np.exp(-k * density) - 1), (8, 8, 3)).astype(np.uint8)
        for k in (1, 2)
    ]
    weak, strong = tile_stains(np.array(tiles))
    # A byte holds a density of 0.2 to some 1%.
    assert strong[0] - weak[0] == pytest.approx(math.sqrt(3) * math.log(2), abs=0.02)
    np.testing.assert_allclose(strong[1:3], weak[1:3], atol=0.02)
    assert weak[1] == pytest.approx((math.log(0.3) - math.log(0.6)) / math.sqrt(2), abs=0.02)
    blue = math.log(0.3) + math.log(0.6) - 2 * math.log(0.2)
    assert weak[2] == pytest.approx(blue / math.sqrt(6), abs=0.02)


def test_glass_and_flat_tiles_have_the_least_density_that_counts() -> None:
    least = math.sqrt(3) * math.log(0.01)
    glass, flat = tile_stains(np.array([half_and_half(255, 255), half_and_half(119, 119)]))
    np.testing.assert_allclose(glass, [least, 0, 0, least, 0, 0], atol=1e-12)
    assert flat[0] == pytest.approx(math.sqrt(3) * math.log(math.log(2)))
    assert flat[3] == pytest.approx(least)


def test_mean_and_variance_over_tiles_whatever_their_order() -> None:
    random = np.random.default_rng(0)
    tiles = random.integers(0, 256, (30, 16, 16, 3), np.uint8)
    embeddings = {"a": random.normal(3, 1, (30, 5)).astype(np.float32)}
    stains = tile_stains(tiles)
    for order in (np.arange(30), random.permutation(30)):
        parts = [
            TileSums.of(tiles[some], {"a": embeddings["a"][some]})
            for some in np.array_split(order, 4)
        ]
        found = TileSums.together(parts).features()
        assert found.tiles == 30
        expected = {"a": embeddings["a"].astype(np.float64), STAIN: stains}
        for name, values in expected.items():
            assert found.means[name].dtype == np.float32
            np.testing.assert_array_equal(found.means[name], values.mean(0).astype(np.float32))
            np.testing.assert_allclose(found.variances[name], values.var(0), rtol=1e-5)


def test_a_slide_without_tiles_looks_like_nothing() -> None:
    sums = TileSums(0, {STAIN: np.zeros(6)}, {STAIN: np.zeros(6)})
    with pytest.raises(ValueError, match="without tiles"):
        sums.features()
