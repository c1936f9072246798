"""Areas under ROC curves with DeLong's covariance: intervals and tests without resampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import chi2, norm, rankdata

from medkd.slide_level.resampling import end_interval
from medkd.slide_level.scored import checked_rows, scored_patients
from medkd.slide_level.statistics import Comparison, Estimate


@dataclass(frozen=True)
class RocAreas:
    """Areas under the ROC curves of several runs on the same patients.

    Attributes:
        areas: AUROC of each run, (runs,); not a number where a class is absent.
        covariance: of the areas, (runs, runs); not a number where a class has fewer than two
            patients.
        positives, negatives: patients of each class.
    """

    areas: np.ndarray
    covariance: np.ndarray
    positives: int
    negatives: int


def delong(
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    patients: np.ndarray | None = None,
    where: str = "scores",
) -> RocAreas:
    """AUROC of several runs with their covariance (DeLong, DeLong and Clarke-Pearson 1988).

    Structural components by midranks, O(n log n) (Sun and Xu 2014). Where patients have several
    rows, components are summed within each patient first (Obuchowski 1997); with one row each
    that is DeLong's own.

    Args:
        labels: bool, (rows,).
        scores: (rows,), or (runs, rows) for several runs on the same rows.
        patients: patient of each row, (rows,).
        where: what the scores are of, for messages.

    Raises:
        StageError: as :func:`medkd.slide_level.scored.scored_patients` has it.
    """
    runs = np.atleast_2d(np.asarray(scores, np.float64))
    for run in runs:
        cohort = scored_patients(labels, run, patients, where=where)
    truth, _, patients = checked_rows(labels, runs[0], patients, where=where)
    counts = cohort.positive.patient_count, cohort.negative.patient_count
    unknown = np.full((len(runs), len(runs)), np.nan)
    if not all(counts):
        return RocAreas(unknown[:, 0], unknown, *counts)
    ranks = rankdata(runs, axis=1)
    covariance = np.zeros_like(unknown)
    for side, other in ((truth, ~truth), (~truth, truth)):
        below = ranks[:, side] - rankdata(runs[:, side], axis=1)
        components = below / other.sum()
        if side is not truth:
            components = 1 - components
        areas = components.mean(1)
        _, numbers = np.unique(patients[side], return_inverse=True)
        count = int(numbers.max()) + 1
        if count == 1:
            return RocAreas(areas, unknown, *counts)
        of_patient = np.stack(
            [np.bincount(numbers, row, count) for row in components - areas[:, None]]
        )
        covariance += of_patient @ of_patient.T * count / (count - 1) / side.sum() ** 2
    return RocAreas(areas, covariance, *counts)


def area_intervals(found: RocAreas, *, confidence: float) -> list[Estimate]:
    """Each area with its interval, which is symmetric on the logit scale.

    On that scale the interval stays within 0 and 1 and covers better near 1 (Pepe 2003, chapter 5).
    An area of 0 or 1 has DeLong's variance 0 and no logit: its interval is
    :func:`medkd.slide_level.resampling.end_interval`.
    """
    return [
        _area_interval(float(area), float(variance), found, confidence)
        for area, variance in zip(found.areas, np.diag(found.covariance), strict=True)
    ]


def delong_test(
    found: RocAreas, first: int = 0, second: int = 1, *, confidence: float
) -> Comparison:
    """Test whether two correlated curves have the same area; the interval is on the plain scale.

    Args:
        found: from :func:`delong`.
        first, second: which two runs.
        confidence: level of the difference's interval.
    """
    contrast = np.zeros(len(found.areas))
    contrast[first] += 1
    contrast[second] -= 1
    of_first, of_second = (_or_none(float(found.areas[run])) for run in (first, second))
    difference = float(contrast @ found.areas)
    variance = float(contrast @ found.covariance @ contrast)
    reason = _no_variance(found)
    if not np.isfinite(difference):
        return Comparison(of_first, of_second, Estimate(None, reason=reason))
    if not _is_positive(variance):
        reason = reason or "DeLong's variance of the difference is 0"
        return Comparison(of_first, of_second, Estimate(difference, reason=reason))
    error = variance**0.5
    half = float(norm.isf((1 - confidence) / 2)) * error
    p_value = 2 * float(norm.sf(abs(difference) / error))
    return Comparison(
        of_first, of_second, Estimate(difference, difference - half, difference + half), p_value
    )


def delong_equality_test(found: RocAreas) -> tuple[float, int, float]:
    """Test whether all curves have the same area.

    Returns:
        Chi-square, its degrees of freedom (the rank of the differences' covariance) and the
        p-value.

    Raises:
        ValueError: fewer than two runs, or fewer than two patients of a class.
    """
    if len(found.areas) < 2 or not np.isfinite(found.covariance).all():
        raise ValueError("needs two runs and two patients of each class")
    contrasts = np.eye(len(found.areas))[1:] - np.eye(len(found.areas))[:1]
    differences = contrasts @ found.areas
    covariance = contrasts @ found.covariance @ contrasts.T
    freedom = int(np.linalg.matrix_rank(covariance, hermitian=True))
    statistic = float(differences @ np.linalg.pinv(covariance, hermitian=True) @ differences)
    return statistic, freedom, float(chi2.sf(statistic, freedom)) if freedom else 1.0


def _area_interval(area: float, variance: float, found: RocAreas, confidence: float) -> Estimate:
    reason = _no_variance(found)
    if not np.isfinite(area):
        return Estimate(None, reason=reason)
    if area in (0.0, 1.0):
        fewest = min(found.positives, found.negatives)
        return Estimate(area, *end_interval(area, fewest, confidence))
    if not _is_positive(variance):
        return Estimate(area, reason=reason or "DeLong's variance is 0")
    half = float(norm.isf((1 - confidence) / 2)) * variance**0.5 / (area * (1 - area))
    lower, upper = expit(logit(area) + np.array([-half, half]))
    return Estimate(area, float(lower), float(upper))


def _no_variance(found: RocAreas) -> str:
    if not found.positives or not found.negatives:
        return "a class is absent"
    if min(found.positives, found.negatives) == 1:
        return "a class has one patient alone: no variance"
    return ""


def _is_positive(variance: float) -> bool:
    # Components that cancel leave rounding, never 1e-15.
    return np.isfinite(variance) and variance > 1e-15


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
