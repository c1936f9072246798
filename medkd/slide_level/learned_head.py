"""Slide heads in use: from embeddings of tiles to a score, by onnxruntime, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from medkd.config.slide_level import HeadArchitecture, PatientPooling
from medkd.errors import ModelPackageError
from medkd.slide_level.calibration import expit
from medkd.slide_level.pooling import SlideScore, of_resamples, slide_score, slides_together
from medkd.slide_level.score_interval import Interval

_LEAST_LOG_WEIGHT = 700.0
_OUTPUTS = ("probability", "attention", "attention_scores", "tile_logits")


@dataclass(frozen=True)
class HeadScore:
    """What the heads of all students say of one slide.

    Attributes:
        score: mean of the students' probabilities of the positive class.
        students: the probability of each.
        attention: weight of each tile, mean over students, float64, (tiles,); sums to 1.
    """

    score: float
    students: dict[str, float]
    attention: np.ndarray


@dataclass(frozen=True)
class _Said:
    """One student's head of the tiles of one slide: (tiles,) float64 but the probability."""

    probability: float
    attention: np.ndarray
    scores: np.ndarray
    tile_logits: np.ndarray


class SlideHeads:
    """One head for each student, on its own embeddings.

    Args:
        kind: which of :class:`medkd.networks.mil.SlideHead` they are.
        models: ONNX by student, with the input ``embeddings``, float32 N x D, and the outputs of
            :func:`medkd.training.slide_head_export.export_slide_head`.

    Raises:
        ModelPackageError: onnxruntime cannot load one, or it has other inputs or outputs.
        ValueError: there is none.
    """

    def __init__(self, kind: HeadArchitecture, models: Mapping[str, bytes]) -> None:
        if not models:
            raise ValueError("there is no slide head")
        self._kind = kind
        self._sessions = {student: _session(student, model) for student, model in models.items()}

    def __call__(self, embeddings: Mapping[str, np.ndarray]) -> HeadScore:
        """Score a slide, or a patient with the tiles of all slides.

        Args:
            embeddings: of each student, floats, tiles x D, the same tiles in the same order.

        Raises:
            ModelPackageError: an embedding is longer or shorter than its head takes, or a head
                gives something that is not a probability.
            ValueError: a student without embeddings, no tile, or unequal numbers of tiles.
        """
        return _together(self._run(embeddings))

    def interval(
        self,
        slides: Sequence[Mapping[str, np.ndarray]],
        *,
        patient: PatientPooling = "tiles",
        resamples: int,
        interval: Interval,
        seed: int = 0,
    ) -> SlideScore:
        """The score of a slide, or of several of one patient, with a bootstrap interval over tiles.

        A head weighs tiles by scores and takes the mean of their logits, so a resample needs
        nothing but these: it is exactly the score of the tiles written out. Tiles of a transformer
        have looked at one another before; they keep what they saw of all.

        Args:
            slides: of each slide its embeddings, as for a score.
            patient: how several slides come together, see
                :func:`medkd.slide_level.pooling.pool_patient`.
            resamples, interval, seed: of the bootstrap; a tile is drawn with all its students. 0
                resamples give no interval.

        Raises:
            ModelPackageError, ValueError: as for a score.
        """
        if patient == "tiles" and len(slides) > 1:
            slides = [{s: np.concatenate([one[s] for one in slides]) for s in self._sessions}]
        random = np.random.default_rng(seed)
        scores, drawn = [], []
        for embeddings in slides:
            said = self._run(embeddings)
            scores.append(_together(said))
            tiles = len(scores[-1].attention)
            drawn.append(of_resamples(tiles, resamples, random, partial(self._drawn, said)))
        if len(slides) == 1:
            found = scores[0]
            return slide_score(found.score, drawn[0], found.students, interval, tiles)
        return slides_together(
            patient,
            [one.score for one in scores],
            drawn,
            [one.students for one in scores],
            interval,
            sum(len(one.attention) for one in scores),
        )

    def _run(self, embeddings: Mapping[str, np.ndarray]) -> dict[str, _Said]:
        self._check(embeddings)
        found = {}
        for student, session in self._sessions.items():
            given = np.ascontiguousarray(embeddings[student], np.float32)
            probability, *of_tiles = session.run(_OUTPUTS, {"embeddings": given})
            # Of a value that is no number every comparison is false.
            if not 0 <= probability <= 1 or not all(np.isfinite(one).all() for one in of_tiles):
                raise ModelPackageError(
                    f"gave a probability of {float(probability)}",
                    where=f"slide head of '{student}'",
                    remedy="Look for embeddings that are not finite, or use another model.",
                )
            found[student] = _Said(
                float(probability), *(one.astype(np.float64) for one in of_tiles)
            )
        return found

    def _drawn(self, said: Mapping[str, _Said], counts: np.ndarray) -> np.ndarray:
        """The mean of the students' probabilities in each resample, (resamples,)."""
        return np.mean([expit(self._logits(one, counts)) for one in said.values()], axis=0)

    def _logits(self, said: _Said, counts: np.ndarray) -> np.ndarray:
        if self._kind == "max_embedding":
            order = np.argsort(-said.tile_logits, kind="stable")
            return said.tile_logits[order[np.argmax(counts[:, order] > 0, axis=1)]]
        # Never 0: a resample may have missed every tile that counts for anything.
        weights = np.exp(np.maximum(said.scores - said.scores.max(), -_LEAST_LOG_WEIGHT))
        return counts @ (weights * said.tile_logits) / (counts @ weights)

    def _check(self, embeddings: Mapping[str, np.ndarray]) -> None:
        counts = set()
        for student, session in self._sessions.items():
            if student not in embeddings:
                raise ValueError(f"there are no embeddings of '{student}'")
            given = np.asarray(embeddings[student])
            wanted = session.get_inputs()[0].shape[1]
            if given.ndim != 2 or given.shape[1] != wanted:
                raise ModelPackageError(
                    f"embeddings are {' x '.join(map(str, given.shape))}, not tiles x {wanted}",
                    where=f"slide head of '{student}'",
                    remedy="Use the head that was trained with this student.",
                )
            counts.add(len(given))
        if len(counts) > 1:
            raise ValueError("the students have unequal numbers of tiles")
        if counts == {0}:
            raise ValueError("there is no tile to pool")


def _together(said: Mapping[str, _Said]) -> HeadScore:
    students = {student: one.probability for student, one in said.items()}
    attention = np.mean([one.attention for one in said.values()], axis=0)
    return HeadScore(float(np.mean(list(students.values()))), students, attention)


def _session(student: str, model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    where = f"slide head of '{student}'"
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise ModelPackageError(
            f"onnxruntime {onnxruntime.__version__} cannot load it: {error}",
            where=where,
            remedy="Install the onnxruntime of the machine that made the package, or a later one.",
        ) from error
    inputs = [put.name for put in session.get_inputs()]
    outputs = {put.name for put in session.get_outputs()}
    if inputs != ["embeddings"] or not set(_OUTPUTS) <= outputs:
        raise ModelPackageError(
            f"takes {', '.join(inputs)} and gives {', '.join(sorted(outputs))}",
            where=where,
            remedy=f"Give a head that takes embeddings, and gives {', '.join(_OUTPUTS)}.",
        )
    return session
