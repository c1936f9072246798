"""Net benefit by hand, and bands that are those of a naive bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.errors import StageError
from medkd.slide_level.decision_curve import decision_curve
from medkd.slide_level.scored import scored_patients

LABELS = np.arange(10) < 4
SCORES = np.array([0.9, 0.7, 0.4, 0.15, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05])
OPTIONS = {"resamples": 400, "confidence": 0.95}


def test_net_benefit_by_hand() -> None:
    """At 0.25: 3 found, 3 alarmed of 10, odds 1/3. At 0.5: 2 and 2, odds 1. At 0.85: 1 and 0."""
    found = decision_curve(scored_patients(LABELS, SCORES), np.array([0.25, 0.5, 0.85]), **OPTIONS)
    expected = [3 / 10 - 3 / 10 / 3, 2 / 10 - 2 / 10, 1 / 10]
    np.testing.assert_allclose(found.net_benefit, expected, atol=1e-12)
    expected = [0.4 - 0.6 / 3, 0.4 - 0.6, 0.4 - 0.6 * 0.85 / 0.15]
    np.testing.assert_allclose(found.treat_all, expected, atol=1e-12)
    assert found.treat_none.tolist() == [0, 0, 0]
    assert found.prevalence == 0.4


def test_below_every_score_it_is_treating_all() -> None:
    found = decision_curve(scored_patients(LABELS, SCORES), np.array([0.01]), **OPTIONS)
    np.testing.assert_allclose(found.net_benefit, found.treat_all, atol=1e-15)
    np.testing.assert_allclose([found.lower, found.upper], [found.treat_all] * 2, atol=1e-15)


def test_at_another_prevalence_by_hand() -> None:
    """Sensitivity 3/4, specificity 3/6, prevalence 0.1, odds 1/3."""
    found = decision_curve(
        scored_patients(LABELS, SCORES), np.array([0.25]), prevalence=0.1, **OPTIONS
    )
    np.testing.assert_allclose(found.net_benefit, [0.1 * 0.75 - 0.9 * 0.5 / 3])
    np.testing.assert_allclose(found.treat_all, [0.1 - 0.9 / 3])


def test_the_band_is_that_of_a_naive_bootstrap() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(200) < 60
    scores = 1 / (1 + np.exp(-random.normal(2 * labels - 1)))
    threshold = 0.3
    found = decision_curve(
        scored_patients(labels, scores), np.array([threshold]), resamples=4000, confidence=0.9
    )
    called = scores >= threshold
    true = random.choice(called[labels], (4000, 60)).sum(1)
    false = random.choice(called[~labels], (4000, 140)).sum(1)
    drawn = true / 200 - false / 200 * threshold / (1 - threshold)
    np.testing.assert_allclose(
        [found.lower[0], found.upper[0]], np.quantile(drawn, [0.05, 0.95]), atol=0.004
    )


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.array([True, False, False]), np.array([0.5, 0.1, 0.2]),
         "test: a decision curve needs two patients of each class, and there are 1 and 2. "
         "Add patients."),
        (np.zeros(3, bool), np.array([0.5, 0.1, 0.2]),
         "test: a decision curve needs two patients of each class, and there are 0 and 3. "
         "Add patients."),
        (np.arange(4) < 2, np.array([0.5, 0.1, 0.2, -1.5]),
         "test: a score is not a probability between 0 and 1. Calibrate the scores first."),
    ],
)  # fmt: skip
def test_messages(labels: np.ndarray, scores: np.ndarray, message: str) -> None:
    with pytest.raises(StageError) as caught:
        decision_curve(scored_patients(labels, scores), np.array([0.5]), where="test", **OPTIONS)
    assert str(caught.value) == message


@pytest.mark.parametrize(("threshold", "prevalence"), [(0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1)])
def test_thresholds_and_prevalences_lie_between_0_and_1(
    threshold: float, prevalence: float
) -> None:
    cohort = scored_patients(LABELS, SCORES)
    with pytest.raises(ValueError, match="between 0 and 1"):
        decision_curve(cohort, np.array([threshold]), prevalence=prevalence, **OPTIONS)
