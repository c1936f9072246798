"""From tile probabilities to the score of a slide or patient. Imports numpy and pydantic alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from medkd.config.slide_level import Ensembling, PatientPooling
from medkd.slide_level.pooling_kinds import (
    MeanProbability,
    Pooling,
    checked_tiles,
    pool,
    pool_resamples,
)
from medkd.slide_level.score_interval import Interval, score_interval
from medkd.slide_level.uncertainty import mutual_information

Scored = Callable[[np.ndarray], np.ndarray]

MEAN_PROBABILITY = MeanProbability()


@dataclass(frozen=True)
class SlideScore:
    """What the tiles of one slide, or of one patient, say together.

    Attributes:
        score: of the ensemble of students.
        lower, upper: interval of the score. Neighbouring tiles resemble one another, so it is a
            lower bound of the true uncertainty.
        students: the score of each student alone.
        disagreement: largest minus smallest of the students' scores, before calibration.
        tiles: how many there were.
    """

    score: float
    lower: float
    upper: float
    students: dict[str, float]
    disagreement: float
    tiles: int

    @property
    def mutual_information(self) -> float | None:
        """What the students disagree about, nats; None for one student or without their scores."""
        if len(self.students) < 2:
            return None
        return float(mutual_information(np.array(list(self.students.values()))[:, None])[0])

    def calibrated(self, calibration: Callable[[Any], np.ndarray]) -> SlideScore:
        """The score and its interval as probabilities; students and disagreement as they were.

        Args:
            calibration: does not fall; such as those of :mod:`medkd.slide_level.calibration`.
        """
        score, lower, upper = calibration([self.score, self.lower, self.upper]).tolist()
        return replace(self, score=score, lower=lower, upper=upper)


def pool_slide(
    probabilities: Mapping[str, np.ndarray],
    *,
    resamples: int,
    interval: Interval,
    seed: int = 0,
    pooling: Pooling = MEAN_PROBABILITY,
    ensembling: Ensembling = "tiles_first",
) -> SlideScore:
    """Pool the tiles of one slide.

    Args:
        probabilities: for each student the positive class's probability of each tile, float,
            (tiles,), the same tiles in the same order.
        resamples: bootstrap resamples of tiles; a tile is drawn with all its students. 0 gives no
            interval: NaN.
        interval: its level, and what it is for.
        seed: of the resampling; the same tiles give the same interval.
        pooling: of tiles.
        ensembling: whether students are averaged in each tile or over slides.

    Raises:
        ValueError: no tile, no student, unequal numbers of tiles, or a value that is not a
            probability.
    """
    values = _of_students(probabilities)
    drawn = _resampled(values, pooling, ensembling, resamples, np.random.default_rng(seed))
    return slide_score(
        _ensemble(values, ensembling, lambda tiles: pool(pooling, tiles)),
        drawn,
        dict(zip(probabilities, (pool(pooling, tiles) for tiles in values), strict=True)),
        interval,
        values.shape[1],
    )


def pool_patient(
    slides: Mapping[str, Mapping[str, np.ndarray]],
    *,
    resamples: int,
    interval: Interval,
    seed: int = 0,
    pooling: Pooling = MEAN_PROBABILITY,
    ensembling: Ensembling = "tiles_first",
    patient: PatientPooling = "tiles",
) -> SlideScore:
    """Pool all slides of one patient.

    ``tiles``, the default, pools the tiles of all slides as if they were one: a large slide weighs
    more than a small one because it shows more of the tumour, and a sliver of tissue decides
    nothing. ``mean_of_slides`` lets each slide count alike, however small. ``max_of_slides`` takes
    the highest slide, for findings that one block may hold alone; it rises with the number of
    slides, so that patients with many are called more often.

    The interval of the first resamples tiles of all slides together, that of the others tiles
    within each slide. A student's score is that of its own slides.

    Args:
        slides: of each slide what :func:`pool_slide` takes. A slide without a tile says nothing
            and is left out.
        resamples, interval, seed, pooling, ensembling: as for :func:`pool_slide`.
        patient: how slides come together.

    Raises:
        ValueError: no slide with a tile, or slides of different students; as for
            :func:`pool_slide`; an unknown word.
    """
    if patient not in get_args(PatientPooling):
        raise ValueError(f"unknown way to pool a patient: '{patient}'")
    if len({tuple(students) for students in slides.values()}) > 1:
        raise ValueError("the slides of a patient have different students, or in another order")
    names = list(next(iter(slides.values()), {}))
    seen = [
        values
        for values in (_of_students(students, empty=True) for students in slides.values())
        if values.shape[1]
    ]
    if not seen:
        raise ValueError("there is no tile to pool")
    if patient == "tiles":
        return pool_slide(
            dict(zip(names, np.concatenate(seen, axis=1), strict=True)),
            resamples=resamples,
            interval=interval,
            seed=seed,
            pooling=pooling,
            ensembling=ensembling,
        )
    random = np.random.default_rng(seed)
    return slides_together(
        patient,
        [_ensemble(values, ensembling, lambda tiles: pool(pooling, tiles)) for values in seen],
        [_resampled(values, pooling, ensembling, resamples, random) for values in seen],
        [
            {name: pool(pooling, tiles) for name, tiles in zip(names, values, strict=True)}
            for values in seen
        ],
        interval,
        sum(values.shape[1] for values in seen),
    )


def slides_together(
    patient: PatientPooling,
    scores: Sequence[float],
    drawn: Sequence[np.ndarray],
    students: Sequence[Mapping[str, float]],
    interval: Interval,
    tiles: int,
) -> SlideScore:
    """The score of a patient from those of slides, by their mean or the highest.

    Args:
        patient: ``mean_of_slides`` or ``max_of_slides``.
        scores: of the ensemble, of each slide.
        drawn: of each slide, scores in resamples of its tiles, (resamples,).
        students: of each slide, the score of every student.
        interval: its level, and what it is for.
        tiles: of all slides.
    """
    together = np.max if patient == "max_of_slides" else np.mean
    return slide_score(
        float(together(scores)),
        together(drawn, axis=0),
        {name: float(together([one[name] for one in students])) for name in students[0]},
        interval,
        tiles,
    )


def _of_students(probabilities: Mapping[str, np.ndarray], *, empty: bool = False) -> np.ndarray:
    """Checked probabilities, float64, (students, tiles)."""
    if not probabilities:
        raise ValueError("no student gave probabilities")
    values = np.stack([np.asarray(p, np.float64) for p in probabilities.values()])
    if empty and values.shape[1:] == (0,):
        return values
    return np.stack([checked_tiles(tiles) for tiles in values])


def _ensemble(
    values: np.ndarray, ensembling: Ensembling, pooled: Callable[[np.ndarray], float]
) -> float:
    if ensembling == "tiles_first":
        return pooled(values.mean(0))
    if ensembling == "slides_first":
        return float(np.mean([pooled(tiles) for tiles in values]))
    raise ValueError(f"unknown order of ensembling: '{ensembling}'")


def of_resamples(
    tiles: int, resamples: int, seed: int | np.random.Generator, scored: Scored
) -> np.ndarray:
    """Scores of bootstrap resamples of tiles, (resamples,), in bounded memory.

    Args:
        tiles: how many there are.
        resamples: how many times as many are drawn, with replacement.
        seed: of the drawing, or what draws.
        scored: from counts of tiles, int (some resamples, tiles), to scores.
    """
    random = np.random.default_rng(seed)
    scores = np.empty(resamples)
    # Drawing n of n tiles with replacement is drawing how often each one comes.
    block = max(1, 4_000_000 // tiles)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        counts = random.multinomial(tiles, np.full(tiles, 1 / tiles), size=count)
        scores[start : start + count] = scored(counts)
    return scores


def _resampled(
    values: np.ndarray,
    pooling: Pooling,
    ensembling: Ensembling,
    resamples: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The ensemble's score in each resample of tiles, (resamples,)."""
    rows = values.mean(0, keepdims=True) if ensembling == "tiles_first" else values
    return of_resamples(
        values.shape[1],
        resamples,
        random,
        lambda counts: np.mean([pool_resamples(pooling, row, counts) for row in rows], axis=0),
    )


def slide_score(
    score: float, drawn: np.ndarray, students: Mapping[str, float], interval: Interval, tiles: int
) -> SlideScore:
    """A score with its interval; NaN where nothing was drawn.

    Args:
        score: of the ensemble.
        drawn: the same in resamples of tiles, (resamples,).
        students: the score of each.
        interval: its level, and what it is for.
        tiles: how many there are.
    """
    values = np.array(list(students.values()))
    lower, upper = score_interval(score, drawn, values, tiles, interval)
    return SlideScore(
        score=score,
        lower=lower,
        upper=upper,
        students=dict(students),
        disagreement=float(np.ptp(values)),
        tiles=tiles,
    )
