"""Figures against scikit-learn, closed forms and drawn cohorts of known calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from medkd.errors import StageError
from medkd.slide_level.calibration_error import (
    brier_decomposition,
    calibration_figures,
    calibration_in_the_large,
    calibration_slope,
    reliability,
)
from medkd.slide_level.operating_point import exact_interval


def drawn(
    seed: int, patients: int = 200, *, slope: float = 1, shift: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities whose calibration slope and intercept are known."""
    random = np.random.default_rng(seed)
    log_odds = random.normal(-0.5, 1.5, patients)
    labels = random.random(patients) < expit(slope * log_odds + shift)
    return labels, expit(log_odds)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("scheme", "strategy"), [("equal width", "uniform"), ("equal count", "quantile")]
)
def test_bins_are_those_of_scikit_learn(seed: int, scheme: str, strategy: str) -> None:
    labels, probabilities = drawn(seed)
    if seed % 2:
        probabilities = probabilities.round(1)  # probabilities on edges, and ties
    found = reliability(labels, probabilities, bins=8, scheme=scheme)
    share, mean = calibration_curve(labels, probabilities, n_bins=8, strategy=strategy)
    np.testing.assert_allclose([part.share for part in found.bins], share)
    np.testing.assert_allclose([part.mean_probability for part in found.bins], mean)
    assert sum(part.patients for part in found.bins) == len(labels)
    assert sum(part.positives for part in found.bins) == labels.sum()


def test_a_diagram_worked_out_by_hand() -> None:
    """Bins of width 1/2: 3 patients at 0.1, 0.2 and 0.3, one positive; 2 at 0.7 and 0.9, both."""
    labels = np.array([False, False, True, True, True])
    probabilities = np.array([0.1, 0.2, 0.3, 0.7, 0.9])
    found = reliability(labels, probabilities, bins=2, scheme="equal width")
    low, high = found.bins
    assert (low.lower, low.upper, high.lower, high.upper) == (0, 0.5, 0.5, 1)
    assert (low.patients, low.positives, high.patients, high.positives) == (3, 1, 2, 2)
    assert (low.mean_probability, high.mean_probability) == pytest.approx((0.2, 0.8))
    assert low.interval == exact_interval(1, 3, 0.95)
    # Gaps of 1/3 - 0.2 and 1 - 0.8.
    assert found.expected_error == pytest.approx((3 * (1 / 3 - 0.2) + 2 * 0.2) / 5)
    # Variances of the shares: (1/3)(2/3)/2 and 0.
    expected = (3 * ((1 / 3 - 0.2) ** 2 - 1 / 9) + 2 * 0.2**2) / 5
    assert found.squared_error == pytest.approx(expected)


def test_bins_of_equal_count_hold_as_many_patients_each() -> None:
    labels, probabilities = drawn(0)
    found = reliability(labels, probabilities, bins=10, scheme="equal count")
    assert [part.patients for part in found.bins] == [20] * 10
    assert found.bins[0].lower == probabilities.min()
    assert found.bins[-1].upper == probabilities.max()


def test_a_lone_patient_has_no_variance() -> None:
    labels = np.array([True, False, True])
    found = reliability(labels, np.array([0.1, 0.2, 0.9]), bins=2, scheme="equal width")
    assert found.squared_error is None
    assert found.expected_error == pytest.approx((2 * 0.35 + 0.1) / 3)


def test_of_calibrated_probabilities_the_debiased_error_is_nothing_and_ece_is_not() -> None:
    """Over 400 cohorts of 100 patients whose probabilities are right."""
    binned = [reliability(*drawn(seed, 100), bins=10, scheme="equal count") for seed in range(400)]
    debiased = np.array([one.squared_error for one in binned])
    plugin = np.array(
        [sum(b.patients * (b.share - b.mean_probability) ** 2 for b in one.bins) / 100
         for one in binned]
    )  # fmt: skip
    assert abs(debiased.mean()) < 3 * debiased.std() / 20
    assert plugin.mean() > 10 * plugin.std() / 20
    assert np.mean([one.expected_error for one in binned]) > 0.05


def test_the_debiased_error_is_right_on_average() -> None:
    """Two groups of 20, said to be 0.3 and 0.7, are 0.2 and 0.5: (0.1^2 + 0.2^2) / 2."""
    random = np.random.default_rng(0)
    said = np.repeat([0.3, 0.7], 20)
    found = [
        reliability(
            random.random(40) < np.repeat([0.2, 0.5], 20), said, bins=2, scheme="equal width"
        ).squared_error
        for _ in range(600)
    ]
    errors = np.array(found, np.float64)
    assert errors.mean() == pytest.approx(0.025, abs=3 * errors.std() / np.sqrt(600))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_scikit_learns(seed: int) -> None:
    labels, probabilities = drawn(seed)
    found = calibration_figures(labels, probabilities)
    assert found.brier_score.value == pytest.approx(brier_score_loss(labels, probabilities))
    assert found.brier.score == found.brier_score.value
    assert found.log_loss.value == pytest.approx(log_loss(labels, probabilities))


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_the_brier_score(seed: int) -> None:
    """Probabilities of one decimal, a bin for each: nothing is left within bins."""
    labels, probabilities = drawn(seed)
    probabilities = probabilities.round(1)
    binned = reliability(labels, probabilities, bins=20, scheme="equal width")
    parts = brier_decomposition(labels, probabilities, binned)
    groups = [labels[probabilities == value] for value in np.unique(probabilities)]
    weights = [len(group) / len(labels) for group in groups]
    base = labels.mean()
    assert parts.within_bins == pytest.approx(0, abs=1e-12)
    assert parts.uncertainty == pytest.approx(base * (1 - base))
    assert parts.resolution == pytest.approx(
        sum(w * (group.mean() - base) ** 2 for w, group in zip(weights, groups, strict=True))
    )
    assert parts.reliability == pytest.approx(
        sum(
            w * (group.mean() - value) ** 2
            for w, group, value in zip(weights, groups, np.unique(probabilities), strict=True)
        )
    )
    assert parts.score == pytest.approx(brier_score_loss(labels, probabilities))


def test_what_is_left_within_bins_is_stephensons_terms() -> None:
    labels, probabilities = drawn(1)
    binned = reliability(labels, probabilities, bins=5, scheme="equal count")
    number = np.searchsorted([part.upper for part in binned.bins[:-1]], probabilities)
    mean = np.array([part.mean_probability for part in binned.bins])[number]
    share = np.array([part.share for part in binned.bins])[number]
    # Variance within bins less twice the covariance with the outcome.
    expected = np.mean((probabilities - mean) ** 2 - 2 * (probabilities - mean) * (labels - share))
    found = brier_decomposition(labels, probabilities, binned).within_bins
    assert found == pytest.approx(expected, abs=1e-12)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_an_unpenalised_logistic_regression(seed: int) -> None:
    labels, probabilities = drawn(seed, slope=0.6, shift=0.5)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    model.fit(logit(probabilities)[:, None], labels)
    found = calibration_slope(labels, probabilities)
    assert found.value == pytest.approx(model.coef_[0, 0], abs=1e-6)
    # Wald: the inverse of the information, worked out in a loop.
    information = np.zeros((2, 2))
    for p, x in zip(
        model.predict_proba(logit(probabilities)[:, None])[:, 1], logit(probabilities), strict=True
    ):
        information += p * (1 - p) * np.outer([x, 1], [x, 1])
    half = 1.959964 * np.sqrt(np.linalg.inv(information)[0, 0])
    assert (found.lower, found.upper) == pytest.approx(
        (found.value - half, found.value + half), abs=1e-5
    )


def test_calibration_in_the_large_makes_the_expected_positives_those_that_there_are() -> None:
    labels, probabilities = drawn(3, shift=1.2)
    found = calibration_in_the_large(labels, probabilities)
    moved = expit(logit(probabilities) + found.value)
    assert moved.sum() == pytest.approx(labels.sum(), abs=1e-5)
    half = 1.959964 / np.sqrt((moved * (1 - moved)).sum())
    assert (found.lower, found.upper) == pytest.approx(
        (found.value - half, found.value + half), abs=1e-5
    )


def test_intervals_cover_what_was_drawn() -> None:
    covered = []
    for seed in range(300):
        labels, probabilities = drawn(seed, 300, slope=0.7)
        slope = calibration_slope(labels, probabilities)
        assert slope.lower is not None
        assert slope.upper is not None
        covered.append(slope.lower <= 0.7 <= slope.upper)
    # 95% within three standard errors of 300 draws.
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * np.sqrt(0.05 * 0.95 / 300))


def test_what_no_slope_can_be_had_of() -> None:
    labels = np.arange(6) >= 3
    separated = np.array([0.1, 0.2, 0.3, 0.3, 0.5, 0.9])
    for probabilities in (separated, 1 - separated):
        assert calibration_slope(labels, probabilities).reason == "the classes are separated"
    level = np.full(6, 0.2)
    assert calibration_slope(labels, level).reason == "all probabilities are equal"
    # In the large it is ln 4: half of the patients are positive, and odds of 1/4 were said.
    assert calibration_in_the_large(labels, level).value == pytest.approx(np.log(4), abs=1e-6)


def test_figures_as_json() -> None:
    labels, probabilities = drawn(0)
    found = calibration_figures(labels, probabilities, bins=5)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (content["patients"], content["positives"], content["bins"]) == (200, labels.sum(), 5)
    assert content["slope"]["value"] == found.slope.value
    assert content["brier"]["uncertainty"] == pytest.approx(labels.mean() * (1 - labels.mean()))
    binned = reliability(labels, probabilities, bins=5, scheme="equal width")
    assert content["ece_equal_width"] == binned.expected_error
    by_count = reliability(labels, probabilities, bins=5, scheme="equal count")
    assert content["ece_equal_count"] == by_count.expected_error
    assert content["squared_error_debiased"] == by_count.squared_error


@pytest.mark.parametrize(
    ("labels", "probabilities", "what"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "there is no negative patient to measure calibration on"),
        ([1, 0], [0.1, 0.2], "2 patients are too few to measure calibration on"),
        ([1, 0, 1], [0.1, np.nan, 0.3], "a score is not a number"),
        ([1, 0, 1], [0.1, -0.5, 0.3], "a score does not lie between 0 and 1"),
    ],
)
def test_messages(labels: list[int], probabilities: list[float], what: str) -> None:
    with pytest.raises(StageError) as caught:
        calibration_figures(labels, probabilities)
    assert str(caught.value).startswith(f"test patients: {what}")
    assert "\n" not in str(caught.value)
