"""Weighted sums against loops; the weights' own distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from medkd.slide_level import tile_weights
from medkd.slide_level.tile_weights import TileWeights


def weights_of(table: TileWeights, tiles: int, first: int = 0) -> np.ndarray:
    """The weights themselves, (tiles, resamples): sums of one tile at a time."""
    return table.sums(np.eye(tiles, dtype=np.float32), first)[0]


def test_weights_are_poisson() -> None:
    found = weights_of(TileWeights(2000), 50)
    for count in range(4):
        assert (found == count).mean() == pytest.approx(poisson.pmf(count, 1), abs=0.005)
    # Tiles are independent of one another.
    assert np.abs(np.corrcoef(found) - np.eye(50)).max() < 0.12


def test_sums_are_those_of_the_weights() -> None:
    table = TileWeights(100)
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    sums, totals = table.sums(values, first=10)
    expected = weights_of(table, 50)[10:]
    np.testing.assert_allclose(sums, values.astype(np.float64) @ expected, atol=1e-5)
    np.testing.assert_array_equal(totals, expected.sum(0))


def test_a_long_slide_uses_no_weight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_weights, "_ROWS", 16)
    table = TileWeights(5000)
    found = weights_of(table, 50)
    np.testing.assert_array_equal(found[16:32], np.roll(found[:16], 1, axis=1))
    assert np.abs(np.corrcoef(found) - np.eye(50)).max() < 0.08
    np.testing.assert_array_equal(weights_of(table, 20, first=30), found[30:])


def test_the_same_seed_gives_the_same_weights_whatever_was_asked_before() -> None:
    values = np.random.default_rng(0).normal(size=(1, 600)).astype(np.float32)
    one, other, third = TileWeights(100, 1), TileWeights(100, 1), TileWeights(100, 2)
    one.sums(values[:, :5])
    np.testing.assert_array_equal(one.sums(values)[0], other.sums(values)[0])
    assert (one.sums(values)[0] != third.sums(values)[0]).any()
