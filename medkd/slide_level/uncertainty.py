"""How sure an ensemble of students is of one slide: what they disagree about, and an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TotalInterval:
    """A slide's score with an interval for its tiles and its students together.

    Attributes:
        score: mean over tiles and students.
        lower, upper: the interval. Neighbouring tiles resemble one another, so it is a lower bound
            of the true uncertainty, as is the interval of tiles alone.
        tile_variance: of the score, for having seen these tiles.
        student_variance: of the score, for having trained these students.
        degrees_of_freedom: of the t quantile; near the number of students less one where it is
            they who disagree.
    """

    score: float
    lower: float
    upper: float
    tile_variance: float
    student_variance: float
    degrees_of_freedom: float


def mutual_information(scores: Any) -> np.ndarray:
    """What knowing the student would tell about the label, in nats: 0 where all students agree.

    Entropy of the mean less the mean of the entropies (Houlsby et al. 2011, BALD); at most ln 2.

    Args:
        scores: probability of the positive class, (students, slides).

    Returns:
        (slides,).

    Raises:
        ValueError: fewer than two students, or a score that is not a probability.
    """
    scores = _of_students(scores)
    information = _entropy(scores.mean(0)) - _entropy(scores).mean(0)
    # Rounding may leave less than nothing where all agree.
    return np.maximum(information, 0)


def student_spread(scores: Any) -> np.ndarray:
    """Standard deviation of the students' scores of each slide, with students - 1 below.

    Arguments, shapes and errors are those of :func:`mutual_information`.
    """
    return _of_students(scores).std(0, ddof=1)


def total_interval(probabilities: Mapping[str, np.ndarray], *, confidence: float) -> TotalInterval:
    """The interval of the score that many students like these would give on many tiles like these.

    Students and tiles are crossed: all students see all tiles. The variance of the mean over both
    is that of the students' means over their number and that of the tiles' means over theirs
    (Owen 2007, the pigeonhole model). What a single student makes of a single tile is in both,
    which widens the interval by what hardly shows for tens of tiles. The variances become one t
    interval by Satterthwaite's degrees of freedom (1946), on the logit so that it stays between
    0 and 1. Two students who disagree have one degree of freedom: the interval is nearly all there
    is, for two say little about what a third would.

    Args:
        probabilities: for each student the positive class's probability of each tile, float,
            (tiles,), the same tiles in the same order.
        confidence: level of the interval.

    Raises:
        ValueError: fewer than two students or two tiles, unequal numbers of tiles, or a value that
            is not a probability.
    """
    values = _of_students(np.stack([np.asarray(p, np.float64) for p in probabilities.values()]))
    students, tiles = values.shape
    if tiles < 2:
        raise ValueError("the spread of tiles takes two tiles")
    score = float(values.mean())
    of_students = float(values.mean(1).var(ddof=1) / students)
    of_tiles = float(values.mean(0).var(ddof=1) / tiles)
    if np.ptp(values) == 0:
        exact = float(values[0, 0])  # their mean may be off by rounding
        return TotalInterval(exact, exact, exact, 0.0, 0.0, float(students + tiles - 2))
    freedom = _degrees_of_freedom(of_students, students, of_tiles, tiles)
    lower, upper = _t_interval(score, of_students + of_tiles, freedom, confidence)
    return TotalInterval(
        score=score,
        lower=lower,
        upper=upper,
        tile_variance=of_tiles,
        student_variance=of_students,
        degrees_of_freedom=freedom,
    )


def crossed_interval(
    score: float, students: np.ndarray, tile_variance: float, tiles: int, *, confidence: float
) -> tuple[float, float]:
    """As :func:`total_interval`, for a score by any pooling.

    Args:
        score: of the ensemble.
        students: score of each, (students,), two at the least.
        tile_variance: of the score, for having seen these tiles: that of its bootstrap resamples.
        tiles: how many there are, two at the least.
        confidence: level of the interval.

    Returns:
        Lower and upper end.
    """
    of_students = float(students.var(ddof=1) / len(students))
    if of_students + tile_variance == 0:
        return score, score
    freedom = _degrees_of_freedom(of_students, len(students), tile_variance, tiles)
    return _t_interval(score, of_students + tile_variance, freedom, confidence)


def _degrees_of_freedom(of_students: float, students: int, of_tiles: float, tiles: int) -> float:
    """Satterthwaite's, of the sum of two variances."""
    below = of_students**2 / (students - 1) + of_tiles**2 / (tiles - 1)
    return (of_students + of_tiles) ** 2 / below


def _t_interval(
    score: float, variance: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """On the logit, so that it stays between 0 and 1."""
    # Not on top: infer starts without scipy.
    from scipy.special import stdtrit

    inside = min(max(score, 1e-12), 1 - 1e-12)  # a score may be 1 by rounding
    half = stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(variance) / (inside * (1 - inside))
    log_odds = np.log(inside) - np.log1p(-inside)
    # exp(-logaddexp) neither overflows nor warns, however wide the interval.
    lower, upper = np.exp(-np.logaddexp(0, -(log_odds + half * np.array([-1, 1]))))
    return min(float(lower), score), max(float(upper), score)


def _of_students(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError("the spread of students takes two students")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a probability is not a number between 0 and 1")
    return scores


def _entropy(p: np.ndarray) -> np.ndarray:
    inside = np.clip(p, np.finfo(np.float64).tiny, 1)
    outside = np.clip(1 - p, np.finfo(np.float64).tiny, 1)
    return -(p * np.log(inside) + (1 - p) * np.log(outside))
