"""The highest threshold that reaches the target sensitivity, and what it reached."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import recall_score, roc_curve

from medkd.errors import StageError
from medkd.slide_level.operating_point import (
    OperatingPoint,
    choose_operating_point,
    exact_interval,
)


def choose(positives: list[float], negatives: list[float], target: float = 0.95) -> OperatingPoint:
    labels = np.array([True] * len(positives) + [False] * len(negatives))
    scores = np.array([*positives, *negatives])
    return choose_operating_point(labels, scores, target, confidence=0.95, date="2030-01-02")


def test_of_twenty_positives_one_may_be_missed() -> None:
    positives = [i / 100 for i in range(41, 61)]
    point = choose(positives, [0.1, 0.2, 0.415, 0.42, 0.9])
    assert point.threshold == 0.42
    assert point.sensitivity == 19 / 20
    assert point.specificity == 3 / 5
    assert (point.patients, point.positives) == (25, 20)


def test_of_nineteen_positives_none_may_be_missed() -> None:
    positives = [i / 100 for i in range(41, 60)]
    assert choose(positives, [0.1]).threshold == 0.41


def test_positives_tied_at_the_threshold_are_all_found() -> None:
    point = choose([0.9, 0.8, 0.5, 0.5, 0.5], [0.1], target=0.6)
    assert point.threshold == 0.5
    assert point.sensitivity == 1


def test_negatives_tied_at_the_threshold_count_as_positive() -> None:
    point = choose([0.9, 0.5], [0.5, 0.5, 0.49, 0.1])
    assert point.threshold == 0.5
    assert point.specificity == 2 / 4


def test_equal_scores_everywhere_call_everyone_positive() -> None:
    point = choose([0.3] * 4, [0.3] * 6)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.3, 1, 0)


@pytest.mark.parametrize(
    ("target", "count", "needed"), [(0.95, 40, 38), (0.07, 100, 7), (0.9, 10, 9), (1.0, 13, 13)]
)
def test_a_target_that_is_a_whole_number_of_patients_needs_no_more(
    target: float, count: int, needed: int
) -> None:
    positives = [i / 200 for i in range(1, count + 1)]
    assert choose(positives, [0.0], target).sensitivity == needed / count


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scikit_learns_roc_curve(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.arange(60) < random.integers(5, 55)
    # One decimal: many ties within and between the classes.
    scores = np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(1)
    target = float(random.choice([0.5, 0.8, 0.95, 1.0]))
    point = choose_operating_point(labels, scores, target, confidence=0.95, date="")
    _, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    assert point.threshold == thresholds[np.argmax(found >= target - 1e-12)]
    above = scores >= point.threshold
    assert point.sensitivity == pytest.approx(recall_score(labels, above))
    assert point.specificity == pytest.approx(recall_score(~labels, ~above))


def test_the_order_of_patients_does_not_matter() -> None:
    random = np.random.default_rng(0)
    labels, scores = random.random(30) < 0.4, random.random(30)
    order = random.permutation(30)
    options = {"confidence": 0.95, "date": ""}
    assert choose_operating_point(labels, scores, 0.9, **options) == choose_operating_point(
        labels[order], scores[order], 0.9, **options
    )


def test_exact_intervals_at_the_ends_have_a_closed_form() -> None:
    """With all of n found the lower end is (alpha / 2)^(1 / n)."""
    assert exact_interval(10, 10, 0.95) == pytest.approx((0.025 ** (1 / 10), 1))
    assert exact_interval(0, 10, 0.95) == pytest.approx((0, 1 - 0.025 ** (1 / 10)))


def test_exact_intervals_are_quantiles_of_beta_distributions() -> None:
    assert exact_interval(19, 20, 0.9) == pytest.approx(
        (beta.ppf(0.05, 19, 2), beta.ppf(0.95, 20, 1))
    )


def test_the_point_carries_the_intervals_of_its_own_counts() -> None:
    point = choose([0.9, 0.8, 0.7], [0.1, 0.2, 0.3, 0.75])
    assert point.sensitivity_interval == exact_interval(3, 3, 0.95)
    assert point.specificity_interval == exact_interval(3, 4, 0.95)


def test_it_survives_json() -> None:
    point = choose([0.9, 0.5], [0.1, 0.2])
    content = json.loads(json.dumps(point.to_json()))
    assert content == point.to_json()
    assert content["threshold"] == 0.5
    assert content["date"] == "2030-01-02"
    assert content["cohort"] == "validation patients"


@pytest.mark.parametrize(
    ("positives", "negatives", "what", "remedy"),
    [
        ([], [0.1, 0.2], "there is no positive patient to choose the operating point on",
         "Give validation a larger share, or add patients."),
        ([0.9], [], "there is no negative patient to choose the operating point on",
         "Give validation a larger share, or add patients."),
        ([0.9, float("nan")], [0.1], "a score is not a number", "Look at predictions.parquet."),
    ],
)  # fmt: skip
def test_messages(positives: list[float], negatives: list[float], what: str, remedy: str) -> None:
    with pytest.raises(StageError) as caught:
        choose(positives, negatives)
    assert str(caught.value) == f"validation patients: {what}. {remedy}"
