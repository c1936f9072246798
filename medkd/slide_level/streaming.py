"""From a file of tile predictions of any length to scores of slides and patients, in one pass.

Memory holds the tiles of patients whose slides are not all read yet, at 4 bytes a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.errors import StageError
from medkd.progress import Advance
from medkd.slide_level.prediction_file import PredictionFile, SlideTiles
from medkd.slide_level.score_interval import Interval, score_interval
from medkd.slide_level.slide_pooling import SlidePooling
from medkd.slide_level.tile_weights import TileWeights
from medkd.slide_level.uncertainty import mutual_information

ENSEMBLE = "ensemble"

MOST_RESAMPLES = 500
"""Of intervals by poolings other than the mean, which sort the tiles."""


@dataclass(frozen=True)
class PooledPredictions:
    """Scores of slides and of patients, by network and for the ensemble of students.

    Both tables have ``network``, ``tiles``, ``score``, ``lower``, ``upper``, ``disagreement`` and
    ``mutual_information`` as in docs/files.md, behind ``slide_id`` (slides only), ``patient_id``
    and ``role``, and are sorted by these; the ensemble comes after the networks.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame


@dataclass(frozen=True)
class _Sums:
    """What is known of some tiles: values are sums over tiles of all networks.

    Attributes:
        tiles: how many.
        plain: float64, (networks,).
        drawn: weighted by each resample, float64, (networks, resamples).
        weights: sums of weights, float64, (resamples,).
    """

    tiles: int
    plain: np.ndarray
    drawn: np.ndarray
    weights: np.ndarray

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.tiles + other.tiles,
            self.plain + other.plain,
            self.drawn + other.drawn,
            self.weights + other.weights,
        )


def pool_predictions(
    path: Path,
    students: Sequence[str],
    *,
    resamples: int,
    interval: Interval,
    seed: int = 0,
    pooling: SlidePooling | None = None,
    advance: Advance | None = None,
    on_patient: Callable[[Sequence[SlideTiles]], None] | None = None,
) -> PooledPredictions:
    """Pool a file of predictions, with bootstrap intervals over tiles.

    Without ``pooling`` by the mean: float64 over all tiles (and students); a patient's is that
    over all tiles of the patient's slides. Intervals are percentiles of means under the weights of
    :class:`medkd.slide_level.tile_weights.TileWeights`, with all networks of a tile together.

    With ``pooling`` the ensemble alone has intervals, of at most :data:`MOST_RESAMPLES`, and of
    the networks only those have rows of which the pooling can say something.

    Args:
        path: of ``predictions.parquet``, see docs/files.md.
        students: names of the networks that ship.
        resamples, interval, seed: of the bootstrap. A network alone has the interval of its tiles.
        pooling: how tiles come together; None: by the mean of all.
        advance: told of every slide that is done.
        on_patient: given all slides of every patient, so that no second pass is needed for them.

    Raises:
        StageError: a student is absent, or as
            :class:`medkd.slide_level.prediction_file.PredictionFile` has it.
    """
    file = PredictionFile(path)
    for student in students:
        if student not in file.networks:
            raise StageError(
                f"has no predictions of '{student}'",
                where=path,
                remedy="Run 'medkd predict' again.",
            )
    shipped = [file.networks.index(student) for student in students]
    weights = TileWeights(resamples, seed)
    slides: list[dict[str, Any]] = []
    patients: list[dict[str, Any]] = []
    for of_patient in file.patients():
        if on_patient is not None:
            on_patient(of_patient)
        key = {"patient_id": of_patient[0].patient_id, "role": of_patient[0].role}
        together: _Sums | None = None
        for slide in of_patient:
            of_slide = {"slide_id": slide.slide_id, **key}
            if pooling is not None:
                slides += _pooled_rows(of_slide, [slide], students, pooling, resamples, interval)
            else:
                sums = _sums(slide.probabilities, weights, first=together.tiles if together else 0)
                slides += _rows(of_slide, file.networks, shipped, sums, interval)
                together = together + sums if together else sums
            if advance is not None:
                advance()
        if together is not None:
            patients += _rows(key, file.networks, shipped, together, interval)
        elif pooling is not None:
            patients += _pooled_rows(key, of_patient, students, pooling, resamples, interval)
    return PooledPredictions(
        _table(slides, ["slide_id", "patient_id", "role"]), _table(patients, ["patient_id", "role"])
    )


def _pooled_rows(
    key: dict[str, str],
    slides: Sequence[SlideTiles],
    students: Sequence[str],
    pooling: SlidePooling,
    resamples: int,
    interval: Interval,
) -> list[dict[str, Any]]:
    ensemble = pooling.score(slides, resamples=min(resamples, MOST_RESAMPLES), interval=interval)
    scores: dict[str, float | None] = {
        name: ensemble.students[name] if name in students else pooling.alone(slides, name)
        for name in slides[0].networks
    }
    scores[ENSEMBLE] = ensemble.score
    information = _information(np.array(list(ensemble.students.values())))
    return [
        {
            **key,
            "network": network,
            "tiles": ensemble.tiles,
            "score": score,
            "lower": ensemble.lower if network == ENSEMBLE else np.nan,
            "upper": ensemble.upper if network == ENSEMBLE else np.nan,
            "disagreement": ensemble.disagreement if network == ENSEMBLE else np.nan,
            "mutual_information": information if network == ENSEMBLE else np.nan,
        }
        for network, score in scores.items()
        if score is not None
    ]


def _sums(probabilities: np.ndarray, weights: TileWeights, first: int) -> _Sums:
    tiles = probabilities.shape[1]
    plain = probabilities.sum(1, dtype=np.float64)
    centre = (plain / tiles).astype(np.float32)
    drawn, drawn_weights = weights.sums(probabilities - centre[:, None], first)
    return _Sums(tiles, plain, drawn + centre[:, None] * drawn_weights, drawn_weights)


def _rows(
    key: dict[str, str],
    networks: Sequence[str],
    shipped: list[int],
    sums: _Sums,
    interval: Interval,
) -> list[dict[str, Any]]:
    scores = sums.plain / sums.tiles
    # A resample in which no tile came has no mean.
    some = sums.weights > 0
    drawn = sums.drawn[:, some] / sums.weights[some]
    scores = np.append(scores, scores[shipped].mean())
    drawn = np.concatenate([drawn, drawn[shipped].mean(0, keepdims=True)])
    tail = (1 - interval.confidence) / 2
    lower, upper = np.quantile(drawn, [tail, 1 - tail], axis=1)
    of_students = scores[shipped]
    lower[-1], upper[-1] = score_interval(
        float(scores[-1]), drawn[-1], of_students, sums.tiles, interval
    )
    spread = float(np.ptp(of_students))
    information = _information(of_students)
    return [
        {
            **key,
            "network": network,
            "tiles": sums.tiles,
            "score": float(scores[number]),
            "lower": float(lower[number]),
            "upper": float(upper[number]),
            "disagreement": spread if network == ENSEMBLE else np.nan,
            "mutual_information": information if network == ENSEMBLE else np.nan,
        }
        for number, network in enumerate((*networks, ENSEMBLE))
    ]


def _information(of_students: np.ndarray) -> float:
    return float(mutual_information(of_students[:, None])[0]) if len(of_students) > 1 else np.nan


def _table(rows: list[dict[str, Any]], keys: list[str]) -> pd.DataFrame:
    # The order of networks within a slide is kept.
    table = pd.DataFrame(rows).sort_values(keys, kind="stable", ignore_index=True)
    return table.astype({"tiles": "int32"})
