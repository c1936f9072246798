"""Counts, and shares with exact and Wilson intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import confusion_matrix

from medkd.errors import StageError
from medkd.slide_level.confusion import ConfusionCounts, accuracy_measures, confusion_counts
from medkd.slide_level.statistics import Estimate


@pytest.mark.parametrize("seed", range(5))
def test_counts_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, scores = random.random(50) < 0.4, random.random(50).round(1)
    (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= 0.5).tolist()
    found = confusion_counts(labels, scores, 0.5)
    assert found == ConfusionCounts(tp, fp, fn, tn)
    assert (found.positives, found.negatives) == (labels.sum(), (~labels).sum())


def test_shares_by_hand() -> None:
    found = accuracy_measures(ConfusionCounts(18, 10, 2, 70), confidence=0.95)
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == {
        "sensitivity": 18 / 20,
        "specificity": 70 / 80,
        "ppv": 18 / 28,
        "npv": 70 / 72,
        "accuracy": 88 / 100,
        "ruled_out": 72 / 100,
    }


def test_exact_intervals_are_quantiles_of_beta_distributions() -> None:
    found = accuracy_measures(ConfusionCounts(18, 10, 2, 70), confidence=0.9)["sensitivity"]
    expected = beta.ppf(0.05, 18, 3), beta.ppf(0.95, 19, 2)
    assert (found.lower, found.upper) == pytest.approx(expected)


def test_wilson_intervals_by_the_formula() -> None:
    """(p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n) with p = 0.9, n = 20, z = 1.959964."""
    found = accuracy_measures(ConfusionCounts(18, 10, 2, 70), confidence=0.95, method="wilson")
    z, n, p = 1.959964, 20, 0.9
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(p + z**2 / (2 * n) + side) / (1 + z**2 / n) for side in (-half, half)]
    sensitivity = found["sensitivity"]
    np.testing.assert_allclose([sensitivity.lower, sensitivity.upper], expected, atol=1e-6)


def test_what_nobody_counts_in_has_a_reason() -> None:
    found = accuracy_measures(ConfusionCounts(0, 0, 3, 0), confidence=0.95)
    assert found["specificity"] == Estimate(None, reason="there is no negative patient")
    assert found["ppv"] == Estimate(None, reason="no patient is called positive")
    assert found["sensitivity"].value == 0
    empty = accuracy_measures(ConfusionCounts(0, 0, 0, 0), confidence=0.95)
    assert empty["accuracy"] == Estimate(None, reason="there is no patient")
    assert empty["npv"] == Estimate(None, reason="no patient is called negative")
    assert empty["sensitivity"] == Estimate(None, reason="there is no positive patient")


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(StageError) as caught:
        confusion_counts(np.array([True, False]), np.array([0.5, np.nan]), 0.5, where="site B")
    assert str(caught.value) == "site B: a score is not a number. Look at the predictions."
