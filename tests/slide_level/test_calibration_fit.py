"""Fits against scikit-learn, naive optimisers and closed forms; the choice on drawn cohorts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from medkd.errors import StageError
from medkd.slide_level.calibration import (
    SLOPE_LIMIT,
    Beta,
    Isotonic,
    Platt,
    Temperature,
    Uncalibrated,
    calibration_from_json,
)
from medkd.slide_level.calibration_fit import (
    KINDS,
    Kind,
    choose_calibration,
    cross_validated,
    fit_calibration,
    log_losses,
)

SEEDS = range(5)


def cohort(
    seed: int, patients: int = 150, positives: int = 45, *, slope: float = 1, shift: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose calibrated log odds are ``(logit s - shift) / slope``.

    Normals of unit variance at +-1 have the log odds 2 x + ln(P / N).
    """
    random = np.random.default_rng(seed)
    labels = np.arange(patients) < positives
    drawn = random.normal(np.where(labels, 1.0, -1.0))
    true = 2 * drawn + np.log(positives / (patients - positives))
    return labels, expit(slope * true + shift)


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose decision function is its only feature."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Scores:
        self.classes_ = np.unique(labels)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self.classes_[(features[:, 0] > 0).astype(int)]

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        return features[:, 0]


def calibrated_by_scikit_learn(method: str, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    model = FrozenEstimator(Scores().fit(x[:, None], labels))
    # The frozen model learns nothing, so that every fold's calibrator sees all patients.
    return CalibratedClassifierCV(model, method=method).fit(x[:, None], labels).predict_proba(
        x[:, None]
    )[:, 1]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_smoothed_platt_is_scikit_learns_sigmoid(seed: int) -> None:
    labels, scores = cohort(seed)
    found = fit_calibration("platt", labels, scores)(scores)
    np.testing.assert_allclose(
        found, calibrated_by_scikit_learn("sigmoid", logit(scores), labels), atol=1e-4
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_platt_is_logistic_regression_without_a_penalty(seed: int) -> None:
    labels, scores = cohort(seed)
    found = fit_calibration("platt", labels, scores, targets="plain")
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    model.fit(logit(scores)[:, None], labels)
    assert isinstance(found, Platt)
    assert found.slope == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert found.intercept == pytest.approx(model.intercept_[0], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_isotonic_is_scikit_learns_between_the_two_bounds(seed: int) -> None:
    labels, scores = cohort(seed)
    scores = scores.round(2)  # ties
    found = fit_calibration("isotonic", labels, scores)
    plain = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    grid = scores[np.argsort(scores)]
    # 45 positives and 105 negatives: Platt's targets are 46/47 and 1/107.
    np.testing.assert_allclose(
        found(grid), np.clip(plain.predict(grid), 1 / 107, 46 / 47), atol=1e-12
    )
    np.testing.assert_allclose(
        found(scores),
        np.clip(calibrated_by_scikit_learn("isotonic", scores, labels), 1 / 107, 46 / 47),
        atol=1e-12,
    )


@pytest.mark.parametrize("targets", ["smoothed", "plain"])
@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_is_the_best_of_a_scan(seed: int, targets: str) -> None:
    labels, scores = cohort(seed, slope=1.5)
    found = fit_calibration("temperature", labels, scores, targets=targets)
    wanted = np.where(labels, 46 / 47, 1 / 107) if targets == "smoothed" else labels
    scanned = np.arange(0.5, 8, 1e-3)
    p = expit(logit(scores) / scanned[:, None])
    losses = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).sum(1)
    assert isinstance(found, Temperature)
    assert found.temperature == pytest.approx(scanned[losses.argmin()], abs=6e-4)


@pytest.mark.parametrize("targets", ["smoothed", "plain"])
@pytest.mark.parametrize("seed", SEEDS)
def test_beta_is_what_a_naive_optimiser_finds(seed: int, targets: str) -> None:
    labels, scores = cohort(seed, slope=1.5, shift=0.5)
    found = fit_calibration("beta", labels, scores, targets=targets)
    wanted = np.where(labels, 46 / 47, 1 / 107) if targets == "smoothed" else labels

    def loss(parameters: np.ndarray) -> float:
        a, b, c = parameters
        p = 1 / (1 + np.exp(-c) * (1 - scores) ** b / scores**a)
        return float(-(wanted * np.log(p) + (1 - wanted) * np.log1p(-p)).sum())

    naive = minimize(
        loss, [0.5, 0.5, 0.0], method="Nelder-Mead", bounds=[(0, None), (0, None), (None, None)],
        options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 10_000, "maxfev": 10_000},
    )  # fmt: skip
    assert isinstance(found, Beta)
    assert loss(np.array([found.a, found.b, found.c])) <= naive.fun + 1e-7
    a, b, c = naive.x
    expected = 1 / (1 + np.exp(-c) * (1 - scores) ** b / scores**a)
    np.testing.assert_allclose(found(scores), expected, atol=1e-4)


def test_a_shape_that_beta_would_bend_backwards_meets_its_bound() -> None:
    """Positives at both ends: without the bound one exponent would be negative."""
    scores = np.concatenate([np.linspace(0.01, 0.05, 12), np.linspace(0.3, 0.99, 60)])
    labels = np.concatenate([np.arange(12) % 2 == 0, np.linspace(0, 1, 60) > 0.5])
    free = LogisticRegression(C=np.inf, max_iter=10_000)
    free.fit(np.stack([np.log(scores), -np.log1p(-scores)], 1), labels)
    assert free.coef_[0, 0] < 0
    found = fit_calibration("beta", labels, scores, targets="plain")
    # The paper's own way: leave out the term and fit again.
    free.fit(-np.log1p(-scores)[:, None], labels)
    assert isinstance(found, Beta)
    assert found.a == 0
    assert found.b == pytest.approx(free.coef_[0, 0], rel=1e-3)


@pytest.mark.parametrize("kind", ["temperature", "platt", "beta"])
def test_the_true_map_is_found_in_a_large_cohort(kind: Kind) -> None:
    """Scores of log odds 2 (true) need half the log odds, and calibrated by it are the truth."""
    labels, scores = cohort(1, 100_000, 50_000, slope=2.0)
    found = fit_calibration(kind, labels, scores)
    grid = np.array([0.02, 0.2, 0.5, 0.8, 0.98])
    np.testing.assert_allclose(found(grid), expit(logit(grid) / 2), atol=0.01)


@pytest.mark.parametrize("kind", ["temperature", "platt", "beta", "isotonic"])
def test_separated_classes_give_finite_maps(kind: Kind) -> None:
    labels = np.arange(40) >= 20
    scores = np.concatenate([np.linspace(0.1, 0.3, 20), np.linspace(0.7, 0.9, 20)])
    smoothed = fit_calibration(kind, labels, scores)
    values = smoothed(scores)
    # Of 20 in each class, Platt asks for 1/22 and 21/22.
    assert values[~labels].mean() == pytest.approx(1 / 22, abs=0.015)
    assert values[labels].mean() == pytest.approx(21 / 22, abs=0.015)


def test_separated_classes_and_plain_targets_meet_the_limit() -> None:
    labels = np.arange(40) >= 20
    scores = np.concatenate([np.linspace(0.48, 0.49, 20), np.linspace(0.51, 0.52, 20)])
    platt = fit_calibration("platt", labels, scores, targets="plain")
    assert isinstance(platt, Platt)
    assert platt.slope == SLOPE_LIMIT
    assert np.isfinite(platt.intercept)
    temperature = fit_calibration("temperature", labels, scores, targets="plain")
    assert temperature == Temperature(temperature=1 / SLOPE_LIMIT)


def test_scores_that_fall_with_the_label_give_a_level_map_at_the_prevalence() -> None:
    labels = np.arange(50) < 20
    found = fit_calibration("platt", labels, np.linspace(0.1, 0.9, 50), targets="plain")
    assert isinstance(found, Platt)
    assert found.slope == 0
    assert found(0.3) == pytest.approx(20 / 50, abs=1e-6)


def test_log_losses_are_scikit_learns() -> None:
    labels, scores = cohort(0)
    assert log_losses(labels, scores).mean() == pytest.approx(log_loss(labels, scores), abs=1e-9)
    assert log_losses(np.array([True, False]), np.array([0.25, 0.0])) == pytest.approx(
        [np.log(4), 0], abs=2e-6
    )


def test_cross_validation_is_that_of_a_plain_loop() -> None:
    labels, scores = cohort(3, 40, 12)

    def fit(y: np.ndarray, s: np.ndarray) -> Platt:
        return fit_calibration("platt", y, s)

    found = cross_validated(fit, labels, scores, folds=4, repeats=2, seed=5)
    for repeat in range(2):
        folds = StratifiedKFold(4, shuffle=True, random_state=5 + repeat)
        for train, test in folds.split(scores[:, None], labels):
            expected = fit(labels[train], scores[train])(scores[test])
            np.testing.assert_array_equal(found[repeat, test], expected)


def test_no_patient_is_scored_by_a_map_that_saw_it() -> None:
    labels, scores = cohort(3, 40, 12)
    seen = []

    def fit(_: np.ndarray, s: np.ndarray) -> Uncalibrated:
        seen.append(set(s.tolist()))
        return Uncalibrated()

    held_out = cross_validated(fit, labels, scores, folds=4, repeats=1, seed=0)[0]
    np.testing.assert_array_equal(held_out, scores)
    assert [40 - len(part) for part in seen] == [10] * 4
    assert set.intersection(*seen) == set()


def test_calibrated_scores_are_left_alone() -> None:
    labels, scores = cohort(2, 200, 60)
    choice = choose_calibration(labels, scores, repeats=2)
    assert choice.map == Uncalibrated()
    assert choice.warnings == ()
    # The cross-validated loss of no map is the loss itself.
    assert choice.log_loss["none"] == pytest.approx(log_loss(labels, scores))


def test_scores_that_are_too_extreme_get_a_temperature() -> None:
    """Half of each class: the true map has no intercept."""
    labels, scores = cohort(2, 200, 100, slope=3)
    choice = choose_calibration(labels, scores, repeats=2)
    assert isinstance(choice.map, Temperature)
    assert choice.map.temperature == pytest.approx(3, rel=0.3)


def test_scores_that_are_shifted_get_an_intercept() -> None:
    labels, scores = cohort(2, 200, 60, slope=2, shift=3)
    choice = choose_calibration(labels, scores, repeats=2)
    assert isinstance(choice.map, Platt)
    assert set(choice.log_loss) == {"none", "temperature", "platt", "beta"}
    assert choice.left_out == {"isotonic": "200 patients; it takes 1000"}
    assert min(choice.log_loss, key=choice.log_loss.__getitem__) in ("platt", "beta")


def test_steps_are_isotonic_where_patients_are_many() -> None:
    """Three levels, far from any curve that the other kinds can take."""
    random = np.random.default_rng(0)
    scores = random.random(3000)
    labels = random.random(3000) < np.select([scores < 0.1, scores < 0.9], [0.02, 0.5], 0.98)
    choice = choose_calibration(labels, scores, repeats=1)
    assert isinstance(choice.map, Isotonic)
    assert choice.left_out == {}
    np.testing.assert_allclose(choice.map([0.05, 0.5, 0.95]), [0.02, 0.5, 0.98], atol=0.08)


def test_the_choice_is_the_same_again_and_in_any_order_of_kinds() -> None:
    labels, scores = cohort(4, 100, 40, slope=2)
    first = choose_calibration(labels, scores, repeats=2)
    assert first == choose_calibration(labels, scores, repeats=2)
    assert first == choose_calibration(labels, scores, repeats=2, kinds=KINDS[::-1])


@pytest.mark.parametrize(
    ("positives", "tried", "untried"),
    [
        (9, {"none"}, "temperature, platt, beta"),
        (10, {"none", "temperature"}, "platt, beta"),
        (20, {"none", "temperature", "platt"}, "beta"),
        (30, {"none", "temperature", "platt", "beta"}, ""),
    ],
)
@pytest.mark.parametrize("rare", ["positive", "negative"])
def test_few_patients_restrict_the_choice_and_are_told(
    positives: int, tried: set[str], untried: str, rare: str
) -> None:
    labels, scores = cohort(1, 90, positives)
    if rare == "negative":
        labels, scores = ~labels, 1 - scores
    choice = choose_calibration(labels, scores, repeats=1)
    assert set(choice.log_loss) == tried
    told = (
        f"There are {positives} {rare} patients to calibrate on, and each parameter takes 10 "
        f"(Peduzzi et al. 1996); not tried: {untried}."
    )
    assert choice.warnings == ((told,) if untried else ())


def test_a_single_positive_patient_is_not_calibrated_on() -> None:
    choice = choose_calibration([1, 0, 0, 0], [0.5, 0.25, 0.25, 0.25])
    assert choice.map == Uncalibrated()
    assert choice.log_loss == {"none": pytest.approx((np.log(2) + 3 * np.log(4 / 3)) / 4)}
    assert choice.warnings[0].startswith("There are 1 positive patients to calibrate on, and")


def test_a_level_map_is_not_taken() -> None:
    labels = np.arange(60) < 30
    choice = choose_calibration(labels, np.linspace(0.1, 0.9, 60), repeats=1)
    assert choice.map == Uncalibrated()
    assert set(choice.log_loss) == {"none"}
    assert choice.warnings == (
        "On validation patients the fitted map is level; not taken: temperature, platt, beta.",
    )


def test_equal_scores_are_not_calibrated() -> None:
    choice = choose_calibration(np.arange(60) < 30, np.full(60, 0.4), repeats=1)
    assert choice.map == Uncalibrated()
    assert choice.warnings == (
        "On validation patients all scores are equal; not taken: temperature, platt, beta.",
    )


def test_the_choice_as_json() -> None:
    labels, scores = cohort(2, 100, 40, slope=3)
    choice = choose_calibration(labels, scores, repeats=1, seed=7)
    content = json.loads(json.dumps(choice.to_json(), allow_nan=False))
    assert calibration_from_json(content["map"]) == choice.map
    assert content["log_loss"] == choice.log_loss
    assert (content["patients"], content["positives"], content["seed"]) == (100, 40, 7)


@pytest.mark.parametrize(
    ("labels", "scores", "what", "remedy"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "there is no negative patient to calibrate on",
         "Give validation a larger share, or add patients."),
        ([0, 0, 0], [0.1, 0.2, 0.3], "there is no positive patient to calibrate on",
         "Give validation a larger share, or add patients."),
        ([1, 0], [0.1, 0.2],
         "2 patients are too few to calibrate on: it takes 3 at the least, and tens to mean "
         "anything", "Give validation a larger share, or add patients."),
        ([1, 0, 1], [0.1, 0.2, np.nan], "a score is not a number", "Look at predictions.parquet."),
        ([1, 0, 1], [0.1, 0.2, 1.5], "a score does not lie between 0 and 1",
         "Look at predictions.parquet."),
        ([1, 0, 1], [0.4, 0.4, 0.4], "all scores are equal: there is nothing to calibrate",
         "Look at predictions.parquet, or calibrate by 'none'."),
    ],
)  # fmt: skip
def test_messages(labels: list[int], scores: list[float], what: str, remedy: str) -> None:
    with pytest.raises(StageError) as caught:
        fit_calibration("platt", labels, scores)
    assert str(caught.value) == f"validation patients: {what}. {remedy}"


def test_what_a_caller_must_not_give() -> None:
    with pytest.raises(ValueError, match="unknown kind of calibration 'spline'; known: none, temp"):
        fit_calibration("spline", [1, 0, 1], [0.1, 0.2, 0.3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels are"):
        fit_calibration("platt", [1, 0, 1], [0.1, 0.2])


def test_the_true_map_has_the_lowest_expected_loss() -> None:
    """What the drawn cohorts rest on: Bayes' log odds of two normals."""
    x = np.linspace(-4, 4, 9)
    share = 0.3 * norm.pdf(x, 1) / (0.3 * norm.pdf(x, 1) + 0.7 * norm.pdf(x, -1))
    np.testing.assert_allclose(logit(share), 2 * x + np.log(0.3 / 0.7), rtol=1e-9)
