"""A slide's score is a mean; its interval is that of resampled tiles."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.slide_level.pooling import SlideScore, pool_slide


def pool(*students: list[float] | np.ndarray, resamples: int = 500) -> SlideScore:
    named = {f"student_{i}": np.asarray(values) for i, values in enumerate(students)}
    return pool_slide(named, resamples=resamples, confidence=0.95)


def test_figures_worked_out_by_hand() -> None:
    pooled = pool([0.2, 0.4, 0.9], [0.4, 0.6, 0.5])
    assert pooled.score == pytest.approx(0.5)
    assert pooled.students == pytest.approx({"student_0": 0.5, "student_1": 0.5})
    assert pooled.disagreement == pytest.approx(0)
    assert pooled.tiles == 3


def test_disagreement_is_the_largest_minus_the_smallest_of_the_students() -> None:
    assert pool([0.5, 0.5], [0.1, 0.3], [0.9, 0.7]).disagreement == pytest.approx(0.6)


def test_one_student_agrees_with_itself() -> None:
    assert pool([0.1, 0.9]).disagreement == 0


def test_equal_tiles_leave_no_uncertainty() -> None:
    pooled = pool([0.75] * 8)
    assert (pooled.lower, pooled.score, pooled.upper) == (0.75, 0.75, 0.75)


def test_one_tile_is_its_own_interval() -> None:
    pooled = pool([0.25], [0.75])
    assert (pooled.lower, pooled.score, pooled.upper, pooled.tiles) == (0.5, 0.5, 0.5, 1)


def test_the_interval_is_that_of_tiles_drawn_one_by_one() -> None:
    tiles = np.random.default_rng(1).beta(0.5, 1.5, 40)
    pooled = pool(tiles, resamples=20_000)
    drawn = np.random.default_rng(2).choice(tiles, (20_000, 40)).mean(1)
    np.testing.assert_allclose(
        [pooled.lower, pooled.upper], np.quantile(drawn, [0.025, 0.975]), atol=0.004
    )


def test_tiles_are_resampled_with_all_their_students() -> None:
    """Students that err in opposite ways cancel in each tile, so nothing is left to vary."""
    tiles = np.arange(16) / 16
    pooled = pool(tiles, 1 - tiles)
    assert pooled.lower == pytest.approx(0.5)
    assert pooled.upper == pytest.approx(0.5)


def test_the_interval_of_very_many_tiles_is_the_normal_one() -> None:
    tiles = np.random.default_rng(3).uniform(size=30_000)
    pooled = pool(tiles, resamples=400)
    half = 1.96 * np.sqrt(1 / 12 / 30_000)
    assert pooled.score - pooled.lower == pytest.approx(half, rel=0.2)
    assert pooled.upper - pooled.score == pytest.approx(half, rel=0.2)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    tiles = {"student_0": np.random.default_rng(4).uniform(size=30)}
    narrow = pool_slide(tiles, resamples=500, confidence=0.8)
    wide = pool_slide(tiles, resamples=500, confidence=0.99)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_the_same_tiles_give_the_same_interval() -> None:
    tiles = np.random.default_rng(5).uniform(size=30)
    assert pool(tiles) == pool(tiles)


@pytest.mark.parametrize(
    ("students", "what"),
    [
        ([], "no student gave probabilities"),
        ([[], []], "there is no tile to pool"),
        ([[0.1, 0.2], [0.1]], "must have the same shape"),
        ([[0.1, float("nan")]], "a probability is not a number between 0 and 1"),
        ([[0.1, 1.0001]], "a probability is not a number between 0 and 1"),
        ([[-0.0001, 1.0]], "a probability is not a number between 0 and 1"),
    ],
)
def test_what_cannot_be_pooled_is_refused(students: list[list[float]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        pool(*students)
