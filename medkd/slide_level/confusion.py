"""Diagnostic accuracy at an operating point, from the four counts and with intervals of counts.

One row a patient: these intervals take patients as independent. Cohorts with several rows a
patient go through resampling.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from medkd.slide_level.scored import checked_rows
from medkd.slide_level.statistics import Estimate

Method = Literal["exact", "wilson"]


@dataclass(frozen=True)
class ConfusionCounts:
    """Patients by label and call."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def positives(self) -> int:
        """Patients of the positive class."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        """Patients of the negative class."""
        return self.true_negatives + self.false_positives


def confusion_counts(
    labels: np.ndarray, scores: np.ndarray, threshold: float, *, where: str = "scores"
) -> ConfusionCounts:
    """Count calls; a score of at least ``threshold`` is called positive.

    Args:
        labels: bool, (patients,).
        scores: (patients,).
        threshold: the operating point.
        where: what the scores are of, for messages.

    Raises:
        StageError: unequal lengths, a label that is not a truth value, a score that is not a
            number.
    """
    truth, values, _ = checked_rows(labels, scores, None, where=where)
    called = values >= threshold
    return ConfusionCounts(
        true_positives=int((truth & called).sum()),
        false_positives=int((~truth & called).sum()),
        false_negatives=int((truth & ~called).sum()),
        true_negatives=int((~truth & ~called).sum()),
    )


def accuracy_measures(
    counts: ConfusionCounts, *, confidence: float, method: Method = "exact"
) -> dict[str, Estimate]:
    """Sensitivity, specificity, PPV, NPV, accuracy and the share called negative.

    PPV, NPV, accuracy and the share called negative are those at the cohort's own prevalence.

    Args:
        counts: of the cohort.
        confidence: level of the intervals.
        method: ``exact`` (Clopper and Pearson 1934: never covers less than it says) or ``wilson``
            (Wilson 1927: narrower, right on average).
    """
    c = counts
    shares = {
        "sensitivity": (c.true_positives, c.positives, "there is no positive patient"),
        "specificity": (c.true_negatives, c.negatives, "there is no negative patient"),
        "ppv": (
            c.true_positives,
            c.true_positives + c.false_positives,
            "no patient is called positive",
        ),
        "npv": (
            c.true_negatives,
            c.true_negatives + c.false_negatives,
            "no patient is called negative",
        ),
        "accuracy": (
            c.true_positives + c.true_negatives,
            c.positives + c.negatives,
            "there is no patient",
        ),
        "ruled_out": (
            c.true_negatives + c.false_negatives,
            c.positives + c.negatives,
            "there is no patient",
        ),
    }
    return {
        name: _share(hits, total, reason, confidence, method)
        for name, (hits, total, reason) in shares.items()
    }


def _share(hits: int, total: int, reason: str, confidence: float, method: Method) -> Estimate:
    if not total:
        return Estimate(None, reason=reason)
    interval = binomtest(hits, total).proportion_ci(confidence, method=method)
    return Estimate(hits / total, float(interval.low), float(interval.high))
