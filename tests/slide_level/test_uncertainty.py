"""Disagreement by hand and by scikit-learn, and the interval's coverage on drawn slides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import entropy, t
from sklearn.metrics import mutual_info_score

from medkd.slide_level.pooling import pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.uncertainty import mutual_information, student_spread, total_interval


def test_mutual_information_worked_out_by_hand() -> None:
    """Opposite and certain: ln 2. Alike: nothing, however unsure they are."""
    found = mutual_information([[1.0, 0.5, 0.9, 0.0], [0.0, 0.5, 0.9, 0.0]])
    np.testing.assert_allclose(found, [math.log(2), 0, 0, 0], atol=1e-15)
    assert (found >= 0).all()


def test_mutual_information_is_that_of_the_joint_table_of_student_and_label() -> None:
    scores = np.random.default_rng(0).random((4, 6)).round(3)
    found = mutual_information(scores)
    for slide, value in zip(scores.T, found, strict=True):
        table = np.stack([slide, 1 - slide], 1)
        counts = np.rint(1000 * table).astype(int)
        assert value == pytest.approx(mutual_info_score(None, None, contingency=counts), abs=1e-12)
        mean = entropy(table.mean(0)) - np.mean([entropy(row) for row in table])
        assert value == pytest.approx(mean, abs=1e-12)


def test_spread_is_the_standard_deviation() -> None:
    """Of 0.2, 0.4 and 0.9: mean 0.5, squares 0.09, 0.01 and 0.16 over two."""
    found = student_spread([[0.2, 0.5], [0.4, 0.5], [0.9, 0.5]])
    np.testing.assert_allclose(found, [math.sqrt(0.13), 0], atol=1e-15)


def test_an_interval_worked_out_by_hand() -> None:
    """Students' means 0.4 and 0.6, tiles' means 0.3 and 0.7: variances 0.01 and 0.04.

    Their sum has 0.05^2 / (0.01^2 + 0.04^2) degrees of freedom; the slope of the logit is 4.
    """
    found = total_interval({"a": [0.2, 0.6], "b": [0.4, 0.8]}, confidence=0.9)
    assert found.score == pytest.approx(0.5)
    assert found.student_variance == pytest.approx(0.01)
    assert found.tile_variance == pytest.approx(0.04)
    freedom = 0.0025 / 0.0017
    assert found.degrees_of_freedom == pytest.approx(freedom)
    half = t.ppf(0.95, freedom) * math.sqrt(0.05) * 4
    assert (found.lower, found.upper) == pytest.approx((expit(-half), expit(half)))


def test_students_who_agree_leave_the_interval_of_the_tiles() -> None:
    tiles = np.random.default_rng(1).beta(2, 3, 400)
    found = total_interval({"a": tiles, "b": tiles}, confidence=0.95)
    assert found.student_variance == pytest.approx(0, abs=1e-30)
    assert found.degrees_of_freedom == pytest.approx(399)
    alone = pool_slide({"a": tiles, "b": tiles}, resamples=4000, interval=Interval(0.95))
    assert (found.lower, found.upper) == pytest.approx((alone.lower, alone.upper), abs=3e-3)


def test_students_who_disagree_widen_it() -> None:
    tiles = np.random.default_rng(1).beta(2, 3, 400) / 2
    widths = []
    for shift in (0.0, 0.1, 0.3):
        students = {"a": tiles, "b": tiles + shift / 2, "c": tiles + shift}
        found = total_interval(students, confidence=0.95)
        assert 0 < found.lower < found.score < found.upper < 1
        widths.append(found.upper - found.lower)
    assert widths[0] < widths[1] / 3 < widths[2] / 6


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_probabilities_give_an_interval_without_width(value: float) -> None:
    found = total_interval({"a": np.full(5, value), "b": np.full(5, value)}, confidence=0.95)
    assert (found.lower, found.score, found.upper) == (value, value, value)


def test_scores_that_are_1_but_for_rounding() -> None:
    values = np.ones(50)
    nearly = values.copy()
    nearly[0] -= 2e-16
    found = total_interval({"a": values, "b": nearly}, confidence=0.95)
    assert 0.999 < found.lower <= found.score <= found.upper <= 1


def test_opposite_students_leave_nearly_everything_possible() -> None:
    found = total_interval({"a": np.full(50, 0.999), "b": np.full(50, 0.001)}, confidence=0.95)
    assert found.lower < 1e-3
    assert found.upper > 1 - 1e-3


@pytest.mark.parametrize(
    ("spread", "tiles_cover"), [(0.0, (0.90, 0.97)), (0.8, (0.25, 0.45))], ids=["alike", "differ"]
)
def test_the_interval_covers_where_that_of_tiles_alone_does_not(
    spread: float, tiles_cover: tuple[float, float]
) -> None:
    """500 slides, three students, 100 tiles. The truth is the mean over all students and tiles.

    The logit of a probability is that of the slide, the student, the tile and their combination:
    the truth is a normal integral, by Gauss and Hermite's rule.
    """
    random = np.random.default_rng(0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    together, alone = [], []
    for _ in range(500):
        slide = random.normal(0, 1.5)
        logits = slide + spread * random.normal(size=(3, 1)) + random.normal(size=100)
        values = expit(logits + 0.5 * random.normal(size=(3, 100)))
        deviation = math.sqrt(spread**2 + 1 + 0.25)
        truth = weights @ expit(slide + deviation * nodes) / weights.sum()
        students = dict(zip("abc", values, strict=True))
        total = total_interval(students, confidence=0.95)
        together.append(total.lower <= truth <= total.upper)
        tiles = pool_slide(students, resamples=200, interval=Interval(0.95))
        alone.append(tiles.lower <= truth <= tiles.upper)
    assert 0.90 < np.mean(together) < 0.985
    assert tiles_cover[0] < np.mean(alone) < tiles_cover[1]
    assert np.mean(together) > np.mean(alone)


def test_the_interval_is_symmetric_in_the_classes() -> None:
    values = np.random.default_rng(4).random((3, 20))
    found = total_interval(dict(zip("abc", values, strict=True)), confidence=0.95)
    mirrored = total_interval(dict(zip("abc", 1 - values, strict=True)), confidence=0.95)
    assert (1 - mirrored.upper, 1 - mirrored.lower) == pytest.approx((found.lower, found.upper))
    assert logit(found.upper) + logit(found.lower) == pytest.approx(2 * logit(found.score))


@pytest.mark.parametrize(
    ("students", "what"),
    [
        ({"a": [0.1, 0.2]}, "takes two students"),
        ({"a": [0.1], "b": [0.2]}, "takes two tiles"),
        ({"a": [0.1, 0.2], "b": [0.2, 1.1]}, "not a number between 0 and 1"),
        ({"a": [0.1, 0.2], "b": [0.2, float("nan")]}, "not a number between 0 and 1"),
        ({"a": [0.1, 0.2], "b": [0.2]}, "same shape"),
    ],
)
def test_what_a_caller_must_not_give(students: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        total_interval(students, confidence=0.95)


def test_one_student_disagrees_with_nobody() -> None:
    for measure in (mutual_information, student_spread):
        with pytest.raises(ValueError, match="takes two students"):
            measure([[0.1, 0.2]])
