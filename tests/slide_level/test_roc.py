"""DeLong's covariance: a published example, the paper's formulas written out, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medkd.errors import StageError
from medkd.slide_level.roc import (
    RocAreas,
    area_intervals,
    delong,
    delong_equality_test,
    delong_test,
)
from medkd.slide_level.statistics import Estimate

# The data of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988) as the example "Comparing
# Receiver Operating Characteristic Curves" of SAS/STAT's user's guide (PROC LOGISTIC) has them:
# albumin, total protein, Krebs-Goplerud score and whether surgery helped, of the 43 patients with
# ovarian cancer for whom all were measured.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1   3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1   3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0   4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1   2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1   2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


@pytest.fixture(scope="module")
def ovarian() -> RocAreas:
    """Albumin, Krebs-Goplerud score and total protein, in the order of the published tables."""
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    helped = table[:, 3] == 1
    return delong(helped, np.stack([table[:, 0], -table[:, 2], table[:, 1]]))


def structural_components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and covariance by the paper's formulas (4) to (7), pair by pair."""
    runs, positives, negatives = len(scores), int(labels.sum()), int((~labels).sum())
    v10, v01 = np.zeros((runs, positives)), np.zeros((runs, negatives))
    for run in range(runs):
        for i, x in enumerate(scores[run][labels]):
            for j, y in enumerate(scores[run][~labels]):
                kernel = 1.0 if y < x else 0.5 if y == x else 0.0
                v10[run, i] += kernel / negatives
                v01[run, j] += kernel / positives
    areas = v10.mean(1)
    s10, s01 = np.zeros((runs, runs)), np.zeros((runs, runs))
    for r in range(runs):
        for s in range(runs):
            s10[r, s] = ((v10[r] - areas[r]) * (v10[s] - areas[s])).sum() / (positives - 1)
            s01[r, s] = ((v01[r] - areas[r]) * (v01[s] - areas[s])).sum() / (negatives - 1)
    return areas, s10 / positives + s01 / negatives


def test_areas_and_errors_are_those_published(ovarian: RocAreas) -> None:
    np.testing.assert_allclose(ovarian.areas, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(ovarian.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=5.1e-5)
    assert (ovarian.positives, ovarian.negatives) == (31, 12)


@pytest.mark.parametrize(
    ("first", "difference", "lower", "upper", "p_value"),
    [(0, 0.0108, -0.1761, 0.1976, 0.9102), (2, -0.0780, -0.2830, 0.1271, 0.4561)],
)
def test_differences_from_the_score_are_those_published(
    ovarian: RocAreas, first: int, difference: float, lower: float, upper: float, p_value: float
) -> None:
    found = delong_test(ovarian, first, 1, confidence=0.95)
    interval = found.difference
    np.testing.assert_allclose(
        [interval.value, interval.lower, interval.upper, found.p_value],
        [difference, lower, upper, p_value],
        atol=5.1e-5,
    )


def test_the_test_of_all_three_is_that_published(ovarian: RocAreas) -> None:
    statistic, freedom, p_value = delong_equality_test(ovarian)
    assert (statistic, p_value) == (
        pytest.approx(2.5340, abs=5e-5), pytest.approx(0.2817, abs=5e-5)
    )  # fmt: skip
    assert freedom == 2


@pytest.mark.parametrize("seed", range(6))
def test_covariance_is_that_of_the_papers_formulas_ties_included(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.arange(30) < random.integers(2, 29)
    scores = (random.normal(size=(3, 30)) + labels).round(seed % 3)
    areas, covariance = structural_components(labels, scores)
    found = delong(labels, scores)
    np.testing.assert_allclose(found.areas, areas, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-14)
    np.testing.assert_allclose(found.areas, [roc_auc_score(labels, run) for run in scores])


def test_copies_of_a_patients_row_add_nothing() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(30) < 12
    scores = random.normal(labels, 1, (2, 30))
    alone = delong(labels, scores)
    copies = delong(labels.repeat(4), scores.repeat(4, axis=1), patients=np.arange(30).repeat(4))
    np.testing.assert_allclose(copies.covariance, alone.covariance, atol=1e-14)
    assert (copies.positives, copies.negatives) == (12, 18)


def test_the_variance_of_rows_that_resemble_one_another_is_that_of_many_cohorts() -> None:
    """Three slides a patient share half of their variance: against the spread of 800 areas."""
    labels = (np.arange(60) < 25).repeat(3)
    patients = np.arange(60).repeat(3)
    areas, variances = [], []
    for seed in range(800):
        random = np.random.default_rng(seed)
        scores = labels + random.normal(size=60).repeat(3) + random.normal(size=180)
        found = delong(labels, scores, patients=patients)
        areas.append(found.areas[0])
        variances.append(found.covariance[0, 0])
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.15)


def coverage(repeats: int, area: float, patients: int = 120) -> float:
    labels = np.arange(patients) < patients // 3
    shift = 2**0.5 * norm.ppf(area)
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(repeats):
        found = delong(labels, random.normal(shift * labels))
        (interval,) = area_intervals(found, confidence=0.95)
        inside += interval.lower <= area <= interval.upper
    return inside / repeats


def test_the_interval_covers_a_known_auroc() -> None:
    assert 0.93 <= coverage(800, 0.85) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.6, 0.75, 0.9, 0.95])
def test_the_interval_covers_known_aurocs_in_93_to_97_of_100(area: float) -> None:
    assert 0.93 <= coverage(10_000, area, patients=240) <= 0.97


def test_the_interval_is_symmetric_on_the_logit_scale() -> None:
    """AUROC 3/4 with variance 0.01: logit 1.0986, standard error 0.1 / (3/16)."""
    (found,) = area_intervals(RocAreas(np.array([0.75]), np.array([[0.01]]), 9, 9), confidence=0.95)
    logits = np.log(3) + 1.959964 * 0.1 / 0.1875 * np.array([-1, 1])
    np.testing.assert_allclose([found.lower, found.upper], 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize(("sign", "value"), [(1, 1.0), (-1, 0.0)])
def test_a_perfect_order_has_the_exact_end(sign: int, value: float) -> None:
    labels = np.arange(10) < 4
    (found,) = area_intervals(delong(labels, -sign * np.arange(10.0)), confidence=0.95)
    ends = (0.025**0.25, 1) if value else (0, 1 - 0.025**0.25)
    assert found == Estimate(value, *map(pytest.approx, ends))


def test_equal_scores_and_single_patients_have_no_interval() -> None:
    equal = delong(np.arange(10) < 4, np.ones(10))
    assert area_intervals(equal, confidence=0.95) == [
        Estimate(0.5, reason="DeLong's variance is 0")
    ]
    single = delong(np.arange(5) < 1, np.array([0.5, 0.1, 0.2, 0.6, 0.3]))
    reason = "a class has one patient alone: no variance"
    assert area_intervals(single, confidence=0.95) == [Estimate(0.75, reason=reason)]
    two = delong(np.array([True, False]), np.array([0.9, 0.1]))
    assert area_intervals(two, confidence=0.95) == [Estimate(1, pytest.approx(0.025), 1)]


def test_one_class_alone_is_the_reason() -> None:
    found = delong(np.ones(4, bool), np.arange(8.0).reshape(2, 4))
    absent = Estimate(None, reason="a class is absent")
    assert area_intervals(found, confidence=0.95) == [absent, absent]
    compared = delong_test(found, confidence=0.95)
    assert (compared.difference, compared.p_value) == (absent, None)
    with pytest.raises(ValueError, match="two patients of each class"):
        delong_equality_test(found)


def test_runs_that_order_all_patients_alike_cannot_be_tested() -> None:
    scores = np.random.default_rng(0).normal(size=20)
    found = delong_test(delong(np.arange(20) < 8, np.stack([scores, 2 * scores])), confidence=0.95)
    assert found.difference == Estimate(0, reason="DeLong's variance of the difference is 0")
    assert found.p_value is None


def test_a_score_that_is_not_a_number_is_refused() -> None:
    scores = np.arange(8.0).reshape(2, 4)
    scores[1, 2] = np.nan
    with pytest.raises(StageError) as caught:
        delong(np.arange(4) < 2, scores, where="test patients")
    assert str(caught.value) == "test patients: a score is not a number. Look at the predictions."
