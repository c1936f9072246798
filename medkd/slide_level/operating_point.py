"""The operating point: the threshold that is chosen once, on validation patients, and frozen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medkd.errors import StageError


@dataclass(frozen=True)
class OperatingPoint:
    """A frozen threshold and what it reached where it was chosen.

    A score of at least ``threshold`` counts as positive. Intervals are exact (Clopper-Pearson).
    """

    threshold: float
    target_sensitivity: float
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    specificity: float
    specificity_interval: tuple[float, float]
    cohort: str
    patients: int
    positives: int
    date: str
    method: str = "highest threshold that reaches the target sensitivity"

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def choose_operating_point(
    labels: np.ndarray,
    scores: np.ndarray,
    target_sensitivity: float,
    *,
    confidence: float,
    date: str,
    cohort: str = "validation patients",
) -> OperatingPoint:
    """The highest threshold at which at least ``target_sensitivity`` of the positives reach it.

    Args:
        labels: bool, (patients,), True for the positive class.
        scores: float, (patients,).
        target_sensitivity: in (0, 1].
        confidence: level of the intervals.
        date: ISO date of the choice.
        cohort: whom it was chosen on, in words.

    Raises:
        StageError: no positive or no negative patient, or a score that is not a number.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise StageError(
            "a score is not a number", where=cohort, remedy="Look at predictions.parquet."
        )
    positives = np.sort(scores[labels])[::-1]
    negatives = scores[~labels]
    if not len(positives) or not len(negatives):
        lacking = "positive" if not len(positives) else "negative"
        raise StageError(
            f"there is no {lacking} patient to choose the operating point on",
            where=cohort,
            remedy="Give validation a larger share, or add patients.",
        )
    needed = math.ceil(target_sensitivity * len(positives) - 1e-9)
    threshold = float(positives[needed - 1])
    found, spared = int((positives >= threshold).sum()), int((negatives < threshold).sum())
    return OperatingPoint(
        threshold=threshold,
        target_sensitivity=target_sensitivity,
        sensitivity=found / len(positives),
        sensitivity_interval=exact_interval(found, len(positives), confidence),
        specificity=spared / len(negatives),
        specificity_interval=exact_interval(spared, len(negatives), confidence),
        cohort=cohort,
        patients=len(labels),
        positives=len(positives),
        date=date,
    )


def exact_interval(hits: int, total: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a proportion (Biometrika 26, 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
