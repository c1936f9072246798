"""Figures of merit with intervals that resample patients, never tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; ``value`` is None where it cannot be had, for ``reason``."""

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


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve: the share of pairs in the right order, ties counted half.

    Mann and Whitney's statistic by midranks, so that a bootstrap can take rows of scores at once.

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


def sensitivity(labels: np.ndarray, positive_calls: np.ndarray) -> float | None:
    """Share of positives that are called positive; None where there is no positive."""
    return float(positive_calls[labels].mean()) if labels.any() else None


def specificity(labels: np.ndarray, positive_calls: np.ndarray) -> float | None:
    """Share of negatives that are not called positive; None where there is no negative."""
    return float(1 - positive_calls[~labels].mean()) if not labels.all() else None


def bootstrap(
    figure: Callable[[np.ndarray, np.ndarray], float | None],
    labels: np.ndarray,
    values: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Estimate:
    """A figure with its percentile interval over resampled patients.

    Patients are drawn with replacement within each class, so that every resample has both.

    Args:
        figure: takes labels and values.
        labels: bool, (n,).
        values: (n,), scores or calls.
        resamples, confidence, seed: of the bootstrap.
        groups: patient of each row, (n,), where a patient has several rows; all of a patient's
            rows come together.
    """
    labels = np.asarray(labels, bool)
    values = np.asarray(values)
    value = figure(labels, values)
    if value is None:
        return Estimate(None, reason="a class is absent")
    rows = _rows_of_groups(groups, len(labels))
    of_class = [[r for r in rows if labels[r[0]] == side] for side in (True, False)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate(
            [side[i] for side in of_class if side for i in random.integers(0, len(side), len(side))]
        )
        drawn.append(figure(labels[chosen], values[chosen]))
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(np.array(drawn, np.float64), [tail, 1 - tail])
    return Estimate(value, float(lower), float(upper))


def _rows_of_groups(groups: np.ndarray | None, count: int) -> list[np.ndarray]:
    if groups is None:
        return [np.array([row]) for row in range(count)]
    _, codes = np.unique(groups, return_inverse=True)
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
