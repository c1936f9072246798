"""A new site whose scores are shifted and scaled: what is restored, over drawn repeats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import beta, norm

from medkd.errors import StageError
from medkd.slide_level.calibration import (
    CalibrationMap,
    Isotonic,
    Platt,
    Recalibrated,
    Temperature,
    Uncalibrated,
    calibration_from_json,
)
from medkd.slide_level.operating_point import exact_interval
from medkd.slide_level.recalibration import Recalibration, recalibrate, update_map

SCALE, SHIFT = 0.6, -1.2
"""What the new scanner does to the logit of a score."""

OLD_THRESHOLD = float(expit(2 * (1 + norm.ppf(0.05))))
"""At the old site scores have the logits 2 N(+-1, 1): 95% of the positives reach this."""


def new_site(
    seed: int, positives: int = 30, negatives: int = 60, *, scale: float = SCALE,
    shift: float = SHIFT,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    random = np.random.default_rng(seed)
    labels = np.arange(positives + negatives) < positives
    drawn = 2 * random.normal(np.where(labels, 1.0, -1.0))
    return labels, expit(scale * drawn + shift)


def recalibrated(
    labels: np.ndarray, scores: np.ndarray, old_map: CalibrationMap | None = None, **options
) -> Recalibration:
    old = Uncalibrated() if old_map is None else old_map
    return recalibrate(labels, scores, old, OLD_THRESHOLD, date="2030-01-02", **options)


def true_sensitivities(found: Recalibration, seed: int) -> tuple[float, float]:
    """Of the old and of the new threshold, on 20,000 other positives of the new site."""
    _, scores = new_site(10_000 + seed, 20_000, 0)
    return (
        float(np.mean(scores >= OLD_THRESHOLD)),
        float(np.mean(found.map(scores) >= found.new_point.threshold)),
    )


def restored(repeats: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True sensitivity before and after, and whether the stated interval holds the latter."""
    rows = []
    for seed in range(repeats):
        found = recalibrated(*new_site(seed))
        before, after = true_sensitivities(found, seed)
        low, high = found.new_point.sensitivity_interval
        rows.append((before, after, low <= after <= high and low <= 0.95 <= high))
    before, after, covered = np.array(rows).T
    return before, after, covered


def check_restored(repeats: int) -> None:
    before, after, covered = restored(repeats)
    assert before.mean() < 0.87
    # 29 of 30 must be found, so that the true sensitivity is Beta(29, 2), whatever the scores are.
    expected = beta(29, 2)
    assert after.mean() == pytest.approx(
        expected.mean(), abs=3.5 * expected.std() / np.sqrt(repeats)
    )
    assert covered.mean() >= 0.93


def test_sensitivity_is_restored_within_the_interval_it_states() -> None:
    check_restored(120)


@pytest.mark.slow
def test_sensitivity_is_restored_within_the_interval_it_states_in_many_repeats() -> None:
    check_restored(2000)


def test_the_interval_covers_by_theory_too() -> None:
    low, high = exact_interval(29, 30, 0.95)
    assert low < 0.95 < high
    assert beta.cdf(high, 29, 2) - beta.cdf(low, 29, 2) > 0.97


def test_calibration_is_restored() -> None:
    """Over 30 sites, the cross-validated log loss is lower and the intercept nearer to 0."""
    found = [recalibrated(*new_site(seed)) for seed in range(30)]
    gain = np.array(
        [one.old_calibration.log_loss.value - one.new_calibration.log_loss.value for one in found]
    )
    assert gain.mean() > 3 * gain.std() / np.sqrt(30)
    old = np.mean([one.old_calibration.intercept.value for one in found])
    new = np.mean([one.new_calibration.intercept.value for one in found])
    assert old > 0.5
    assert abs(new) < 0.2


def test_many_patients_give_the_true_map() -> None:
    """At equal shares the log odds are (logit s - SHIFT) / SCALE."""
    found = recalibrated(*new_site(0, 20_000, 20_000))
    assert isinstance(found.map, Recalibrated)
    assert found.map.slope == pytest.approx(1 / SCALE, rel=0.03)
    assert found.map.intercept == pytest.approx(-SHIFT / SCALE, rel=0.03)
    assert found.parameters == 2
    assert found.shrinkage > 0.999
    assert found.new_calibration.slope.value == pytest.approx(1, abs=0.05)
    assert found.new_calibration.intercept.value == pytest.approx(0, abs=0.05)


def test_patients_picked_by_label_are_weighed_by_the_prevalence_of_the_site() -> None:
    """Half of the patients are positive and a tenth at the site: log odds lower by ln 9."""
    labels, scores = new_site(0, 20_000, 20_000)
    picked = recalibrated(labels, scores, prevalence=0.1)
    plain = recalibrated(labels, scores)
    assert isinstance(picked.map, Recalibrated)
    assert isinstance(plain.map, Recalibrated)
    assert picked.map.slope == pytest.approx(plain.map.slope, rel=1e-3)
    difference = plain.map.intercept - picked.map.intercept
    assert difference == pytest.approx(np.log(9), abs=1e-2)
    # Among the patients picked the new map is right once their share is taken into account.
    assert picked.new_calibration.intercept.value == pytest.approx(0, abs=0.05)
    # The threshold moves with the probabilities: the same patients lie above it.
    np.testing.assert_array_equal(
        picked.map(scores) >= picked.new_point.threshold,
        plain.map(scores) >= plain.new_point.threshold,
    )


@pytest.mark.parametrize("old_map", [Uncalibrated(), Temperature(temperature=1.5)])
@pytest.mark.parametrize("parameters", [1, 2])
def test_what_is_fitted_and_how_far_it_is_shrunk(parameters: int, old_map: CalibrationMap) -> None:
    """By a naive optimiser over Platt's targets, and the likelihood ratio worked out anew."""
    labels, scores = new_site(5, scale=0.3, shift=-0.5)
    found = update_map(labels, scores, old_map, parameters, picked=0.3)
    log_odds = logit(old_map(scores))
    targets = np.where(labels, 31 / 32, 1 / 62)

    def loss(theta: np.ndarray) -> float:
        p = expit(theta[0] * log_odds + (theta[1] if parameters == 2 else 0) + 0.3)
        return float(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum())

    old = np.array([1.0, 0.0])[:parameters]
    naive = minimize(loss, old, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    chi2 = 2 * (loss(old) - naive.fun)
    assert chi2 > parameters
    shrinkage = 1 - parameters / chi2
    assert found.shrinkage == pytest.approx(shrinkage, abs=1e-6)
    assert isinstance(found.map, Recalibrated)
    assert found.map.old == old_map
    assert found.map.slope == pytest.approx(1 + shrinkage * (naive.x[0] - 1), abs=1e-5)
    expected = shrinkage * naive.x[1] if parameters == 2 else 0
    assert found.map.intercept == pytest.approx(expected, abs=1e-5)


def test_without_a_shift_the_old_map_is_left_nearly_alone() -> None:
    """The old map is right at the new site: what chance makes of it is halved at the least."""
    factors = [
        update_map(*new_site(seed, 30, 30, scale=1, shift=0), Uncalibrated(), 2).shrinkage
        for seed in range(60)
    ]
    assert np.mean(factors) < 0.35
    assert np.mean(np.array(factors) == 0) > 0.4
    shifted = [update_map(*new_site(seed, 30, 30), Uncalibrated(), 2) for seed in range(60)]
    assert np.mean([one.shrinkage for one in shifted]) > 0.8


@pytest.mark.parametrize(("positives", "parameters"), [(9, 0), (10, 1), (19, 1), (20, 2)])
def test_few_patients_fit_less(positives: int, parameters: int) -> None:
    found = recalibrated(*new_site(1, positives, 40, shift=-4))
    assert found.parameters == parameters
    kept = (
        f"The old calibration map is kept: {positives} positive patients are too few to calibrate "
        "on, each parameter takes 10 (Peduzzi et al. 1996).",
    )
    lowest = (
        f"With {positives} positive patients the threshold rests on the lowest of their scores "
        "alone; 95% of 20 would let one be wrong.",
    )
    assert found.warnings == (kept if parameters == 0 else ()) + (lowest if positives < 20 else ())
    assert (found.map == Uncalibrated()) == (parameters == 0)


def test_a_single_positive_patient_moves_the_threshold_and_not_the_map() -> None:
    labels, scores = np.arange(5) < 1, np.array([0.6, 0.1, 0.2, 0.3, 0.7])
    found = recalibrated(labels, scores)
    assert found.map == Uncalibrated()
    assert found.new_point.threshold == 0.6
    assert found.new_calibration == found.old_calibration
    assert [text.split(":")[0] for text in found.warnings] == [
        "The old calibration map is kept", "There is a single positive patient",
    ]  # fmt: skip


def test_scores_that_fall_with_the_label_leave_the_old_map() -> None:
    labels, scores = new_site(0, scale=-1, shift=0)
    found = recalibrated(labels, scores)
    assert found.map == Uncalibrated()
    assert found.warnings == (
        "The old calibration map is kept: at the new site scores do not rise with the label.",
    )


def test_a_map_that_is_level_at_the_new_site_is_kept_and_told() -> None:
    old_map = Isotonic(scores=(0.97, 0.99), probabilities=(0.1, 0.9))
    found = recalibrated(*new_site(0, shift=-4), old_map)
    assert found.map == old_map
    assert found.warnings == (
        "The old calibration map is kept: the old map is level over all scores of the new site.",
    )
    # One probability for all: nobody is missed, and nobody is spared.
    assert (found.new_point.sensitivity, found.new_point.specificity) == (1, 0)


def test_separated_classes_give_a_finite_slope() -> None:
    labels = np.arange(60) < 30
    scores = np.where(labels, np.linspace(0.55, 0.6, 60), np.linspace(0.4, 0.45, 60))
    found = recalibrated(labels, scores)
    assert isinstance(found.map, Recalibrated)
    assert found.map.slope < 30
    assert 0.9 < found.map(0.58) < 0.99


def test_old_and_new_figures_are_of_the_new_site() -> None:
    labels, scores = new_site(2)
    old_map = Platt(slope=0.9, intercept=0.1)
    found = recalibrated(labels, scores, old_map, cohort="site B")
    above = old_map(scores) >= OLD_THRESHOLD
    assert found.old_point.threshold == OLD_THRESHOLD
    assert found.old_point.sensitivity == above[labels].mean()
    assert found.old_point.specificity == 1 - above[~labels].mean()
    assert found.old_point.sensitivity_interval == exact_interval(
        int(above[labels].sum()), 30, 0.95
    )
    assert (found.new_point.target_sensitivity, found.new_point.sensitivity) == (0.95, 29 / 30)
    assert (found.new_point.cohort, found.new_point.patients) == ("site B", 90)
    p = old_map(scores)
    expected = -np.mean(np.log(np.where(labels, p, 1 - p)))
    assert found.old_calibration.log_loss.value == pytest.approx(expected)
    # Cross-validated, the new map cannot look as good as on its own patients.
    p = found.map(scores)
    apparent = -np.mean(np.log(np.where(labels, p, 1 - p)))
    assert found.new_calibration.log_loss.value > apparent


def test_the_same_patients_give_the_same() -> None:
    assert recalibrated(*new_site(3)) == recalibrated(*new_site(3))


def test_as_json() -> None:
    found = recalibrated(*new_site(2))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert calibration_from_json(content["map"]) == found.map
    assert content["old"]["operating_point"]["threshold"] == OLD_THRESHOLD
    assert content["new"]["operating_point"]["date"] == "2030-01-02"
    assert content["new"]["calibration"]["patients"] == 90


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prevalence": 0.0}, "the prevalence is 0, and must lie between 0 and 1. Change it."),
        ({"prevalence": float("nan")},
         "the prevalence is nan, and must lie between 0 and 1. Change it."),
        ({"target_sensitivity": 1.5},
         "the target sensitivity is 1.5, and must lie above 0 and at most at 1. Change it; 0.95 is "
         "usual."),
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict, what: str) -> None:
    with pytest.raises(StageError) as caught:
        recalibrated(*new_site(0), **options)
    assert str(caught.value) == f"patients of the new site: {what}"


@pytest.mark.parametrize(
    ("labels", "scores", "what"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "there is no negative patient to recalibrate on"),
        ([1, 0], [0.2, 0.1], "2 patients are too few to recalibrate on"),
        ([1, 0, 0], [0.2, 0.1, np.nan], "a score is not a number"),
    ],
)
def test_messages(labels: list[int], scores: list[float], what: str) -> None:
    with pytest.raises(StageError) as caught:
        recalibrated(np.array(labels), np.array(scores))
    assert str(caught.value).startswith(f"patients of the new site: {what}")
