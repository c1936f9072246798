"""Figures of merit of a cohort: what each is made of. Intervals are in resampling.py and roc.py.

A figure takes weighted patients and returns one value for each set of weights, so that the value
itself and thousands of bootstrap resamples come from the same few lines. Formulas and sources are
in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from medkd.slide_level.scored import Weighted


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; ``reason`` says why the value or the interval cannot be had."""

    value: float | None
    lower: float | None = None
    upper: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {key: value for key, value in asdict(self).items() if key != "reason" or value}

    def __str__(self) -> str:
        if self.value is None:
            return "not available"
        if self.lower is None or self.upper is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.lower:.3f} to {self.upper:.3f})"


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same patients.

    Attributes:
        first, second: the figure of each run; None where it cannot be had.
        difference: first minus second, with its interval where the method gives one.
        p_value: two-sided; None where there is nothing to test, for the difference's reason, or
            where the method does not test.
    """

    first: float | None
    second: float | None
    difference: Estimate
    p_value: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of merit.

    Attributes:
        name: in results.
        of: weighted patients to values, (resamples,); not a number where it cannot be had.
        of_positives, of_negatives: whether patients of that class take part in it.
        share: whether it is a share of patients, or of pairs of patients, in the right place, so
            that :func:`medkd.slide_level.resampling.end_interval` holds at 0 and at 1.
    """

    name: str
    of: Callable[[Weighted], np.ndarray]
    of_positives: bool = True
    of_negatives: bool = True
    share: bool = False


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve: the share of pairs in the right order, ties counted half.

    Mann and Whitney's statistic by midranks.

    Args:
        labels: bool, (n,).
        scores: float, (n,).

    Returns:
        None where a class is absent.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)
    above = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _auroc(patients: Weighted) -> np.ndarray:
    cohort, below = patients.cohort, patients.negative_below
    first, last = cohort.negatives_below, cohort.negatives_up_to
    lower = np.take(below, first, axis=1)
    # Where no score is shared by the classes one look-up serves for both.
    upper = lower if np.array_equal(first, last) else np.take(below, last, axis=1)
    twice = np.einsum("ij,ij->i", patients.positive, lower + upper)
    return _ratio(twice, 2 * patients.positives * patients.negatives)


def _average_precision(patients: Weighted) -> np.ndarray:
    cohort = patients.cohort
    true = patients.positives[:, None] - np.take(
        patients.positive_below, cohort.positives_below, axis=1
    )
    false = patients.negatives[:, None] - np.take(
        patients.negative_below, cohort.negatives_below, axis=1
    )
    false += true
    precision = np.divide(true, false, out=np.zeros_like(true), where=false > 0)
    found = np.einsum("ij,ij->i", patients.positive, precision)
    # Average precision of a cohort without negatives is 1 whatever the scores.
    return _ratio(found, np.where(patients.negatives > 0, patients.positives, 0))


AUROC = Figure("auroc", _auroc, share=True)
AUPRC = Figure("auprc", _average_precision)


def sensitivity_at(threshold: float) -> Figure:
    """Share of positives that score at least ``threshold``."""

    def of(patients: Weighted) -> np.ndarray:
        return _sensitivity(patients, threshold)

    return Figure("sensitivity", of, of_negatives=False, share=True)


def specificity_at(threshold: float) -> Figure:
    """Share of negatives that score less than ``threshold``."""

    def of(patients: Weighted) -> np.ndarray:
        return _specificity(patients, threshold)

    return Figure("specificity", of, of_positives=False, share=True)


def ppv_at(threshold: float, prevalence: float | None = None) -> Figure:
    """Positive predictive value of scores of at least ``threshold``.

    Args:
        threshold: the operating point.
        prevalence: of the positive class where the value is to hold, in (0, 1), by Bayes; by
            default the cohort's own.
    """

    def of(patients: Weighted) -> np.ndarray:
        weight = prevalence if prevalence is not None else _prevalence(patients)
        true = _sensitivity(patients, threshold) * weight
        return _ratio(true, true + (1 - _specificity(patients, threshold)) * (1 - weight))

    return Figure(_at_prevalence("ppv", prevalence), of)


def npv_at(threshold: float, prevalence: float | None = None) -> Figure:
    """Negative predictive value of scores below ``threshold``; arguments as :func:`ppv_at`."""

    def of(patients: Weighted) -> np.ndarray:
        weight = prevalence if prevalence is not None else _prevalence(patients)
        true = _specificity(patients, threshold) * (1 - weight)
        return _ratio(true, true + (1 - _sensitivity(patients, threshold)) * weight)

    return Figure(_at_prevalence("npv", prevalence), of)


def ruled_out_at(sensitivity: float, prevalence: float | None = None) -> Figure:
    """Share of all patients who are called negative at a fixed sensitivity.

    The threshold is the highest with at least this sensitivity, as that of
    :func:`medkd.slide_level.operating_point.choose_operating_point`. It is chosen anew in every
    resample, so the interval covers the choice too.

    Args:
        sensitivity: in (0, 1].
        prevalence: as :func:`ppv_at` has it.
    """

    def of(patients: Weighted) -> np.ndarray:
        cohort = patients.cohort
        if not len(cohort.positive.scores):
            return np.full(len(patients.negative), np.nan)
        missed = np.take(patients.positive_below, cohort.positives_below, axis=1)
        allowed = np.floor((1 - sensitivity) * patients.positives + 1e-9)
        # What is missed grows along the row: the last that is allowed is the highest threshold.
        chosen = (missed <= allowed[:, None]).sum(1) - 1
        resample = np.arange(len(chosen))
        spared = patients.negative_below[resample, cohort.negatives_below[chosen]]
        weight = prevalence if prevalence is not None else _prevalence(patients)
        return weight * _ratio(missed[resample, chosen], patients.positives) + (
            1 - weight
        ) * _ratio(spared, patients.negatives)

    return Figure(_at_prevalence("ruled_out", prevalence), of)


def _sensitivity(patients: Weighted, threshold: float) -> np.ndarray:
    return _ratio(patients.true_positives(np.array([threshold]))[:, 0], patients.positives)


def _specificity(patients: Weighted, threshold: float) -> np.ndarray:
    return 1 - _ratio(patients.false_positives(np.array([threshold]))[:, 0], patients.negatives)


def _prevalence(patients: Weighted) -> np.ndarray:
    return _ratio(patients.positives, patients.positives + patients.negatives)


def _at_prevalence(name: str, prevalence: float | None) -> str:
    return name if prevalence is None else f"{name}_at_prevalence_{prevalence:g}"


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, not a number where it is 0 / 0 or x / 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
