"""Bayes by hand, intervals by other routes to the same formula, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats.contingency import relative_risk

from medkd.slide_level.confusion import ConfusionCounts
from medkd.slide_level.predictive_values import likelihood_ratios, predictive_values
from medkd.slide_level.statistics import Estimate

COUNTS = ConfusionCounts(18, 10, 2, 70)


def test_bayes_by_hand() -> None:
    """Sensitivity 0.9 and specificity 0.875 at a prevalence of 4%."""
    found = predictive_values(COUNTS, 0.04, confidence=0.95)
    assert found.ppv.value == pytest.approx(0.036 / (0.036 + 0.125 * 0.96))
    assert found.npv.value == pytest.approx(0.84 / (0.84 + 0.1 * 0.04))


def test_at_the_cohorts_own_prevalence_they_are_shares_of_counts() -> None:
    found = predictive_values(COUNTS, 0.2, confidence=0.95)
    assert (found.ppv.value, found.npv.value) == (pytest.approx(18 / 28), pytest.approx(70 / 72))


def test_logit_intervals_are_those_of_the_likelihood_ratios() -> None:
    """The odds of PPV are LR+ times the prior odds, a constant: Katz's interval, moved."""
    odds = 0.04 / 0.96
    found = predictive_values(COUNTS, 0.04, confidence=0.95)
    ratio = relative_risk(18, 20, 10, 80).confidence_interval(0.95)
    expected = [odds * end / (1 + odds * end) for end in ratio]
    np.testing.assert_allclose([found.ppv.lower, found.ppv.upper], expected, rtol=1e-12)
    ratio = relative_risk(70, 80, 2, 20).confidence_interval(0.95)
    expected = [end / odds / (1 + end / odds) for end in ratio]
    np.testing.assert_allclose([found.npv.lower, found.npv.upper], expected, rtol=1e-12)


def test_likelihood_ratios_are_relative_risks() -> None:
    found = likelihood_ratios(COUNTS, confidence=0.9)
    assert found.positive.value == pytest.approx(7.2)
    assert found.negative.value == pytest.approx(0.1 / 0.875)
    for estimate, counts in ((found.positive, (18, 20, 10, 80)), (found.negative, (2, 20, 70, 80))):
        expected = relative_risk(*counts).confidence_interval(0.9)
        np.testing.assert_allclose([estimate.lower, estimate.upper], list(expected), rtol=1e-12)


def test_without_a_false_positive_the_ratio_is_infinite_and_its_lower_end_is_not() -> None:
    """(18.5 / 21) / (0.5 / 81), its logarithm less z times its standard error."""
    found = likelihood_ratios(ConfusionCounts(18, 0, 2, 80), confidence=0.95).positive
    error = (1 / 18.5 - 1 / 21 + 1 / 0.5 - 1 / 81) ** 0.5
    expected = np.exp(np.log(18.5 / 21 / (0.5 / 81)) - 1.959964 * error)
    assert found.lower == pytest.approx(expected, rel=1e-5)
    assert (found.value, found.upper) == (None, None)
    assert found.reason == "there is no false positive: the ratio is infinite"


def test_without_a_miss_the_ratio_is_0_with_an_upper_end() -> None:
    found = likelihood_ratios(ConfusionCounts(20, 10, 0, 70), confidence=0.95).negative
    error = (1 / 0.5 - 1 / 21 + 1 / 70.5 - 1 / 81) ** 0.5
    expected = np.exp(np.log(0.5 / 21 / (70.5 / 81)) + 1.959964 * error)
    assert found == Estimate(0, 0, pytest.approx(expected, rel=1e-5))


def test_a_perfect_test_has_adjusted_intervals() -> None:
    """Each count plus z²/2 = 1.92: sensitivity 21.92/23.84, specificity 81.92/83.84."""
    found = predictive_values(ConfusionCounts(20, 0, 0, 80), 0.1, confidence=0.95)
    assert (found.ppv.value, found.ppv.upper) == (1, 1)
    added = 1.959964**2 / 2
    sensitivity = (20 + added) / (20 + 2 * added)
    specificity = (80 + added) / (80 + 2 * added)
    centre = np.log(sensitivity * 0.1 / ((1 - specificity) * 0.9))
    variance = (1 - sensitivity) / sensitivity / (20 + 2 * added)
    variance += specificity / (1 - specificity) / (80 + 2 * added)
    expected = 1 / (1 + np.exp(-(centre - 1.959964 * variance**0.5)))
    assert found.ppv.lower == pytest.approx(expected, rel=1e-5)


def test_predictive_values_cover_at_a_prevalence_that_is_not_the_cohorts() -> None:
    random = np.random.default_rng(0)
    ppv, npv = 0.85 * 0.1 / (0.85 * 0.1 + 0.2 * 0.9), 0.8 * 0.9 / (0.8 * 0.9 + 0.15 * 0.1)
    inside = np.zeros(2)
    for found, spared in zip(
        random.binomial(60, 0.85, 3000), random.binomial(90, 0.8, 3000), strict=True
    ):
        counts = ConfusionCounts(int(found), 90 - int(spared), 60 - int(found), int(spared))
        values = predictive_values(counts, 0.1, confidence=0.95)
        inside += [
            values.ppv.lower <= ppv <= values.ppv.upper,
            values.npv.lower <= npv <= values.npv.upper,
        ]
    assert ((inside / 3000 >= 0.93) & (inside / 3000 <= 0.97)).all()


def test_what_cannot_be_had_has_a_reason() -> None:
    absent = Estimate(None, reason="a class is absent")
    values = predictive_values(ConfusionCounts(3, 0, 1, 0), 0.1, confidence=0.95)
    assert (values.ppv, values.npv) == (absent, absent)
    ratios = likelihood_ratios(ConfusionCounts(3, 0, 1, 0), confidence=0.95)
    assert (ratios.positive, ratios.negative) == (absent, absent)
    nobody = predictive_values(ConfusionCounts(0, 0, 4, 6), 0.1, confidence=0.95)
    assert nobody.ppv == Estimate(None, reason="no patient is called positive")
    assert nobody.npv.value == pytest.approx(0.9)
    ratio = likelihood_ratios(ConfusionCounts(0, 0, 4, 6), confidence=0.95).positive
    assert ratio == Estimate(None, reason="no patient has this call")


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, float("nan")])
def test_a_prevalence_out_of_range_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="a prevalence lies between 0 and 1"):
        predictive_values(COUNTS, prevalence, confidence=0.95)
