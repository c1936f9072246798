"""The operating point: the threshold that is chosen once, on validation patients, and frozen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medkd.errors import StageError
from medkd.slide_level.labelled import check_labelled

COHORT = "validation patients"


@dataclass(frozen=True)
class OperatingPoint:
    """A frozen threshold and what it reached where it was chosen.

    A score of at least ``threshold`` counts as positive. Intervals are exact (Clopper-Pearson).
    Where sensitivity was fixed, that of the sensitivity holds although the same patients chose the
    threshold: its lower end is that of the order statistic (Wilks 1941). Likewise for specificity.
    Youden's and the cost-weighted point look better on the patients that chose them than they are.
    """

    threshold: float
    target_sensitivity: float | None
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    specificity: float
    specificity_interval: tuple[float, float]
    cohort: str
    patients: int
    positives: int
    date: str
    method: str
    rule: str
    prevalence: float
    """Of the cohort."""
    confidence: float
    """Level of the intervals."""
    target_specificity: float | None = None
    cost_ratio: float | None = None
    """What a missed positive costs, in false alarms."""
    stated_prevalence: float | None = None
    """For which the costs were weighed."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where patients were too few for what was asked of them, a sentence each."""
        told = []
        for name, count, target, lone in (
            ("positive", self.positives, self.target_sensitivity, "lowest"),
            ("negative", self.patients - self.positives, self.target_specificity, "highest"),
        ):
            if count == 1:
                told.append(
                    f"There is a single {name} patient: what the threshold does to others of the "
                    "class is anybody's guess."
                )
            elif target is not None and target < 1 and _at_least(target, count) == count:
                needed = math.ceil(1 / (1 - target) - 1e-9)
                told.append(
                    f"With {count} {name} patients the threshold rests on the {lone} of their "
                    f"scores alone; {100 * target:g}% of {needed} would let one be wrong."
                )
        return tuple(told)

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class _Sweep:
    """What every threshold would reach: each score once, rising, and one above all of them."""

    thresholds: np.ndarray
    found: np.ndarray
    spared: np.ndarray
    positives: int
    negatives: int


def choose_operating_point(
    labels: np.ndarray,
    scores: np.ndarray,
    target_sensitivity: float = 0.95,
    *,
    confidence: float,
    date: str,
    cohort: str = COHORT,
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
        StageError: no positive or no negative patient, a score that is not a number, or a target
            out of range.
    """
    _within("target sensitivity", target_sensitivity, cohort)
    sweep = _sweep(labels, scores, cohort)
    reached = sweep.found >= _at_least(target_sensitivity, sweep.positives)
    return _point(
        sweep,
        int(np.flatnonzero(reached)[-1]),
        confidence=confidence,
        date=date,
        cohort=cohort,
        rule="fixed sensitivity",
        method="highest threshold that reaches the target sensitivity",
        target_sensitivity=target_sensitivity,
    )


def fixed_specificity_point(
    labels: np.ndarray,
    scores: np.ndarray,
    target_specificity: float = 0.95,
    *,
    confidence: float,
    date: str,
    cohort: str = COHORT,
) -> OperatingPoint:
    """The lowest score of a patient below which at least ``target_specificity`` of negatives lie.

    Where no patient's score is high enough, the threshold lies just above all of them.
    Arguments and errors are those of :func:`choose_operating_point`.
    """
    _within("target specificity", target_specificity, cohort)
    sweep = _sweep(labels, scores, cohort)
    reached = sweep.spared >= _at_least(target_specificity, sweep.negatives)
    return _point(
        sweep,
        int(np.flatnonzero(reached)[0]),
        confidence=confidence,
        date=date,
        cohort=cohort,
        rule="fixed specificity",
        method=f"lowest threshold that reaches a specificity of {100 * target_specificity:g}%",
        target_specificity=target_specificity,
    )


def youden_point(
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    confidence: float,
    date: str,
    cohort: str = COHORT,
) -> OperatingPoint:
    """The threshold of the largest sensitivity + specificity - 1 (Youden, Cancer 3, 1950).

    Of equals the lowest: it misses fewer. Arguments and errors are those of
    :func:`choose_operating_point`.
    """
    sweep = _sweep(labels, scores, cohort)
    # Over a common denominator in whole numbers, so that ties are exact.
    index = sweep.found * sweep.negatives + sweep.spared * sweep.positives
    return _point(
        sweep,
        int(np.argmax(index)),
        confidence=confidence,
        date=date,
        cohort=cohort,
        rule="Youden",
        method="threshold of the largest sensitivity + specificity",
    )


def cost_weighted_point(
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    cost_ratio: float,
    prevalence: float,
    confidence: float,
    date: str,
    cohort: str = COHORT,
) -> OperatingPoint:
    """The threshold of the lowest expected cost of errors; of equals the lowest.

    The cost is ``prevalence * cost_ratio * (1 - sensitivity) + (1 - prevalence) * (1 -
    specificity)`` (Metz, Semin Nucl Med 8, 1978).

    Args:
        labels, scores, confidence, date, cohort: as in :func:`choose_operating_point`.
        cost_ratio: what a missed positive costs, in false alarms; above 0.
        prevalence: of the positive class where the model will be used, in (0, 1). That of the
            cohort is often another.

    Raises:
        StageError: as :func:`choose_operating_point`.
    """
    if not (math.isfinite(cost_ratio) and cost_ratio > 0):
        raise StageError(
            f"the cost of a missed positive is {cost_ratio:g} false alarms, and must be above 0",
            where=cohort,
            remedy="Change it.",
        )
    if not 0 < prevalence < 1:
        raise StageError(
            f"the stated prevalence is {prevalence:g}, and must lie between 0 and 1",
            where=cohort,
            remedy="Change it.",
        )
    sweep = _sweep(labels, scores, cohort)
    missed = prevalence * cost_ratio * (1 - sweep.found / sweep.positives)
    cost = missed + (1 - prevalence) * (1 - sweep.spared / sweep.negatives)
    return _point(
        sweep,
        # Equal costs may differ by rounding.
        int(np.flatnonzero(cost <= cost.min() + 1e-12 * (1 + cost_ratio))[0]),
        confidence=confidence,
        date=date,
        cohort=cohort,
        rule="cost-weighted",
        method=f"threshold of the lowest cost, a missed positive costing {cost_ratio:g} false "
        f"alarms at a prevalence of {100 * prevalence:g}%",
        cost_ratio=cost_ratio,
        stated_prevalence=prevalence,
    )


def at_threshold(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    *,
    confidence: float,
    date: str,
    cohort: str,
) -> OperatingPoint:
    """What a threshold that was chosen elsewhere reaches on these patients.

    Arguments and errors are those of :func:`choose_operating_point`.
    """
    labels, scores = _labelled(labels, scores, cohort)
    sweep = _reached(labels, scores, np.array([threshold]))
    return _point(
        sweep,
        0,
        confidence=confidence,
        date=date,
        cohort=cohort,
        rule="given",
        method="threshold that was chosen before",
    )


def exact_interval(hits: int, total: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a proportion (Biometrika 26, 1934).

    By quantiles of beta distributions: hundreds of times as fast as scipy.s binomtest.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    lower = betaincinv(hits, total - hits + 1, tail) if hits else 0.0
    upper = betaincinv(hits + 1, total - hits, 1 - tail) if hits < total else 1.0
    return float(lower), float(upper)


def _within(name: str, target: float, cohort: str) -> None:
    if not 0 < target <= 1:
        raise StageError(
            f"the {name} is {target:g}, and must lie above 0 and at most at 1",
            where=cohort,
            remedy="Change it; 0.95 is usual.",
        )


def _at_least(share: float, count: int) -> int:
    # A share that is a whole number of patients must not be rounded up past it.
    return math.ceil(share * count - 1e-9)


def _labelled(labels: Any, scores: Any, cohort: str) -> tuple[np.ndarray, np.ndarray]:
    return check_labelled(
        labels,
        scores,
        cohort=cohort,
        purpose="to choose the operating point on",
        within_0_and_1=False,
        fewest=2,  # of which the point itself warns
    )


def _sweep(labels: Any, scores: Any, cohort: str) -> _Sweep:
    labels, scores = _labelled(labels, scores, cohort)
    seen = np.unique(scores)
    return _reached(labels, scores, np.append(seen, np.nextafter(seen[-1], np.inf)))


def _reached(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> _Sweep:
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    return _Sweep(
        thresholds=thresholds,
        found=len(positives) - np.searchsorted(positives, thresholds, side="left"),
        spared=np.searchsorted(negatives, thresholds, side="left"),
        positives=len(positives),
        negatives=len(negatives),
    )


def _point(
    sweep: _Sweep,
    index: int,
    *,
    confidence: float,
    date: str,
    cohort: str,
    rule: str,
    method: str,
    target_sensitivity: float | None = None,
    target_specificity: float | None = None,
    cost_ratio: float | None = None,
    stated_prevalence: float | None = None,
) -> OperatingPoint:
    found, spared = int(sweep.found[index]), int(sweep.spared[index])
    patients = sweep.positives + sweep.negatives
    return OperatingPoint(
        threshold=float(sweep.thresholds[index]),
        target_sensitivity=target_sensitivity,
        sensitivity=found / sweep.positives,
        sensitivity_interval=exact_interval(found, sweep.positives, confidence),
        specificity=spared / sweep.negatives,
        specificity_interval=exact_interval(spared, sweep.negatives, confidence),
        cohort=cohort,
        patients=patients,
        positives=sweep.positives,
        date=date,
        method=method,
        rule=rule,
        prevalence=sweep.positives / patients,
        confidence=confidence,
        target_specificity=target_specificity,
        cost_ratio=cost_ratio,
        stated_prevalence=stated_prevalence,
    )
