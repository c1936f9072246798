"""The bootstrap against a naive loop with the same draws, theory, and coverage by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from medkd.errors import StageError
from medkd.slide_level.resampling import (
    bootstrap,
    bootstrap_difference,
    draw_counts,
    end_interval,
    permutation_test,
)
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.statistics import (
    AUPRC,
    AUROC,
    Estimate,
    Figure,
    npv_at,
    ppv_at,
    sensitivity_at,
    specificity_at,
)

OPTIONS = {"resamples": 300, "confidence": 0.95}
AT = (sensitivity_at(0.5), specificity_at(0.5), ppv_at(0.5), npv_at(0.5))


def binormal(
    patients: int, positives: int, area: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores whose true AUROC is ``area``."""
    labels = np.arange(patients) < positives
    shift = 2**0.5 * norm.ppf(area)
    return labels, np.random.default_rng(seed).normal(shift * labels)


def test_every_draw_has_as_many_patients_and_all_draws_are_equally_likely() -> None:
    counts = draw_counts(3, 20_000, np.random.default_rng(0))
    assert (counts.sum(1) == 3).all()
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    orders = {3: 1, 2: 3, 1: 6}
    for kind, seen in zip(kinds, times, strict=True):
        expected = orders[kind.max()] / 27
        assert seen / 20_000 == pytest.approx(expected, abs=5 * (expected / 20_000) ** 0.5)
    assert len(kinds) == 10


def test_it_equals_a_naive_loop_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows a patient, ties; figures by scikit-learn, quantiles of the loop's values."""
    random = np.random.default_rng(1)
    patients = random.integers(0, 40, 90)
    labels = patients < 15
    scores = (0.3 * labels + random.random(90)).round(1) / 1.3
    kept: list[np.ndarray] = []

    def keep(*arguments: object) -> np.ndarray:
        kept.append(draw_counts(*arguments))
        return kept[-1]

    monkeypatch.setattr("medkd.slide_level.resampling.draw_counts", keep)
    # Blocks that do not divide the resamples.
    monkeypatch.setattr("medkd.slide_level.resampling._BLOCK", 90 * 70)
    cohort = scored_patients(labels, scores, patients)
    found = bootstrap(cohort, [AUROC, AUPRC, *AT], **OPTIONS)
    counts = [np.concatenate(kept[side::2]) for side in (0, 1)]
    assert [len(side) for side in counts] == [300, 300]
    called = scores >= 0.5
    naive: dict[str, list[float]] = {name: [] for name in found}
    for resample in range(300):
        times = {
            patient: count
            for side, ids in zip(
                counts, (cohort.positive.patient_ids, cohort.negative.patient_ids), strict=True
            )
            for patient, count in zip(ids, side[resample], strict=True)
        }
        chosen = np.repeat(np.arange(90), [times[patient] for patient in patients])
        truth, values, calls = labels[chosen], scores[chosen], called[chosen]
        naive["auroc"].append(roc_auc_score(truth, values))
        naive["auprc"].append(average_precision_score(truth, values))
        naive["sensitivity"].append(recall_score(truth, calls))
        naive["specificity"].append(recall_score(truth, calls, pos_label=0))
        naive["ppv"].append(precision_score(truth, calls))
        naive["npv"].append(precision_score(truth, calls, pos_label=0))
    for name, values in naive.items():
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([found[name].lower, found[name].upper], expected, atol=1e-10)


def test_the_interval_of_a_proportion_is_binomial() -> None:
    """Resampling 40 positives of whom 30 are found gives Binomial(40, 3/4) / 40."""
    labels = np.array([True] * 40 + [False] * 10)
    scores = np.array([1.0] * 30 + [0.0] * 20)
    found = bootstrap(
        scored_patients(labels, scores), [sensitivity_at(0.5)], resamples=4000, confidence=0.95
    )["sensitivity"]
    assert found.value == 0.75
    expected = binom.ppf([0.025, 0.975], 40, 0.75) / 40
    np.testing.assert_allclose([found.lower, found.upper], expected, atol=1 / 40 + 1e-9)


def test_rows_of_a_patient_come_together() -> None:
    """Ten copies of each row add no information: the interval is that of the patients."""
    labels, scores = binormal(20, 8, 0.75, seed=2)
    alone = bootstrap(scored_patients(labels, scores), [AUROC], **OPTIONS)
    copies = labels.repeat(10), scores.repeat(10)
    together = bootstrap(scored_patients(*copies, np.arange(20).repeat(10)), [AUROC], **OPTIONS)
    assert together["auroc"] == alone["auroc"]
    apart = bootstrap(scored_patients(*copies), [AUROC], **OPTIONS)["auroc"]
    assert apart.upper - apart.lower < 0.5 * (alone["auroc"].upper - alone["auroc"].lower)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    cohort = scored_patients(*binormal(30, 10, 0.7, seed=3))
    first, again, other = (bootstrap(cohort, [AUROC], seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert first == again != other


def covered(repeats: int, patients: int, positives: int, resamples: int) -> float:
    inside = 0
    for seed in range(repeats):
        cohort = scored_patients(*binormal(patients, positives, 0.8, seed))
        found = bootstrap(cohort, [AUROC], resamples=resamples, confidence=0.95, seed=seed)
        inside += found["auroc"].lower <= 0.8 <= found["auroc"].upper
    return inside / repeats


def test_the_interval_covers_a_known_auroc() -> None:
    """300 repeats of true coverage 0.93 to 0.97 stay within 0.90 to 0.99 (3 standard errors)."""
    assert 0.90 <= covered(300, 200, 80, 300) <= 0.99


@pytest.mark.slow
def test_the_interval_covers_a_known_auroc_in_93_to_97_of_100() -> None:
    assert 0.93 <= covered(4000, 300, 120, 1000) <= 0.97


def test_a_class_that_is_absent_is_the_reason() -> None:
    found = bootstrap(
        scored_patients(np.ones(4, bool), np.arange(4.0)), [AUROC, sensitivity_at(2)], **OPTIONS
    )
    assert found["auroc"] == Estimate(None, reason="a class is absent")
    assert found["sensitivity"].value == 0.5


def test_two_patients_have_the_interval_of_one_pair() -> None:
    """One pair in order: an AUROC of at least 0.025 makes that as likely as 2.5%."""
    cohort = scored_patients(np.array([True, False]), np.array([0.9, 0.1]))
    found = bootstrap(cohort, [AUROC, AUPRC], **OPTIONS)
    assert found["auroc"] == Estimate(1, pytest.approx(0.025), 1)
    reason = "a class has one patient alone: no interval by resampling"
    assert found["auprc"] == Estimate(1, reason=reason)


def test_equal_scores_have_no_interval() -> None:
    cohort = scored_patients(np.arange(10) < 4, np.full(10, 0.3))
    found = bootstrap(cohort, [AUROC], **OPTIONS)["auroc"]
    assert found == Estimate(0.5, reason="no resample differs: no interval by resampling")


def test_a_perfect_order_has_the_exact_lower_end() -> None:
    """Of 4 and 6 patients four pairs share no patient: 0.025^(1/4)."""
    cohort = scored_patients(np.arange(10) < 4, -np.arange(10.0))
    found = bootstrap(cohort, [AUROC, specificity_at(-3.5)], **OPTIONS)
    assert found["auroc"] == Estimate(1, pytest.approx(0.025**0.25), 1)
    exact = binomtest(6, 6).proportion_ci(0.95, "exact")
    assert found["specificity"] == Estimate(1, pytest.approx(exact.low), 1)


def test_the_end_interval_of_auroc_is_on_the_safe_side() -> None:
    """Where AUROC is just below the lower end, a perfect order is rarer than 2.5%."""
    lower, _ = end_interval(1, 4, 0.95)
    random = np.random.default_rng(0)
    shift = 2**0.5 * norm.ppf(lower)
    perfect = random.normal(shift, size=(20_000, 4)).min(1) > random.normal(size=(20_000, 6)).max(1)
    assert perfect.mean() <= 0.025
    assert end_interval(0, 4, 0.95) == (0, pytest.approx(1 - lower))


def test_a_figure_that_most_resamples_lack_has_no_interval() -> None:
    labels = np.array([True, False, False, False, False])
    labels = labels.repeat(2)
    cohort = scored_patients(labels, np.where(np.arange(10) == 2, 1.0, 0.0) + 0.1 * labels)
    found = bootstrap(cohort, [ppv_at(0.5)], **OPTIONS)["ppv"]
    assert found.value == 0
    assert found.lower is None
    assert found.reason.endswith("of 300 resamples only")
    nobody = bootstrap(cohort, [ppv_at(5.0)], **OPTIONS)["ppv"]
    assert nobody == Estimate(None, reason="no patient is on that side of the threshold")


def test_both_runs_see_the_same_patients() -> None:
    """Scores that differ by a constant have the same AUROC in every resample."""
    labels, scores = binormal(40, 15, 0.7, seed=4)
    found = bootstrap_difference(labels, scores, scores + 3, (AUROC, AUROC), **OPTIONS)
    assert found.first == found.second
    assert found.difference == Estimate(0, reason="no resample differs: no interval by resampling")


def test_the_interval_of_a_difference_agrees_with_delong() -> None:
    from medkd.slide_level.roc import delong, delong_test

    labels, first = binormal(400, 150, 0.8, seed=5)
    second = first + np.random.default_rng(6).normal(size=400)
    found = bootstrap_difference(
        labels, first, second, (AUROC, AUROC), resamples=2000, confidence=0.95
    )
    expected = delong_test(delong(labels, np.stack([first, second])), confidence=0.95)
    assert found.difference.value == pytest.approx(expected.difference.value)
    assert found.difference.lower == pytest.approx(expected.difference.lower, abs=0.004)
    assert found.difference.upper == pytest.approx(expected.difference.upper, abs=0.004)


def test_each_run_may_have_its_own_operating_point() -> None:
    labels, scores = binormal(40, 15, 0.7, seed=4)
    figures = sensitivity_at(0.5), sensitivity_at(3.5)
    found = bootstrap_difference(labels, scores, scores + 3, figures, **OPTIONS)
    assert found.difference.value == 0


def naive_p_value(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, patients: np.ndarray
) -> float:
    """Of all 2^patients swaps, the share with at least the difference that was seen."""
    seen = abs(roc_auc_score(labels, first) - roc_auc_score(labels, second))
    names = np.unique(patients)
    extreme = 0
    for swaps in itertools.product((False, True), repeat=len(names)):
        swapped = np.isin(patients, names[list(swaps)])
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        extreme += abs(roc_auc_score(labels, one) - roc_auc_score(labels, other)) >= seen - 1e-12
    return extreme / 2 ** len(names)


def test_the_permutation_test_is_the_test_of_all_swaps() -> None:
    random = np.random.default_rng(7)
    patients = np.array([0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 8])
    labels = patients < 4
    first, second = random.normal(1.5 * labels), random.normal(size=13)
    expected = naive_p_value(labels, first, second, patients)
    found = permutation_test(
        labels, first, second, (AUROC, AUROC), permutations=20_000, patients=patients
    )
    assert found.first == pytest.approx(roc_auc_score(labels, first))
    assert found.second == pytest.approx(roc_auc_score(labels, second))
    assert found.p_value == pytest.approx(expected, abs=0.01)


def test_the_p_value_is_never_0() -> None:
    """No swap but none and all of 2^40 has this difference: 1 / (1 + 99)."""
    labels = np.arange(40) < 20
    first = np.where(labels, 1.0, 0.0)
    found = permutation_test(labels, first, 1 - first, (AUROC, AUROC), permutations=99)
    assert found.difference.value == 1
    assert found.p_value == 1 / 100


def test_the_same_scores_have_a_p_value_of_1() -> None:
    labels, scores = binormal(40, 15, 0.7, seed=8)
    found = permutation_test(labels, scores, scores, (AUROC, AUROC), permutations=50)
    assert (found.difference.value, found.p_value) == (0, 1)


def test_by_rank_a_scale_does_not_matter() -> None:
    labels, first = binormal(40, 15, 0.8, seed=9)
    second = first + np.random.default_rng(10).normal(size=40)
    options = {"permutations": 200, "by_rank": True}
    plain = permutation_test(labels, first, second, (AUROC, AUROC), **options)
    scaled = permutation_test(labels, first, 1000 + np.exp(second), (AUROC, AUROC), **options)
    assert plain == scaled


def test_p_values_of_equal_runs_are_uniform() -> None:
    labels = np.arange(40) < 15
    p_values = []
    for seed in range(300):
        scores = np.random.default_rng(seed).normal(labels, 1, (2, 40))
        found = permutation_test(labels, *scores, (AUROC, AUROC), permutations=99, seed=seed)
        p_values.append(found.p_value)
    for level in (0.1, 0.5):
        share = np.mean(np.array(p_values) <= level)
        assert share == pytest.approx(level, abs=3.5 * (level * (1 - level) / 300) ** 0.5)


@pytest.mark.parametrize("how", [bootstrap_difference, permutation_test])
def test_runs_on_other_patients_are_refused(how: object) -> None:
    options = OPTIONS if how is bootstrap_difference else {"permutations": 10}
    labels, scores = binormal(10, 5, 0.7, seed=0)
    with pytest.raises(StageError) as caught:
        how(labels, scores, scores[:8], (AUROC, AUROC), where="comparison", **options)
    assert str(caught.value) == (
        "comparison: the first run has 10 scores and the second 8. "
        "Compare runs on the same patients, in the same order."
    )


@pytest.mark.parametrize("how", [bootstrap_difference, permutation_test])
def test_one_class_alone_has_no_difference(how: object) -> None:
    options = OPTIONS if how is bootstrap_difference else {"permutations": 10}
    found = how(np.ones(5, bool), np.arange(5), np.arange(5), (AUROC, AUROC), **options)
    assert found.difference == Estimate(None, reason="a class is absent")
    assert (found.first, found.p_value) == (None, None)


@pytest.mark.parametrize("how", [bootstrap_difference, permutation_test])
def test_a_score_that_is_not_a_number_is_refused(how: object) -> None:
    options = OPTIONS if how is bootstrap_difference else {"permutations": 10}
    labels, scores = binormal(10, 5, 0.7, seed=0)
    with pytest.raises(StageError, match="a score is not a number"):
        how(labels, scores, np.where(labels, scores, np.nan), (AUROC, AUROC), **options)


def test_a_figure_needs_no_more_than_its_function() -> None:
    """Anything that takes weighted patients is a figure."""
    mean = Figure("mean", lambda patients: patients.positive.mean(1), of_negatives=False)
    cohort = scored_patients(*binormal(10, 5, 0.7, seed=0))
    assert bootstrap(cohort, [mean], **OPTIONS)["mean"].value == 1
