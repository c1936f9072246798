"""What a call means for a patient elsewhere: predictive values and likelihood ratios.

One row a patient, as in confusion.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import expit
from scipy.stats import norm

from medkd.slide_level.confusion import ConfusionCounts
from medkd.slide_level.statistics import Estimate


@dataclass(frozen=True)
class PredictiveValues:
    """PPV and NPV where the positive class has this prevalence."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class LikelihoodRatios:
    """By how much a call multiplies the odds of the positive class."""

    positive: Estimate
    negative: Estimate


def predictive_values(
    counts: ConfusionCounts, prevalence: float, *, confidence: float
) -> PredictiveValues:
    """PPV and NPV by Bayes at a known prevalence, with logit intervals (Mercaldo et al. 2007).

    Where sensitivity or specificity is 0 or 1 the logit has no variance: the interval is the same
    with z²/2 patients added on either side of the call in each class (their adjusted logit
    interval), widened to the value itself.

    Args:
        counts: of the cohort; its own prevalence plays no part.
        prevalence: in (0, 1), taken as known.
        confidence: level of the intervals.

    Raises:
        ValueError: a prevalence that is not between 0 and 1.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence lies between 0 and 1, not at {prevalence:g}")
    if not counts.positives or not counts.negatives:
        absent = Estimate(None, reason="a class is absent")
        return PredictiveValues(prevalence, absent, absent)
    z = float(norm.isf((1 - confidence) / 2))
    sensitivity = counts.true_positives / counts.positives
    specificity = counts.true_negatives / counts.negatives
    values = (
        _bayes(sensitivity * prevalence, (1 - specificity) * (1 - prevalence)),
        _bayes(specificity * (1 - prevalence), (1 - sensitivity) * prevalence),
    )
    cells = (
        counts.true_positives,
        counts.false_negatives,
        counts.true_negatives,
        counts.false_positives,
    )
    added = z**2 / 2 if 0 in cells else 0.0
    found, missed, spared, alarmed = (cell + added for cell in cells)
    odds = prevalence / (1 - prevalence)
    positives, negatives = found + missed, spared + alarmed
    return PredictiveValues(
        prevalence,
        _logit_interval(
            values[0],
            math.log(found / positives / (alarmed / negatives) * odds),
            missed / found / positives + spared / alarmed / negatives,
            z,
            "no patient is called positive",
        ),
        _logit_interval(
            values[1],
            math.log(spared / negatives / (missed / positives) / odds),
            found / missed / positives + alarmed / spared / negatives,
            z,
            "no patient is called negative",
        ),
    )


def likelihood_ratios(counts: ConfusionCounts, *, confidence: float) -> LikelihoodRatios:
    """Likelihood ratios with intervals on the log scale (Simel, Samsa and Matchar 1991).

    Where one of the two shares is 0, half a patient is added to every count for the interval; a
    ratio that is infinite has a lower end alone, and one that is 0 an upper end and 0.
    """
    if not counts.positives or not counts.negatives:
        absent = Estimate(None, reason="a class is absent")
        return LikelihoodRatios(absent, absent)
    z = float(norm.isf((1 - confidence) / 2))
    return LikelihoodRatios(
        _ratio(
            counts.true_positives,
            counts.positives,
            counts.false_positives,
            counts.negatives,
            z,
            "there is no false positive: the ratio is infinite",
        ),
        _ratio(
            counts.false_negatives,
            counts.positives,
            counts.true_negatives,
            counts.negatives,
            z,
            "there is no true negative: the ratio is infinite",
        ),
    )


def _bayes(right: float, wrong: float) -> float | None:
    return right / (right + wrong) if right + wrong else None


def _logit_interval(
    value: float | None, centre: float, variance: float, z: float, reason: str
) -> Estimate:
    if value is None:
        return Estimate(None, reason=reason)
    half = z * variance**0.5
    lower, upper = float(expit(centre - half)), float(expit(centre + half))
    return Estimate(value, min(lower, value), max(upper, value))


def _ratio(
    hits: float, of: float, other_hits: float, other_of: float, z: float, infinite: str
) -> Estimate:
    if not hits and not other_hits:
        return Estimate(None, reason="no patient has this call")
    value = hits / of / (other_hits / other_of) if other_hits else None
    empty = not hits or not other_hits
    if empty:
        hits, other_hits = hits + 0.5, other_hits + 0.5
        of, other_of = of + 1, other_of + 1
    centre = math.log(hits / of / (other_hits / other_of))
    half = z * (1 / hits - 1 / of + 1 / other_hits - 1 / other_of) ** 0.5
    lower, upper = math.exp(centre - half), math.exp(centre + half)
    if value is None:
        return Estimate(None, lower=lower, reason=infinite)
    return Estimate(value, 0.0 if value == 0 else lower, upper)
