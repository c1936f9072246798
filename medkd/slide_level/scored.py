"""Patients with labels and scores, put in order once, so that a resample is only a set of counts.

Drawing patients with replacement is drawing how often each one comes. With the rows of each class
in order of score, every count of rows above a score is a difference of cumulative sums of those
counts, for many resamples at once and without sorting again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medkd.errors import StageError


@dataclass(frozen=True)
class OrderedRows:
    """The rows of one class, in ascending order of score.

    Attributes:
        scores: float64, (rows,).
        patients: number of each row's patient within the class, from 0, (rows,).
        patient_ids: the patients in the order of their numbers, (patients,).
    """

    scores: np.ndarray
    patients: np.ndarray
    patient_ids: np.ndarray

    @property
    def patient_count(self) -> int:
        """How many patients there are."""
        return len(self.patient_ids)

    def rows_below(self, thresholds: np.ndarray | float) -> np.ndarray:
        """How many rows score less than each threshold."""
        return np.searchsorted(self.scores, thresholds, side="left")


@dataclass(frozen=True)
class ScoredPatients:
    """The rows (patients, or their slides) of a cohort by class; made by :func:`scored_patients`.

    Attributes:
        positive, negative: rows of each class.
    """

    positive: OrderedRows
    negative: OrderedRows

    @cached_property
    def negatives_below(self) -> np.ndarray:
        """How many negative rows score less than each positive row, (positive rows,)."""
        return self.negative.rows_below(self.positive.scores)

    @cached_property
    def negatives_up_to(self) -> np.ndarray:
        """How many negative rows score at most as much as each positive row, (positive rows,)."""
        return np.searchsorted(self.negative.scores, self.positive.scores, side="right")

    @cached_property
    def positives_below(self) -> np.ndarray:
        """How many positive rows score less than each positive row, (positive rows,)."""
        return self.positive.rows_below(self.positive.scores)

    def unweighted(self) -> Weighted:
        """Every patient once: one set of counts."""
        return Weighted(
            self,
            np.ones((1, len(self.positive.scores))),
            np.ones((1, len(self.negative.scores))),
        )

    def weighted(self, positive: np.ndarray, negative: np.ndarray) -> Weighted:
        """Every patient so many times, with all rows of the patient.

        Args:
            positive, negative: counts, (resamples, patients of the class).
        """
        return Weighted(
            self,
            np.take(positive, self.positive.patients, axis=1).astype(np.float64),
            np.take(negative, self.negative.patients, axis=1).astype(np.float64),
        )


@dataclass(frozen=True)
class Weighted:
    """A cohort in which each row comes so many times, for many resamples.

    Counts are float64, in which whole numbers up to 2^53 and their sums are exact.

    Attributes:
        cohort: whose rows they are.
        positive, negative: how often each row comes, (resamples, rows of the class).
    """

    cohort: ScoredPatients
    positive: np.ndarray
    negative: np.ndarray

    @cached_property
    def positive_below(self) -> np.ndarray:
        """Weight of the first k positive rows at [:, k], (resamples, positive rows + 1)."""
        return _cumulative(self.positive)

    @cached_property
    def negative_below(self) -> np.ndarray:
        """Weight of the first k negative rows at [:, k], (resamples, negative rows + 1)."""
        return _cumulative(self.negative)

    @property
    def positives(self) -> np.ndarray:
        """Weight of all positive rows, (resamples,)."""
        return self.positive_below[:, -1]

    @property
    def negatives(self) -> np.ndarray:
        """Weight of all negative rows, (resamples,)."""
        return self.negative_below[:, -1]

    def true_positives(self, thresholds: np.ndarray) -> np.ndarray:
        """Weight of positives that score at least each threshold, (resamples, thresholds)."""
        below = self.cohort.positive.rows_below(thresholds)
        return self.positives[:, None] - self.positive_below[:, below]

    def false_positives(self, thresholds: np.ndarray) -> np.ndarray:
        """Weight of negatives that score at least each threshold, (resamples, thresholds)."""
        below = self.cohort.negative.rows_below(thresholds)
        return self.negatives[:, None] - self.negative_below[:, below]


def _cumulative(counts: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums


def scored_patients(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray | None = None,
    *,
    where: str = "scores",
) -> ScoredPatients:
    """Put labels and scores in order.

    Args:
        labels: bool, (rows,), True for the positive class.
        scores: (rows,), larger for the positive class.
        patients: patient of each row, (rows,); by default every row is a patient of its own.
        where: what the scores are of, for messages.

    Raises:
        StageError: unequal lengths, a label that is not a truth value, a score that is not a
            number, or a patient with rows of both classes.
    """
    labels, scores, patients = checked_rows(labels, scores, patients, where=where)
    rows = {
        side: _ordered(scores[labels == side], patients[labels == side]) for side in (True, False)
    }
    both = np.intersect1d(rows[True].patient_ids, rows[False].patient_ids)
    if len(both):
        raise StageError(
            f"patient '{both[0]}' has rows of both classes",
            where=where,
            remedy="Give every patient one label.",
        )
    return ScoredPatients(rows[True], rows[False])


def checked_rows(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None, *, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as bool, scores as float64 and patients, each (rows,), or an error.

    Raises:
        StageError: as :func:`scored_patients` has it, but for the last case.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    if not labels.shape == scores.shape == patients.shape or labels.ndim != 1:
        raise StageError(
            f"{len(labels)} labels, {len(scores)} scores and {len(patients)} patients",
            where=where,
            remedy="Give one label, one score and one patient for each row.",
        )
    if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
        raise StageError(
            "a label is neither true nor false",
            where=where,
            remedy="Give true, or 1, for the positive class and false, or 0, for the other.",
        )
    if not np.isfinite(scores).all():
        raise StageError("a score is not a number", where=where, remedy="Look at the predictions.")
    return labels.astype(bool), scores, patients


def _ordered(scores: np.ndarray, patients: np.ndarray) -> OrderedRows:
    order = np.argsort(scores, kind="stable")
    patient_ids, numbers = np.unique(patients, return_inverse=True)
    return OrderedRows(scores[order], numbers[order], patient_ids)
