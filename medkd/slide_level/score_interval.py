"""The interval of a slide's score: for its tiles, or for its tiles and its students."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkd.config.slide_level import IntervalOf
from medkd.slide_level.uncertainty import crossed_interval


@dataclass(frozen=True)
class Interval:
    """Which interval is wanted.

    Attributes:
        confidence: its level.
        of: ``tiles`` takes the students as given; ``tiles_and_students`` is for the score that
            many students like these would give.
    """

    confidence: float
    of: IntervalOf = "tiles"


def score_interval(
    score: float, drawn: np.ndarray, students: np.ndarray, tiles: int, interval: Interval
) -> tuple[float, float]:
    """The interval of a score.

    For tiles the percentiles of the resamples; for tiles and students
    :func:`medkd.slide_level.uncertainty.crossed_interval` with the resamples' variance. One student
    says nothing about others, so its interval is that of tiles.

    Args:
        score: of the ensemble.
        drawn: the same in resamples of tiles, (resamples,).
        students: score of each, (students,).
        tiles: how many there are.
        interval: which.

    Returns:
        Lower and upper end; NaN where nothing was drawn.
    """
    if not len(drawn):
        return np.nan, np.nan
    if interval.of == "tiles_and_students" and len(students) > 1 and tiles > 1:
        return crossed_interval(
            score, students, float(drawn.var()), tiles, confidence=interval.confidence
        )
    tail = (1 - interval.confidence) / 2
    lower, upper = np.quantile(drawn, [tail, 1 - tail])
    return float(lower), float(upper)
