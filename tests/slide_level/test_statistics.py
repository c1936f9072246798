"""Figures against scikit-learn, intervals against theory and a naive bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import recall_score, roc_auc_score

from medkd.slide_level.statistics import Estimate, auroc, bootstrap, sensitivity, specificity


@pytest.mark.parametrize("seed", range(20))
def test_auroc_agrees_with_scikit_learn_ties_included(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.arange(50) < random.integers(1, 50)
    scores = random.random(50).round(seed % 3 + 1)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_counts_pairs() -> None:
    """Of 2 x 3 pairs three are in order, two are tied and one is not: 3 + 2/2 of 6."""
    labels = np.array([True, True, False, False, False])
    assert auroc(labels, np.array([0.8, 0.5, 0.5, 0.8, 0.3])) == pytest.approx(4 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_sensitivity_and_specificity_agree_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, calls = random.random(40) < 0.4, random.random(40) < 0.5
    assert sensitivity(labels, calls) == pytest.approx(recall_score(labels, calls))
    assert specificity(labels, calls) == pytest.approx(recall_score(labels, calls, pos_label=0))


def test_figures_that_cannot_be_had_are_none() -> None:
    positives, negatives = np.ones(3, bool), np.zeros(3, bool)
    values = np.array([True, False, True])
    assert auroc(positives, values.astype(float)) is None
    assert auroc(negatives, values.astype(float)) is None
    assert specificity(positives, values) is None
    assert sensitivity(negatives, values) is None


def test_the_interval_of_a_proportion_is_binomial() -> None:
    """Resampling 40 positives of whom 30 are found gives Binomial(40, 3/4) / 40."""
    labels = np.array([True] * 40 + [False] * 10)
    calls = np.array([True] * 30 + [False] * 20)
    found = bootstrap(sensitivity, labels, calls, resamples=4000, confidence=0.95)
    assert found.value == 0.75
    expected = binom.ppf([0.025, 0.975], 40, 0.75) / 40
    np.testing.assert_allclose([found.lower, found.upper], expected, atol=1 / 40 + 1e-9)


def test_the_interval_of_auroc_is_that_of_a_naive_bootstrap() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(40) < 12
    scores = random.normal(0.8 * labels)
    found = bootstrap(auroc, labels, scores, resamples=3000, confidence=0.9)
    drawn = [
        np.mean(
            random.choice(scores[labels], 12)[:, None] > random.choice(scores[~labels], 28)[None]
        )
        for _ in range(3000)
    ]
    assert found.value == pytest.approx(roc_auc_score(labels, scores))
    np.testing.assert_allclose(
        [found.lower, found.upper], np.quantile(drawn, [0.05, 0.95]), atol=0.015
    )


def test_every_resample_has_as_many_of_each_class() -> None:
    labels = np.array([True] * 3 + [False] * 20)
    seen = set()

    def count(drawn: np.ndarray, _: np.ndarray) -> float:
        seen.add((int(drawn.sum()), len(drawn)))
        return 0.0

    bootstrap(count, labels, np.zeros(23), resamples=100, confidence=0.95)
    assert seen == {(3, 23)}


def test_rows_of_a_patient_come_together() -> None:
    """Ten copies of each row add no information: the interval is that of the patients."""
    random = np.random.default_rng(2)
    labels = np.arange(20) < 8
    scores = random.normal(labels)
    patients = np.array([f"{i:02d}" for i in range(20)])
    options = {"resamples": 300, "confidence": 0.95}
    alone = bootstrap(auroc, labels, scores, **options)
    copied = bootstrap(
        auroc, labels.repeat(10), scores.repeat(10), groups=patients.repeat(10), **options
    )
    assert (copied.value, copied.lower, copied.upper) == pytest.approx(
        (alone.value, alone.lower, alone.upper)
    )


def test_rows_without_patients_are_resampled_one_by_one() -> None:
    random = np.random.default_rng(2)
    labels = np.arange(20) < 8
    scores = random.normal(labels)
    options = {"resamples": 300, "confidence": 0.95}
    alone = bootstrap(auroc, labels, scores, **options)
    copied = bootstrap(auroc, labels.repeat(10), scores.repeat(10), **options)
    assert copied.upper - copied.lower < 0.5 * (alone.upper - alone.lower)


def test_patients_drawn_are_drawn_whole() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    labels = np.array([True, False, True, True, False, True])
    draws = []

    def keep(_: np.ndarray, drawn: np.ndarray) -> float:
        draws.append(np.bincount(drawn, minlength=6))
        return 0.0

    bootstrap(keep, labels, np.arange(6), resamples=50, confidence=0.95, groups=groups)
    only_b, both, only_c = (2, 1, 2, 0, 1, 2), (1, 1, 1, 1, 1, 1), (0, 1, 0, 2, 1, 0)
    assert {tuple(times) for times in draws} == {only_b, both, only_c}


def test_a_perfect_order_has_an_interval_without_width() -> None:
    labels = np.arange(10) < 5
    found = bootstrap(auroc, labels, -np.arange(10.0), resamples=100, confidence=0.95)
    assert found == Estimate(1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    random = np.random.default_rng(3)
    labels, scores = np.arange(30) < 10, random.random(30)
    first, again, other = (
        bootstrap(auroc, labels, scores, resamples=200, confidence=0.95, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_class_that_is_absent_is_the_reason() -> None:
    found = bootstrap(auroc, np.ones(4, bool), np.arange(4.0), resamples=100, confidence=0.95)
    assert found == Estimate(None, reason="a class is absent")


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
