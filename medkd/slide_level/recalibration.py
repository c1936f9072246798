"""A model taken to a new scanner or site: threshold and calibration from its labelled patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medkd.errors import StageError
from medkd.slide_level.calibration import (
    SLOPE_LIMIT,
    CalibrationMap,
    Recalibrated,
    expit,
    logit,
)
from medkd.slide_level.calibration_error import CalibrationFigures, calibration_figures
from medkd.slide_level.calibration_fit import (
    PATIENTS_PER_PARAMETER,
    cross_validated,
    maximum_likelihood,
    rarer_class,
    smoothed_targets,
)
from medkd.slide_level.labelled import check_labelled
from medkd.slide_level.operating_point import OperatingPoint, at_threshold, choose_operating_point

FOLDS = 10


@dataclass(frozen=True)
class UpdatedMap:
    """A calibration map moved to a new site.

    Attributes:
        map: the old map itself where nothing was fitted or the shift is within chance.
        parameters: how many were fitted: 0, 1 (temperature) or 2 (Platt).
        shrinkage: 0 keeps the old map, 1 takes the new fit as it is.
        kept: why nothing was fitted; empty where the fit was within chance, or was taken.
    """

    map: CalibrationMap
    parameters: int
    shrinkage: float
    kept: str = ""


@dataclass(frozen=True)
class Recalibration:
    """What a new site's patients change, before and after. All figures are of the new site.

    Attributes:
        map: the new calibration map.
        parameters, shrinkage: see :class:`UpdatedMap`.
        old_point: what the old threshold reaches on the old map's probabilities.
        new_point: the new threshold, on the new map's probabilities.
        old_calibration: of the old map.
        new_calibration: of the new map, cross-validated: each patient's probability is by a map
            that did not see the patient.
        warnings: what a user should know, a sentence each.
    """

    map: CalibrationMap
    parameters: int
    shrinkage: float
    old_point: OperatingPoint
    new_point: OperatingPoint
    old_calibration: CalibrationFigures
    new_calibration: CalibrationFigures
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {
            "map": self.map.model_dump(mode="json"),
            "parameters": self.parameters,
            "shrinkage": self.shrinkage,
            "old": {
                "operating_point": self.old_point.to_json(),
                "calibration": self.old_calibration.to_json(),
            },
            "new": {
                "operating_point": self.new_point.to_json(),
                "calibration": self.new_calibration.to_json(),
            },
            "warnings": list(self.warnings),
        }


def recalibrate(
    labels: Any,
    scores: Any,
    old_map: CalibrationMap,
    old_threshold: float,
    *,
    target_sensitivity: float = 0.95,
    prevalence: float | None = None,
    confidence: float = 0.95,
    bins: int = 5,
    seed: int = 0,
    date: str,
    cohort: str = "patients of the new site",
) -> Recalibration:
    """Fit threshold and calibration to a new site.

    Fewer than 10 patients of the rarer class leave the old map, fewer than 20 fit a temperature,
    20 and more slope and intercept: see :func:`update_map`. The interval of the new sensitivity
    holds for new patients of the site, although the same patients chose the threshold: see
    :class:`medkd.slide_level.operating_point.OperatingPoint`.

    Args:
        labels: (patients,), True for the positive class.
        scores: (patients,), the students' scores before any map, in [0, 1].
        old_map: the model's calibration map.
        old_threshold: the model's operating point, on the old map's probabilities.
        target_sensitivity: of the new operating point.
        prevalence: of the positive class at the new site. Needed where the patients were picked by
            label, such as 30 of each class; None takes the share of positives among them.
        confidence: level of every interval.
        bins: of the calibration figures.
        seed: of the cross-validation.
        date: ISO date.
        cohort: who the patients are, in words.

    Raises:
        StageError: a class is absent, patients are too few, a score is not in [0, 1], or the
            target or the prevalence is out of range.
    """
    labels, scores = check_labelled(labels, scores, cohort=cohort, purpose="to recalibrate on")
    if prevalence is not None and not 0 < prevalence < 1:
        raise StageError(
            f"the prevalence is {prevalence:g}, and must lie between 0 and 1",
            where=cohort,
            remedy="Change it.",
        )
    picked = 0.0 if prevalence is None else _log_odds(labels.mean()) - _log_odds(prevalence)
    # As many in every fold as for all patients, or the figures would be of another way to fit.
    parameters = min(2, rarer_class(labels)[0] // PATIENTS_PER_PARAMETER)
    updated = update_map(labels, scores, old_map, parameters, picked=picked)

    def update(fold_labels: np.ndarray, fold_scores: np.ndarray) -> CalibrationMap:
        return update_map(fold_labels, fold_scores, old_map, parameters, picked=picked).map

    def among_these(probabilities: np.ndarray) -> np.ndarray:
        # Figures are of these patients, among whom positives may be more common than at the site.
        return probabilities if prevalence is None else expit(logit(probabilities) + picked)

    # Nothing fitted, nothing to cross-validate; and a single patient of a class cannot be held out.
    held_out = (
        cross_validated(update, labels, scores, folds=FOLDS, repeats=1, seed=seed)[0]
        if parameters
        else updated.map(scores)
    )
    kept = (f"The old calibration map is kept: {updated.kept}.",) if updated.kept else ()
    options: dict[str, Any] = {"confidence": confidence, "cohort": cohort}
    new_point = choose_operating_point(
        labels, updated.map(scores), target_sensitivity, date=date, **options
    )
    return Recalibration(
        map=updated.map,
        parameters=updated.parameters,
        shrinkage=updated.shrinkage,
        old_point=at_threshold(labels, old_map(scores), old_threshold, date=date, **options),
        new_point=new_point,
        old_calibration=calibration_figures(
            labels, among_these(old_map(scores)), bins=bins, **options
        ),
        new_calibration=calibration_figures(labels, among_these(held_out), bins=bins, **options),
        warnings=(*kept, *new_point.warnings),
    )


def update_map(
    labels: np.ndarray,
    scores: np.ndarray,
    old_map: CalibrationMap,
    parameters: int,
    *,
    picked: float = 0.0,
) -> UpdatedMap:
    """Refit slope and intercept on the old map's log odds, shrunk towards the old map.

    At the new site the log odds are taken to be ``slope * those of the old map + intercept``. What
    is fitted goes only part of the way from slope 1 and intercept 0: (chi2 - k) / chi2 of it,
    for k parameters and the likelihood ratio chi2 of the new fit against the old map (van
    Houwelingen and le Cessie 1990; for updating models: Steyerberg et al., Stat Med 23, 2004). A
    shift that chance explains is left alone; one that is plain is taken nearly whole. Targets are
    Platt's, so that separated classes give finite slopes.

    Args:
        labels: bool, (patients,).
        scores: float, (patients,), before any map.
        old_map: the map to move.
        parameters: 2 fits slope and intercept (Platt), 1 the slope alone (temperature), 0 nothing.
        picked: by how much the log odds of being positive are higher among these patients than at
            the site, because they were picked by label.
    """
    if parameters == 0:
        count, name = rarer_class(labels)
        return _kept(
            old_map,
            f"{count} {name} patients are too few to calibrate on, each parameter takes "
            f"{PATIENTS_PER_PARAMETER} (Peduzzi et al. 1996)",
        )
    log_odds = logit(old_map(scores))
    if log_odds.min() == log_odds.max():
        return _kept(old_map, "the old map is level over all scores of the new site")
    low, high = smoothed_targets(labels)
    targets = np.where(labels, high, low)
    features = np.stack([log_odds, np.ones_like(log_odds)], 1)[:, :parameters]
    bounds = [(0.0, SLOPE_LIMIT), (-np.inf, np.inf)][:parameters]
    old = np.array([1.0, 0.0])[:parameters]
    new = maximum_likelihood(features, targets, bounds, old.tolist(), picked)
    if new[0] < 1 / SLOPE_LIMIT:
        return _kept(old_map, "at the new site scores do not rise with the label")
    before, after = (
        float(np.sum(np.logaddexp(0, z) - targets * z))
        for z in (features @ old + picked, features @ new + picked)
    )
    chi2 = 2 * (before - after)
    if chi2 <= parameters:
        return _kept(old_map, "")
    shrinkage = (chi2 - parameters) / chi2
    slope, intercept = np.append(old + shrinkage * (new - old), 0.0)[:2]
    moved = Recalibrated(old=old_map, slope=float(slope), intercept=float(intercept))
    return UpdatedMap(moved, parameters, shrinkage)


def _kept(old_map: CalibrationMap, why: str) -> UpdatedMap:
    return UpdatedMap(old_map, 0, 0.0, why)


def _log_odds(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))
