"""Figures against scikit-learn with weights, and worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from medkd.slide_level.operating_point import choose_operating_point
from medkd.slide_level.scored import ScoredPatients, Weighted, scored_patients
from medkd.slide_level.statistics import (
    AUPRC,
    AUROC,
    Estimate,
    Figure,
    auroc,
    npv_at,
    ppv_at,
    ruled_out_at,
    sensitivity_at,
    specificity_at,
)


def drawn(seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, tied scores and whole-number weights, some of them 0."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) < random.integers(2, rows - 1)
    scores = random.random(rows).round(seed % 3 + 1)
    weights = random.poisson(1.0, rows)
    weights[[0, -1]] = 1
    return labels, scores, weights


def weighted(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Weighted:
    cohort = scored_patients(labels, scores)
    return cohort.weighted(
        weights[cohort.positive.patient_ids][None], weights[cohort.negative.patient_ids][None]
    )


def of(figure: Figure, cohort: ScoredPatients) -> float:
    return float(figure.of(cohort.unweighted())[0])


@pytest.mark.parametrize("seed", range(20))
def test_auroc_and_auprc_agree_with_scikit_learn_with_weights_and_ties(seed: int) -> None:
    labels, scores, weights = drawn(seed)
    found = weighted(labels, scores, weights)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert float(AUROC.of(found)[0]) == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert float(AUPRC.of(found)[0]) == pytest.approx(expected, abs=1e-12)
    plain = roc_auc_score(labels, scores)
    assert auroc(labels, scores) == pytest.approx(plain, abs=1e-12)
    assert of(AUROC, scored_patients(labels, scores)) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_figures_at_a_threshold_agree_with_scikit_learn_with_weights(seed: int) -> None:
    labels, scores, weights = drawn(seed)
    found = weighted(labels, scores, weights)
    called = scores >= 0.5
    one, other = {"sample_weight": weights}, {"sample_weight": weights, "pos_label": 0}
    expected = [
        (sensitivity_at(0.5), recall_score(labels, called, **one)),
        (specificity_at(0.5), recall_score(labels, called, **other)),
        (ppv_at(0.5), precision_score(labels, called, **one)),
        (npv_at(0.5), precision_score(labels, called, **other)),
    ]
    for figure, value in expected:
        assert float(figure.of(found)[0]) == pytest.approx(value, abs=1e-12), figure.name


def test_a_score_at_the_threshold_is_called_positive() -> None:
    cohort = scored_patients(np.array([True, True, False]), np.array([0.5, 0.4, 0.5]))
    assert of(sensitivity_at(0.5), cohort) == 0.5
    assert of(specificity_at(0.5), cohort) == 0


def test_auroc_counts_pairs() -> None:
    """Of 2 x 3 pairs three are in order, two are tied and one is not: 3 + 2/2 of 6."""
    labels = np.array([True, True, False, False, False])
    scores = np.array([0.8, 0.5, 0.5, 0.8, 0.3])
    assert auroc(labels, scores) == pytest.approx(4 / 6)
    assert of(AUROC, scored_patients(labels, scores)) == pytest.approx(4 / 6)


def test_average_precision_by_hand() -> None:
    """Positives at ranks 1 and 3 of 4: (1/1 + 2/3) / 2."""
    labels = np.array([True, False, True, False])
    cohort = scored_patients(labels, np.array([0.9, 0.8, 0.7, 0.1]))
    assert of(AUPRC, cohort) == pytest.approx((1 + 2 / 3) / 2)


def test_predictive_values_at_a_given_prevalence_by_hand() -> None:
    """Sensitivity 3/4 and specificity 4/5 at a prevalence of 1/10."""
    labels = np.arange(9) < 4
    scores = np.array([0.9, 0.8, 0.7, 0.1, 0.6, 0.4, 0.3, 0.2, 0.1])
    cohort = scored_patients(labels, scores)
    assert of(ppv_at(0.5, 0.1), cohort) == pytest.approx(0.075 / (0.075 + 0.18))
    assert of(npv_at(0.5, 0.1), cohort) == pytest.approx(0.72 / (0.72 + 0.025))
    assert ppv_at(0.5, 0.1).name == "ppv_at_prevalence_0.1"


def test_ruled_out_by_hand() -> None:
    """A sensitivity of 3/4 lets one of 4 positives go: the threshold is 0.5."""
    labels = np.arange(9) < 4
    scores = np.array([0.9, 0.8, 0.5, 0.2, 0.6, 0.5, 0.4, 0.3, 0.1])
    cohort = scored_patients(labels, scores)
    assert of(ruled_out_at(0.75), cohort) == pytest.approx((1 + 3) / 9)
    assert of(ruled_out_at(1), cohort) == pytest.approx((0 + 1) / 9)
    assert of(ruled_out_at(0.75, 0.2), cohort) == pytest.approx(0.2 / 4 + 0.8 * 3 / 5)


@pytest.mark.parametrize("seed", range(10))
def test_ruled_out_is_what_the_operating_point_rules_out(seed: int) -> None:
    """Also with weights: then at the operating point of patients written down so many times."""
    labels, scores, weights = drawn(seed)
    copies = labels.repeat(weights), scores.repeat(weights)
    point = choose_operating_point(*copies, 0.9, confidence=0.95, date="")
    found = float(ruled_out_at(0.9).of(weighted(labels, scores, weights))[0])
    assert found == pytest.approx((copies[1] < point.threshold).mean())


@pytest.mark.parametrize(
    "figure",
    [AUROC, AUPRC, ppv_at(0.5, 0.2), npv_at(0.5, 0.2), ruled_out_at(0.9), sensitivity_at(0.5)],
)
def test_figures_without_a_positive_are_not_a_number(figure: Figure) -> None:
    cohort = scored_patients(np.zeros(3, bool), np.array([0.1, 0.5, 0.9]))
    assert np.isnan(of(figure, cohort))


def test_figures_without_a_negative_are_not_a_number() -> None:
    values = np.array([0.1, 0.5, 0.9])
    cohort = scored_patients(np.ones(3, bool), values)
    for figure in (AUROC, AUPRC, specificity_at(0.5), ruled_out_at(0.9)):
        assert np.isnan(of(figure, cohort)), figure.name
    assert auroc(np.ones(3, bool), values) is None
    assert auroc(np.zeros(3, bool), values) is None


@pytest.mark.parametrize(
    ("estimate", "text", "content"),
    [
        (Estimate(0.81236, 0.7, 0.9), "0.812 (0.700 to 0.900)",
         {"value": 0.81236, "lower": 0.7, "upper": 0.9}),
        (Estimate(0.5), "0.500", {"value": 0.5, "lower": None, "upper": None}),
        (Estimate(None, reason="a class is absent"), "not available",
         {"value": None, "lower": None, "upper": None, "reason": "a class is absent"}),
    ],
)  # fmt: skip
def test_estimates_as_text_and_as_json(estimate: Estimate, text: str, content: dict) -> None:
    assert str(estimate) == text
    assert estimate.to_json() == content
