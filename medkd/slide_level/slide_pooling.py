"""Poolings as the stages use them: fitted, for the slides of one patient at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from medkd.config.slide_level import Ensembling, PatientPooling
from medkd.slide_level.embedding_file import EmbeddingFile
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.pooling import MEAN_PROBABILITY, SlideScore, pool_patient
from medkd.slide_level.pooling_kinds import Pooling
from medkd.slide_level.prediction_file import SlideTiles
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.slide_head import LearnedPooling, PackagedSlideHead


class SlidePooling(Protocol):
    """From tiles to scores, and what of it goes into a model package."""

    @property
    def packaged(self) -> PackagedSlideHead:
        """As it stands in ``model.json``."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What goes into the package beside it, by path."""

    def score(
        self, slides: Sequence[SlideTiles], *, resamples: int, interval: Interval
    ) -> SlideScore:
        """The ensemble's score of a patient, or of one slide.

        Args:
            slides: of one patient.
            resamples: of the interval; 0 gives none (NaN).
            interval: its level, and what it is for.
        """

    def alone(self, slides: Sequence[SlideTiles], network: str, /) -> float | None:
        """The score by one network that does not ship; None: the pooling has nothing of it."""


@dataclass(frozen=True)
class ProbabilityPooling:
    """Of tile probabilities.

    Attributes:
        pooling: of tiles.
        students: networks that ship.
        ensembling, patient: see :mod:`medkd.slide_level.pooling`.
    """

    pooling: Pooling
    students: tuple[str, ...]
    ensembling: Ensembling
    patient: PatientPooling
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def packaged(self) -> PackagedSlideHead:
        """As it stands in ``model.json``."""
        return PackagedSlideHead(
            pooling=self.pooling, ensembling=self.ensembling, patient=self.patient
        )

    @property
    def is_mean_of_tiles(self) -> bool:
        """Whether sums over tiles are all that it takes."""
        return self.pooling == MEAN_PROBABILITY and self.patient == "tiles"

    def score(
        self, slides: Sequence[SlideTiles], *, resamples: int, interval: Interval
    ) -> SlideScore:
        """See :class:`SlidePooling`."""
        return self._pooled(slides, self.students, resamples, interval)

    def alone(self, slides: Sequence[SlideTiles], network: str, /) -> float | None:
        """See :class:`SlidePooling`."""
        return self._pooled(slides, [network], 0, Interval(0.95)).score

    def _pooled(
        self,
        slides: Sequence[SlideTiles],
        networks: Sequence[str],
        resamples: int,
        interval: Interval,
    ) -> SlideScore:
        return pool_patient(
            {
                slide.slide_id: {
                    name: slide.probabilities[slide.networks.index(name)] for name in networks
                }
                for slide in slides
            },
            resamples=resamples,
            interval=interval,
            pooling=self.pooling,
            ensembling=self.ensembling,
            patient=self.patient,
        )


@dataclass(frozen=True)
class EmbeddingPooling:
    """Learned, of the students' embeddings.

    Attributes:
        learned: as it stands in ``model.json``.
        files: the heads.
        heads: the same, loaded.
        embeddings: of the run.
        patient: see :mod:`medkd.slide_level.pooling`.
    """

    learned: LearnedPooling
    files: Mapping[str, bytes]
    heads: SlideHeads
    embeddings: EmbeddingFile
    patient: PatientPooling

    @property
    def packaged(self) -> PackagedSlideHead:
        """As it stands in ``model.json``."""
        return PackagedSlideHead(
            pooling=self.learned, ensembling="slides_first", patient=self.patient
        )

    def score(
        self, slides: Sequence[SlideTiles], *, resamples: int, interval: Interval
    ) -> SlideScore:
        """See :class:`SlidePooling`."""
        return self.heads.interval(
            [
                self.embeddings.of_slide(slide.slide_id, slide.probabilities.shape[1])
                for slide in slides
            ],
            patient=self.patient,
            resamples=resamples,
            interval=interval,
        )

    def alone(self, _slides: Sequence[SlideTiles], _network: str, /) -> float | None:
        """None: only students that ship have embeddings and heads."""
        return None
