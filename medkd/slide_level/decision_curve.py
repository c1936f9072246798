"""Decision curves: is acting on the calls worth it, at any exchange rate of harm for benefit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkd.errors import StageError
from medkd.slide_level.resampling import bootstrap_values
from medkd.slide_level.scored import ScoredPatients, Weighted


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit over threshold probabilities, in true positives per patient.

    Attributes:
        thresholds: threshold probabilities, (thresholds,).
        net_benefit: of treating patients whose score is at least the threshold, (thresholds,).
        lower, upper: pointwise percentile band of it, (thresholds,).
        treat_all: net benefit of treating everyone, (thresholds,); treating no one has 0.
        prevalence: of the positive class for which the curve holds.
    """

    thresholds: np.ndarray
    net_benefit: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    treat_all: np.ndarray
    prevalence: float

    @property
    def treat_none(self) -> np.ndarray:
        """Net benefit of treating no one: zeros, (thresholds,)."""
        return np.zeros_like(self.thresholds)


def decision_curve(
    cohort: ScoredPatients,
    thresholds: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    prevalence: float | None = None,
    seed: int = 0,
    where: str = "scores",
) -> DecisionCurve:
    """Net benefit p sens - (1 - p) (1 - spec) t / (1 - t) (Vickers and Elkin 2006).

    At the cohort's own prevalence p that is TP/n - FP/n t / (1 - t). Patients are resampled within
    each class, so the band takes the prevalence as known.

    Args:
        cohort: scores must be calibrated probabilities of the positive class.
        thresholds: threshold probabilities, in (0, 1), (thresholds,).
        resamples, confidence, seed: of the bootstrap.
        prevalence: for which the curve is to hold; by default the cohort's.
        where: what the scores are of, for messages.

    Raises:
        StageError: fewer than two patients of a class, or a score that is no probability.
        ValueError: a threshold or a prevalence that is not between 0 and 1.
    """
    thresholds = np.asarray(thresholds, np.float64)
    sides = cohort.positive, cohort.negative
    if min(side.patient_count for side in sides) < 2:
        counts = " and ".join(str(side.patient_count) for side in sides)
        raise StageError(
            f"a decision curve needs two patients of each class, and there are {counts}",
            where=where,
            remedy="Add patients.",
        )
    scores = np.concatenate([side.scores for side in sides])
    if scores.min() < 0 or scores.max() > 1:
        raise StageError(
            "a score is not a probability between 0 and 1",
            where=where,
            remedy="Calibrate the scores first.",
        )
    rows = len(scores)
    share = len(cohort.positive.scores) / rows if prevalence is None else prevalence
    if not ((thresholds > 0) & (thresholds < 1)).all() or not 0 < share < 1:
        raise ValueError("threshold probabilities and prevalence lie between 0 and 1")
    harm = thresholds / (1 - thresholds)

    def net_benefit(patients: Weighted) -> np.ndarray:
        found = patients.true_positives(thresholds) / patients.positives[:, None]
        alarmed = patients.false_positives(thresholds) / patients.negatives[:, None]
        return share * found - (1 - share) * harm * alarmed

    drawn = bootstrap_values(cohort, net_benefit, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return DecisionCurve(
        thresholds,
        net_benefit(cohort.unweighted())[0],
        lower,
        upper,
        share - (1 - share) * harm,
        share,
    )
