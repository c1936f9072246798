"""From tile probabilities to a slide's score. Imports numpy alone, so that infer starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SlideScore:
    """What the tiles of one slide, or of one patient, say together.

    Attributes:
        score: mean over tiles and students of the positive class's probability.
        lower, upper: bootstrap interval of the score over tiles. Neighbouring tiles resemble one
            another, so it is a lower bound of the true uncertainty.
        students: the same mean for each student alone.
        disagreement: largest minus smallest of the students' scores.
        tiles: how many there were.
    """

    score: float
    lower: float
    upper: float
    students: dict[str, float]
    disagreement: float
    tiles: int


def pool_slide(
    probabilities: Mapping[str, np.ndarray], *, resamples: int, confidence: float, seed: int = 0
) -> SlideScore:
    """Pool by the mean. Whether tiles or students are averaged first makes no difference to it.

    Args:
        probabilities: for each student the positive class's probability of each tile, float,
            (tiles,), the same tiles in the same order.
        resamples: bootstrap resamples of tiles.
        confidence: level of the interval.
        seed: of the resampling; the same tiles give the same interval.

    Raises:
        ValueError: no tile, no student, unequal numbers of tiles, or a value that is not a
            probability.
    """
    if not probabilities:
        raise ValueError("no student gave probabilities")
    values = np.stack([np.asarray(p, np.float64) for p in probabilities.values()])
    if values.shape[1] == 0:
        raise ValueError("there is no tile to pool")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a probability is not a number between 0 and 1")
    students = dict(zip(probabilities, values.mean(1).tolist(), strict=True))
    per_tile = values.mean(0)
    tiles = len(per_tile)
    # Drawing n of n tiles with replacement is drawing how often each one comes: one product.
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 4_000_000 // tiles)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        weights = random.multinomial(tiles, np.full(tiles, 1 / tiles), size=count)
        means[start : start + count] = weights @ per_tile / tiles
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return SlideScore(
        score=float(per_tile.mean()),
        lower=float(lower),
        upper=float(upper),
        students=students,
        disagreement=float(max(students.values()) - min(students.values())),
        tiles=tiles,
    )
