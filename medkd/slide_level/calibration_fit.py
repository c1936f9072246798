"""Fitting calibration maps to validation patients, and choosing among them by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from medkd.errors import StageError
from medkd.slide_level.calibration import (
    SLOPE_LIMIT,
    Beta,
    CalibrationMap,
    Isotonic,
    Platt,
    Temperature,
    Uncalibrated,
    beta_features,
    logit,
)
from medkd.slide_level.labelled import check_labelled

Kind = Literal["none", "temperature", "platt", "beta", "isotonic"]
Targets = Literal["smoothed", "plain"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""From the simplest to the most complex."""

PATIENTS_PER_PARAMETER = 10
"""Of the rarer class, for each parameter that is fitted (Peduzzi et al., J Clin Epidemiol 1996)."""

ISOTONIC_PATIENTS = 1000
"""Isotonic regression overfits with fewer (Niculescu-Mizil and Caruana, ICML 2005)."""

COHORT = "validation patients"
PURPOSE = "to calibrate on"

PARAMETERS: dict[Kind, int] = {"none": 0, "temperature": 1, "platt": 2, "beta": 3}
"""Isotonic regression has no fixed number of them."""


def fit_calibration(
    kind: Kind, labels: Any, scores: Any, *, targets: Targets = "smoothed"
) -> CalibrationMap:
    """Fit a map by maximum likelihood, with slopes of at least 0 and at most ``SLOPE_LIMIT``.

    Args:
        kind: ``none``, ``temperature``, ``platt``, ``beta`` or ``isotonic``.
        labels: (patients,), True for the positive class.
        scores: (patients,), in [0, 1].
        targets: of the parametric kinds. ``smoothed`` asks for (P + 1) / (P + 2) of a positive and
            for 1 / (N + 2) of a negative, for P positives and N negatives (Platt 1999). This is
            what keeps slopes moderate where the classes are separated. ``plain`` asks for 1 and 0;
            then only the limit does. Isotonic regression takes plain labels, and what it gives is
            clipped to the two smoothed targets, so that it is never 0 or 1.

    Raises:
        StageError: a class is absent, patients are too few, a score is not in [0, 1], or all
            scores are equal.
        ValueError: the kind is unknown.
    """
    labels, scores = check_labelled(labels, scores, cohort=COHORT, purpose=PURPOSE)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of calibration '{kind}'; known: {', '.join(KINDS)}")
    if kind == "none":
        return Uncalibrated()
    if scores.min() == scores.max():
        raise StageError(
            "all scores are equal: there is nothing to calibrate",
            where=COHORT,
            remedy="Look at predictions.parquet, or calibrate by 'none'.",
        )
    low, high = smoothed_targets(labels)
    if kind == "isotonic":
        return _isotonic(labels, scores, low, high)
    wanted = np.where(labels, high, low) if targets == "smoothed" else labels.astype(np.float64)
    logits = logit(scores)
    if kind == "temperature":
        bounds = [(1 / SLOPE_LIMIT, SLOPE_LIMIT)]
        slope = maximum_likelihood(logits[:, None], wanted, bounds, [1.0])[0]
        return Temperature(temperature=float(1 / slope))
    ones = np.ones_like(logits)
    if kind == "platt":
        features = np.stack([logits, ones], 1)
        bounds = [(0, SLOPE_LIMIT), (-np.inf, np.inf)]
        slope, intercept = maximum_likelihood(features, wanted, bounds, [1.0, 0.0])
        return Platt(slope=float(slope), intercept=float(intercept))
    features = np.stack([*beta_features(scores), ones], 1)
    bounds = [(0, SLOPE_LIMIT), (0, SLOPE_LIMIT), (-np.inf, np.inf)]
    a, b, c = maximum_likelihood(features, wanted, bounds, [1.0, 1.0, 0.0])
    return Beta(a=float(a), b=float(b), c=float(c))


def smoothed_targets(labels: np.ndarray) -> tuple[float, float]:
    """What a negative and a positive patient are asked to have (Platt 1999)."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return 1 / (negatives + 2), (positives + 1) / (positives + 2)


def maximum_likelihood(
    features: np.ndarray,
    targets: np.ndarray,
    bounds: Sequence[tuple[float, float]],
    start: Sequence[float],
    offset: float | np.ndarray = 0.0,
) -> np.ndarray:
    """Logistic regression within bounds, by L-BFGS-B. The loss is convex.

    Args:
        features: (patients, parameters), a column of ones for an intercept.
        targets: (patients,), in [0, 1].
        bounds: of each parameter.
        start: where the search begins.
        offset: what is added to every log odds.
    """
    from scipy.optimize import minimize

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = features @ parameters + offset
        value = np.mean(np.logaddexp(0, log_odds) - targets * log_odds)
        slope = features.T @ (np.exp(-np.logaddexp(0, -log_odds)) - targets) / len(targets)
        return float(value), slope

    found = minimize(
        loss,
        np.asarray(start, np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000},
    )
    return np.asarray(found.x, np.float64)


def _isotonic(labels: np.ndarray, scores: np.ndarray, low: float, high: float) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=low, y_max=high).fit(scores, labels.astype(np.float64))
    return Isotonic(
        scores=tuple(fitted.X_thresholds_.tolist()),
        probabilities=tuple(fitted.y_thresholds_.tolist()),
    )


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each patient's log loss in nats, (patients,); 0 and 1 are taken for ``EPSILON`` off."""
    return np.logaddexp(0, np.where(labels, -1, 1) * logit(probabilities))


def cross_validated(
    fit: Callable[[np.ndarray, np.ndarray], CalibrationMap],
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    folds: int,
    repeats: int,
    seed: int,
) -> np.ndarray:
    """Each patient's probability by the maps of the folds that the patient was not in.

    Args:
        fit: takes labels and scores of a fold's patients.
        folds: stratified; no more than there are patients of the rarer class.

    Returns:
        (repeats, patients).
    """
    from sklearn.model_selection import StratifiedKFold

    rarer = min(int(labels.sum()), int((~labels).sum()))
    probabilities = np.empty((repeats, len(labels)))
    for repeat in range(repeats):
        divided = StratifiedKFold(min(folds, rarer), shuffle=True, random_state=seed + repeat)
        for train, held_out in divided.split(scores[:, None], labels):
            probabilities[repeat, held_out] = fit(labels[train], scores[train])(scores[held_out])
    return probabilities


@dataclass(frozen=True)
class CalibrationChoice:
    """A map, and why this one.

    Attributes:
        map: fitted to all patients.
        log_loss: cross-validated, nats a patient, of each kind that was tried.
        left_out: kinds that were not tried or not taken, and why.
        warnings: what a user should know, a sentence each.
        patients, positives: whom it was chosen on.
        folds, repeats, seed: of the cross-validation.
    """

    map: CalibrationMap
    log_loss: dict[Kind, float]
    left_out: dict[Kind, str]
    warnings: tuple[str, ...]
    patients: int
    positives: int
    folds: int
    repeats: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **content,
            "map": self.map.model_dump(mode="json"),
            "warnings": list(self.warnings),
        }


def choose_calibration(
    labels: Any,
    scores: Any,
    *,
    kinds: Sequence[Kind] = KINDS,
    targets: Targets = "smoothed",
    folds: int = 5,
    repeats: int = 10,
    seed: int = 0,
) -> CalibrationChoice:
    """Choose a kind by cross-validated log loss over validation patients; ties to the simpler.

    A kind ties with the best if it is worse by no more than one standard error of the difference
    over patients (Breiman et al. 1984, the one-standard-error rule, on paired differences). Kinds
    for which patients are too few are not tried. A map that is level everywhere is not taken: it
    would take from the patients their order.

    Args:
        labels: (patients,), True for the positive class.
        scores: (patients,), in [0, 1].
        kinds: which may be chosen; ``none`` always may.
        targets: see :func:`fit_calibration`.
        folds, repeats, seed: of the stratified cross-validation.

    Raises:
        StageError: a class is absent, patients are too few, or a score is not in [0, 1].
    """
    labels, scores = check_labelled(labels, scores, cohort=COHORT, purpose=PURPOSE)
    maps: dict[Kind, CalibrationMap] = {"none": Uncalibrated()}
    few: dict[Kind, str] = {}
    level: dict[Kind, str] = {}
    asked: list[Kind] = [kind for kind in KINDS if kind != "none" and kind in kinds]
    for kind in asked:
        if lacking := _too_few(kind, labels):
            few[kind] = lacking
        elif scores.min() == scores.max():
            level[kind] = "all scores are equal"
        else:
            fitted = fit_calibration(kind, labels, scores, targets=targets)
            if _is_level(fitted, scores):
                level[kind] = "the fitted map is level"
            else:
                maps[kind] = fitted

    losses: dict[Kind, np.ndarray] = {}
    for kind in maps:

        def fit(y: np.ndarray, s: np.ndarray, kind: Kind = kind) -> CalibrationMap:
            # The patients outside a fold may all have one score, which teaches nothing.
            level = s.min() == s.max()
            return fit_calibration("none" if level else kind, y, s, targets=targets)

        # Nothing is fitted by 'none', and a single patient of a class cannot be held out.
        held_out = (
            scores[None]
            if kind == "none"
            else cross_validated(fit, labels, scores, folds=folds, repeats=repeats, seed=seed)
        )
        losses[kind] = log_losses(labels, held_out).mean(0)
    best = min(losses, key=lambda kind: losses[kind].mean())
    chosen = next(kind for kind in maps if _ties(losses[kind], losses[best]))
    return CalibrationChoice(
        map=maps[chosen],
        log_loss={kind: float(loss.mean()) for kind, loss in losses.items()},
        left_out={**few, **level},
        warnings=_warnings(labels, few, level),
        patients=len(labels),
        positives=int(labels.sum()),
        folds=folds,
        repeats=repeats,
        seed=seed,
    )


def rarer_class(labels: np.ndarray) -> tuple[int, str]:
    """How many patients the rarer class has, and whether it is 'positive' or 'negative'."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return (positives, "positive") if positives <= negatives else (negatives, "negative")


def _too_few(kind: Kind, labels: np.ndarray) -> str:
    if kind == "isotonic":
        short = len(labels) < ISOTONIC_PATIENTS
        return f"{len(labels)} patients; it takes {ISOTONIC_PATIENTS}" if short else ""
    needed = PATIENTS_PER_PARAMETER * PARAMETERS[kind]
    count, name = rarer_class(labels)
    return f"{count} {name} patients; it takes {needed}" if count < needed else ""


def _is_level(fitted: CalibrationMap, scores: np.ndarray) -> bool:
    if isinstance(fitted, Temperature):
        return fitted.temperature > 0.999 * SLOPE_LIMIT
    return bool(np.ptp(fitted(scores)) == 0)


def _ties(losses: np.ndarray, best: np.ndarray) -> bool:
    worse = losses - best
    return bool(worse.mean() <= worse.std(ddof=1) / np.sqrt(len(worse)))


def _warnings(labels: np.ndarray, few: dict[Kind, str], level: dict[Kind, str]) -> tuple[str, ...]:
    told = []
    # Isotonic regression is out for nearly every cohort, which alarms nobody.
    if parametric := [kind for kind in few if kind in PARAMETERS]:
        count, name = rarer_class(labels)
        told.append(
            f"There are {count} {name} patients to calibrate on, and each parameter takes "
            f"{PATIENTS_PER_PARAMETER} (Peduzzi et al. 1996); not tried: {', '.join(parametric)}."
        )
    for reason in dict.fromkeys(level.values()):
        names = ", ".join(kind for kind in level if level[kind] == reason)
        told.append(f"On validation patients {reason}; not taken: {names}.")
    return tuple(told)
