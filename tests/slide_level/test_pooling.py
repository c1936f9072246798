"""A slide's score and its interval, that of resampled tiles; the order of ensembling; patients."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.slide_level.pooling import SlideScore, pool_patient, pool_slide
from medkd.slide_level.pooling_kinds import (
    MeanLogit,
    MeanProbability,
    NoisyOr,
    Pooling,
    PositiveFraction,
    Quantile,
    TopK,
)
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.uncertainty import total_interval


def pool(*students: list[float] | np.ndarray, resamples: int = 500) -> SlideScore:
    named = {f"student_{i}": np.asarray(values) for i, values in enumerate(students)}
    return pool_slide(named, resamples=resamples, interval=Interval(0.95))


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
    narrow = pool_slide(tiles, resamples=500, interval=Interval(0.8))
    wide = pool_slide(tiles, resamples=500, interval=Interval(0.99))
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


A, B = [0.4, 0.8, 0.1], [0.8, 0.4, 0.3]
"""Their means in each tile are 0.6, 0.6 and 0.2."""


@pytest.mark.parametrize(
    ("pooling", "tiles_first", "slides_first"),
    [
        (MeanProbability(), 1.4 / 3, 1.4 / 3),
        (PositiveFraction(), 2 / 3, 1 / 3),
        (TopK(share=0.1, min_tiles=1), 0.6, 0.8),
        (Quantile(quantile=0.5), 0.6, 0.4),
        # A misses with 0.6 x 0.2 x 0.9, B with 0.2 x 0.6 x 0.7.
        (NoisyOr(), 1 - 0.4 * 0.4 * 0.8, 1 - 0.12 * (0.9 + 0.7) / 2),
    ],
    ids=["mean_probability", "positive_fraction", "top_k", "quantile", "noisy_or"],
)
def test_students_are_averaged_in_tiles_or_over_slides(
    pooling: Pooling, tiles_first: float, slides_first: float
) -> None:
    students = {"a": np.array(A), "b": np.array(B)}
    for order, expected in (("tiles_first", tiles_first), ("slides_first", slides_first)):
        found = pool_slide(
            students, resamples=50, interval=Interval(0.9), pooling=pooling, ensembling=order
        )
        assert found.score == pytest.approx(expected)
        assert (
            found.students["a"]
            == pool_slide(
                {"a": students["a"]}, resamples=1, interval=Interval(0.9), pooling=pooling
            ).score
        )


def test_for_the_mean_the_order_makes_no_difference_at_all() -> None:
    random = np.random.default_rng(6)
    students = {name: random.uniform(size=50) for name in "abc"}
    one, other = (
        pool_slide(students, resamples=300, interval=Interval(0.9), ensembling=order)
        for order in ("tiles_first", "slides_first")
    )
    assert [one.score, one.lower, one.upper] == pytest.approx(
        [other.score, other.lower, other.upper], abs=1e-14
    )


@pytest.mark.parametrize("order", ["tiles_first", "slides_first"])
def test_intervals_of_other_poolings_are_those_of_tiles_drawn_one_by_one(order: str) -> None:
    random = np.random.default_rng(7)
    tiles, other = random.beta(0.5, 1.5, 60), random.beta(0.5, 1.5, 60)
    found = pool_slide(
        {"a": tiles, "b": other},
        resamples=20_000,
        interval=Interval(0.95),
        pooling=TopK(share=0.1, min_tiles=1),
        ensembling=order,
    )
    drawn = np.random.default_rng(8).integers(60, size=(20_000, 60))

    def top(values: np.ndarray) -> np.ndarray:
        return np.sort(values[drawn], axis=1)[:, -6:].mean(1)

    scores = top((tiles + other) / 2) if order == "tiles_first" else (top(tiles) + top(other)) / 2
    np.testing.assert_allclose(
        [found.lower, found.upper], np.quantile(scores, [0.025, 0.975]), atol=0.006
    )


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown order of ensembling: 'tiles'"):
        pool_slide({"a": np.array(A)}, resamples=5, interval=Interval(0.9), ensembling="tiles")


SLIDES = {
    "small": {"a": np.array([0.9]), "b": np.array([0.7])},
    "large": {"a": np.array([0.1, 0.2, 0.6]), "b": np.array([0.3, 0.2, 0.4])},
    "empty": {"a": np.array([]), "b": np.array([])},
}


@pytest.mark.parametrize(
    ("patient", "score", "a", "b"),
    [
        ("tiles", 3.4 / 8, 1.8 / 4, 1.6 / 4),
        ("mean_of_slides", (0.8 + 0.3) / 2, (0.9 + 0.3) / 2, (0.7 + 0.3) / 2),
        ("max_of_slides", 0.8, 0.9, 0.7),
    ],
)
def test_patients_by_hand(patient: str, score: float, a: float, b: float) -> None:
    found = pool_patient(SLIDES, resamples=200, interval=Interval(0.9), patient=patient)
    assert found.score == pytest.approx(score)
    assert found.students == pytest.approx({"a": a, "b": b})
    assert found.disagreement == pytest.approx(a - b)
    assert found.tiles == 4
    assert found.lower <= found.score <= found.upper


def test_a_patient_is_pooled_from_tiles_unless_told_otherwise() -> None:
    together = {name: np.append(SLIDES["small"][name], SLIDES["large"][name]) for name in "ab"}
    for pooling in (MeanProbability(), MeanLogit()):
        options = {"resamples": 100, "interval": Interval(0.9), "pooling": pooling}
        assert pool_patient(SLIDES, **options) == pool_slide(together, **options)


def test_slides_of_a_patient_are_resampled_each_for_itself() -> None:
    """Equal tiles within each leave no spread, unless slides are put together."""
    slides = {"one": {"a": np.full(5, 0.25)}, "two": {"a": np.full(9, 0.75)}}
    options = {"resamples": 100, "interval": Interval(0.9)}
    mean = pool_patient(slides, patient="mean_of_slides", **options)
    assert (mean.lower, mean.score, mean.upper) == (0.5, 0.5, 0.5)
    tiles = pool_patient(slides, **options)
    assert tiles.lower < tiles.score < tiles.upper
    random = np.random.default_rng(9)
    slides = {name: {"a": random.uniform(size=40)} for name in ("one", "two", "three")}
    found = pool_patient(slides, patient="max_of_slides", resamples=4000, interval=Interval(0.9))
    drawn = [
        np.random.default_rng(number).choice(slide["a"], (4000, 40)).mean(1)
        for number, slide in enumerate(slides.values())
    ]
    np.testing.assert_allclose(
        [found.lower, found.upper], np.quantile(np.max(drawn, axis=0), [0.05, 0.95]), atol=0.01
    )


@pytest.mark.parametrize(
    ("slides", "patient", "what"),
    [
        ({}, "tiles", "there is no tile to pool"),
        ({"empty": SLIDES["empty"]}, "mean_of_slides", "there is no tile to pool"),
        ({"one": {"a": [0.5]}, "two": {"b": [0.5]}}, "tiles", "different students"),
        ({"one": {"a": [0.5], "b": []}}, "tiles", "must have the same shape"),
        ({"one": {}}, "tiles", "no student gave probabilities"),
        (SLIDES, "median_of_slides", "unknown way to pool a patient: 'median_of_slides'"),
    ],
)
def test_a_patient_who_cannot_be_pooled_is_refused(slides: dict, patient: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        pool_patient(slides, resamples=5, interval=Interval(0.9), patient=patient)


def test_an_interval_for_tiles_and_students_is_that_of_both_variances() -> None:
    """For the mean the resamples' variance is that of the tiles' means over their number."""
    random = np.random.default_rng(0)
    slide = {name: random.beta(a, 3, 300) for name, a in (("a", 2), ("b", 2.4), ("c", 3))}
    found = pool_slide(
        slide,
        resamples=20_000,
        interval=Interval(0.95, "tiles_and_students"),
        ensembling="tiles_first",
    )
    expected = total_interval(slide, confidence=0.95)
    assert found.score == pytest.approx(expected.score)
    assert [found.lower, found.upper] == pytest.approx([expected.lower, expected.upper], abs=2e-3)
    of_tiles = pool_slide(slide, resamples=2000, interval=Interval(0.95))
    assert found.upper - found.lower > 3 * (of_tiles.upper - of_tiles.lower)
    # One student says nothing about others.
    alone = {"a": slide["a"]}
    assert pool_slide(alone, resamples=500, interval=Interval(0.95, "tiles_and_students")) == (
        pool_slide(alone, resamples=500, interval=Interval(0.95))
    )


def test_students_of_opposite_minds_have_mutual_information() -> None:
    """Certain and opposite: knowing the student tells all, ln 2; alike: nothing."""
    opposite = pool_slide({"a": np.ones(3), "b": np.zeros(3)}, resamples=0, interval=Interval(0.9))
    assert opposite.mutual_information == pytest.approx(np.log(2))
    assert np.isnan([opposite.lower, opposite.upper]).all()
    alike = pool_slide(
        {"a": np.full(3, 0.5), "b": np.full(3, 0.5)}, resamples=5, interval=Interval(0.9)
    )
    assert alike.mutual_information == pytest.approx(0, abs=1e-12)
    assert (
        pool_slide({"a": np.ones(3)}, resamples=5, interval=Interval(0.9)).mutual_information
        is None
    )
