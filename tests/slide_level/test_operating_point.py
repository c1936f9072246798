"""Thresholds by each rule, and what they reach."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm
from sklearn.metrics import recall_score, roc_curve

from medkd.errors import StageError
from medkd.slide_level.operating_point import (
    OperatingPoint,
    at_threshold,
    choose_operating_point,
    cost_weighted_point,
    exact_interval,
    fixed_specificity_point,
    youden_point,
)

OPTIONS = {"confidence": 0.95, "date": "2030-01-02"}


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


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (1, 7), (29, 30), (95, 100), (500, 500)])
def test_exact_intervals_are_those_of_scipy(hits: int, total: int) -> None:
    expected = binomtest(hits, total).proportion_ci(0.95, method="exact")
    assert exact_interval(hits, total, 0.95) == pytest.approx((expected.low, expected.high))


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
    assert content["rule"] == "fixed sensitivity"
    assert content["prevalence"] == 0.5
    assert content["confidence"] == 0.95
    assert content["cost_ratio"] is None


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


def cohort(positives: list[float], negatives: list[float]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([True] * len(positives) + [False] * len(negatives))
    return labels, np.array([*positives, *negatives])


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(60) < random.integers(5, 55)
    # One decimal: many ties within and between the classes.
    return labels, np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(1)


def test_of_twenty_negatives_one_may_be_called() -> None:
    """19 of 20 lie below 0.70, the score of the negative that is called."""
    negatives = [0.70, *(i / 100 for i in range(1, 20))]
    point = fixed_specificity_point(*cohort([0.1, 0.5, 0.8, 0.9], negatives), **OPTIONS)
    assert point.threshold == 0.5
    assert point.specificity == 19 / 20
    assert point.sensitivity == 3 / 4
    assert (point.rule, point.target_specificity, point.target_sensitivity) == (
        "fixed specificity", 0.95, None,
    )  # fmt: skip
    assert point.method == "lowest threshold that reaches a specificity of 95%"


@pytest.mark.parametrize(
    ("count", "target", "told"),
    [
        (20, 0.95, ()),
        (19, 0.95, ("With 19 {} patients the threshold rests on the {} of their scores alone; 95% "
                    "of 20 would let one be wrong.",)),
        (39, 0.975, ("With 39 {} patients the threshold rests on the {} of their scores alone; "
                     "97.5% of 40 would let one be wrong.",)),
        (40, 0.975, ()),
        (19, 1.0, ()),
        (1, 0.95, ("There is a single {} patient: what the threshold does to others of the class "
                   "is anybody's guess.",)),
    ],
)  # fmt: skip
def test_few_patients_are_told(count: int, target: float, told: tuple[str, ...]) -> None:
    few, many = [i / 100 for i in range(count)], [i / 100 for i in range(60)]
    by_sensitivity = choose(few, many, target)
    assert by_sensitivity.warnings == tuple(text.format("positive", "lowest") for text in told)
    by_specificity = fixed_specificity_point(*cohort(many, few), target, **OPTIONS)
    assert by_specificity.warnings == tuple(text.format("negative", "highest") for text in told)


def test_two_patients_give_a_point_that_warns_of_both() -> None:
    for point in (choose([0.9], [0.1]), youden_point(*cohort([0.9], [0.1]), **OPTIONS)):
        assert (point.threshold, point.sensitivity, point.specificity) == (0.9, 1, 1)
        assert point.sensitivity_interval == pytest.approx((0.025, 1))
        assert [text.split(":")[0] for text in point.warnings] == [
            "There is a single positive patient", "There is a single negative patient",
        ]  # fmt: skip


def test_methods_tell_their_numbers_unrounded() -> None:
    labels, scores = cohort([0.5, 0.9], [0.1, 0.9])
    point = fixed_specificity_point(labels, scores, 0.975, **OPTIONS)
    assert point.method == "lowest threshold that reaches a specificity of 97.5%"
    point = cost_weighted_point(labels, scores, cost_ratio=20, prevalence=0.125, **OPTIONS)
    assert point.method == (
        "threshold of the lowest cost, a missed positive costing 20 false alarms at a prevalence "
        "of 12.5%"
    )


def test_a_specificity_that_no_score_reaches_lies_above_all_of_them() -> None:
    point = fixed_specificity_point(*cohort([0.5, 0.9], [0.1, 0.9]), 1.0, **OPTIONS)
    assert point.threshold == np.nextafter(0.9, 1)
    assert (point.sensitivity, point.specificity) == (0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_fixed_specificity_agrees_with_scikit_learns_roc_curve(seed: int) -> None:
    labels, scores = drawn(seed)
    point = fixed_specificity_point(labels, scores, 0.8, **OPTIONS)
    false, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = np.flatnonzero(false <= 0.2 + 1e-12)[-1]
    assert point.sensitivity == pytest.approx(found[best])
    assert point.specificity == pytest.approx(1 - false[best])
    if np.isfinite(thresholds[best]):
        assert point.threshold == thresholds[best]


@pytest.mark.parametrize("seed", range(20))
def test_youden_agrees_with_scikit_learns_roc_curve(seed: int) -> None:
    labels, scores = drawn(seed)
    point = youden_point(labels, scores, **OPTIONS)
    false, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    ties = np.flatnonzero(np.isclose(found - false, (found - false).max(), atol=1e-12, rtol=0))
    assert point.sensitivity + point.specificity - 1 == pytest.approx((found - false).max())
    assert point.threshold == thresholds[ties[-1]]
    assert point.rule == "Youden"


def test_of_equal_indices_youden_takes_the_one_that_misses_fewer() -> None:
    """At 0.4: 2/2 + 1/2; at 0.8: 1/2 + 2/2."""
    point = youden_point(*cohort([0.4, 0.8], [0.1, 0.6]), **OPTIONS)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.4, 1, 0.5)


@pytest.mark.parametrize(
    ("cost_ratio", "prevalence", "threshold"),
    [
        (10, 0.1, 0.2),
        (1, 0.1, np.nextafter(0.9, 1)),
        (0.01, 0.1, np.nextafter(0.9, 1)),
        (1, 0.5, 0.2),
        (1000, 0.5, 0.2),
    ],
)
def test_costs_worked_out_by_hand(cost_ratio: float, prevalence: float, threshold: float) -> None:
    """Positives 0.2 and 0.8, negatives 0.1, 0.15, 0.5 and 0.9.

    (missed, called) of 0.1, 0.15, 0.2, 0.5, 0.8, 0.9 and above are (0, 1), (0, 3/4), (0, 1/2),
    (1/2, 1/2), (1/2, 1/4), (1, 1/4) and (1, 0).
    """
    labels, scores = cohort([0.2, 0.8], [0.1, 0.15, 0.5, 0.9])
    thresholds = [0.1, 0.15, 0.2, 0.5, 0.8, 0.9, np.nextafter(0.9, 1)]
    missed = [0, 0, 0, 1 / 2, 1 / 2, 1, 1]
    called = [1, 3 / 4, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 0]
    costs = [
        prevalence * cost_ratio * m + (1 - prevalence) * c
        for m, c in zip(missed, called, strict=True)
    ]
    assert thresholds[int(np.argmin(costs))] == threshold
    point = cost_weighted_point(
        labels, scores, cost_ratio=cost_ratio, prevalence=prevalence, **OPTIONS
    )
    assert point.threshold == threshold
    assert (point.rule, point.cost_ratio, point.stated_prevalence) == (
        "cost-weighted", cost_ratio, prevalence,
    )  # fmt: skip
    assert point.prevalence == 1 / 3


def test_equal_weights_at_the_costs_of_youden_give_youdens_point() -> None:
    """Prevalence 1/2 and a cost of 1 weigh sensitivity and specificity alike."""
    for seed in range(20):
        labels, scores = drawn(seed)
        point = cost_weighted_point(labels, scores, cost_ratio=1, prevalence=0.5, **OPTIONS)
        assert point.threshold == youden_point(labels, scores, **OPTIONS).threshold


def test_the_best_cost_of_two_normals_is_where_the_likelihood_ratio_says() -> None:
    """Of N(0, 1) and N(2, 1): 2 t - 2 = ln((1 - prevalence) / (prevalence cost))."""
    share = (np.arange(20_000) + 0.5) / 20_000
    labels, scores = cohort(list(norm.ppf(share) + 2), list(norm.ppf(share)))
    point = cost_weighted_point(labels, scores, cost_ratio=5, prevalence=0.1, **OPTIONS)
    assert point.threshold == pytest.approx(1 + np.log(0.9 / 0.5) / 2, abs=0.02)


@pytest.mark.parametrize(
    "choose_by",
    [
        choose_operating_point,
        fixed_specificity_point,
        youden_point,
        lambda *a, **k: cost_weighted_point(*a, cost_ratio=1, prevalence=0.2, **k),
    ],
)
def test_equal_scores_give_all_or_none(choose_by) -> None:
    point = choose_by(np.arange(10) < 4, np.full(10, 0.3), **OPTIONS)
    assert (point.sensitivity, point.specificity) in {(1, 0), (0, 1)}
    assert point.threshold in {0.3, np.nextafter(0.3, 1)}
    assert point.sensitivity_interval in {exact_interval(4, 4, 0.95), exact_interval(0, 4, 0.95)}


def test_a_given_threshold_reaches_what_counting_says() -> None:
    labels, scores = cohort([0.2, 0.6, 0.6, 0.9], [0.1, 0.6, 0.59])
    point = at_threshold(labels, scores, 0.6, cohort="site B", **OPTIONS)
    assert (point.threshold, point.rule, point.cohort) == (0.6, "given", "site B")
    assert point.sensitivity == 3 / 4
    assert point.specificity == 2 / 3
    assert point.sensitivity_interval == exact_interval(3, 4, 0.95)


def test_the_interval_of_a_fixed_sensitivity_covers_although_the_same_patients_chose() -> None:
    """Of 30 uniform positives 29 must be found: the true sensitivity is Beta(29, 2)."""
    low, high = choose([i / 30 for i in range(30)], [0.0]).sensitivity_interval
    assert beta.cdf(low, 29, 2) == pytest.approx(0.025)
    assert beta.cdf(high, 29, 2) > 0.975


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda y, s: choose_operating_point(y, s, 0.0, **OPTIONS),
         "the target sensitivity is 0, and must lie above 0 and at most at 1. Change it; 0.95 is "
         "usual."),
        (lambda y, s: choose_operating_point(y, s, float("nan"), **OPTIONS),
         "the target sensitivity is nan, and must lie above 0 and at most at 1. Change it; 0.95 "
         "is usual."),
        (lambda y, s: fixed_specificity_point(y, s, 1.2, **OPTIONS),
         "the target specificity is 1.2, and must lie above 0 and at most at 1. Change it; 0.95 "
         "is usual."),
        (lambda y, s: cost_weighted_point(y, s, cost_ratio=0, prevalence=0.1, **OPTIONS),
         "the cost of a missed positive is 0 false alarms, and must be above 0. Change it."),
        (lambda y, s: cost_weighted_point(y, s, cost_ratio=2, prevalence=1, **OPTIONS),
         "the stated prevalence is 1, and must lie between 0 and 1. Change it."),
    ],
)  # fmt: skip
def test_targets_out_of_range(call, what: str) -> None:
    with pytest.raises(StageError) as caught:
        call(np.array([True, False, True]), np.array([0.1, 0.2, 0.3]))
    assert str(caught.value) == f"validation patients: {what}"
