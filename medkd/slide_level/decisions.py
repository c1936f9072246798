"""What is fitted to validation patients and frozen: from a score to a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medkd.config import SlideLevelConfig
from medkd.slide_level.calibration import CalibrationMap, Uncalibrated
from medkd.slide_level.calibration_fit import choose_calibration, fit_calibration
from medkd.slide_level.conformal import ConformalSets, fit_conformal
from medkd.slide_level.labelled import FEWEST_PATIENTS
from medkd.slide_level.operating_point import (
    OperatingPoint,
    choose_operating_point,
    cost_weighted_point,
    fixed_specificity_point,
    youden_point,
)


@dataclass(frozen=True)
class Decisions:
    """How a score becomes a call.

    Attributes:
        calibration: from the ensemble's score to the probability of the positive class.
        calibration_record: how it was chosen, in JSON's types.
        operating_point: a threshold of that probability.
        conformal: calls by these instead; None: by the operating point.
        warnings: where patients were too few, a sentence each.
    """

    calibration: CalibrationMap
    calibration_record: dict[str, Any]
    operating_point: OperatingPoint
    conformal: ConformalSets | None
    warnings: tuple[str, ...]


def decide(
    labels: np.ndarray, scores: np.ndarray, settings: SlideLevelConfig, *, seed: int, date: str
) -> Decisions:
    """Fit everything that is frozen with a model.

    Args:
        labels: of validation patients, (patients,), True for the positive class.
        scores: of the ensemble, (patients,), in [0, 1].
        settings: what is asked for.
        seed: of the cross-validation that chooses a calibration.
        date: ISO date, kept with the operating point.

    Raises:
        StageError: a class is absent, patients are too few for what was asked, or a score is not
            in [0, 1].
    """
    # First of all: it is what cannot be done without, and says best what is lacking.
    _operating_point(labels, scores, settings, date)
    calibration, record, warnings = _calibration(labels, scores, settings, seed)
    probabilities = calibration(scores)
    point = _operating_point(labels, probabilities, settings, date)
    conformal = None
    if settings.conformal_error is not None:
        conformal = fit_conformal(labels, probabilities, settings.conformal_error, date=date)
    return Decisions(
        calibration, record, point, conformal, (*_alike(scores), *warnings, *point.warnings)
    )


def _alike(scores: np.ndarray) -> tuple[str, ...]:
    if np.ptp(scores) > 0:
        return ()
    return (
        f"All {len(scores)} validation patients have the score {scores[0]:.4f}: no threshold tells "
        "them apart, and calls mean nothing",
    )


def _calibration(
    labels: np.ndarray, scores: np.ndarray, settings: SlideLevelConfig, seed: int
) -> tuple[CalibrationMap, dict[str, Any], tuple[str, ...]]:
    if settings.calibration != "best":
        fitted = fit_calibration(settings.calibration, labels, scores)
        return fitted, {"map": fitted.model_dump(mode="json"), "asked_for": fitted.kind}, ()
    if len(labels) < FEWEST_PATIENTS:
        told = f"{len(labels)} validation patients are too few to calibrate: scores are as they are"
        none = Uncalibrated()
        return none, {"map": none.model_dump(mode="json"), "warnings": [told]}, (told,)
    choice = choose_calibration(labels, scores, seed=seed)
    return choice.map, choice.to_json(), choice.warnings


def _operating_point(
    labels: np.ndarray, probabilities: np.ndarray, settings: SlideLevelConfig, date: str
) -> OperatingPoint:
    known: dict[str, Any] = {"confidence": settings.confidence, "date": date}
    if settings.operating_point == "specificity":
        return fixed_specificity_point(labels, probabilities, settings.target_specificity, **known)
    if settings.operating_point == "youden":
        return youden_point(labels, probabilities, **known)
    if settings.operating_point == "cost":
        return cost_weighted_point(
            labels,
            probabilities,
            cost_ratio=settings.cost_ratio,
            prevalence=settings.cost_prevalence,
            **known,
        )
    return choose_operating_point(labels, probabilities, settings.target_sensitivity, **known)
