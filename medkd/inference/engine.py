"""One slide through the students of a model package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medkd.datasets.stain import StainReference, normalise
from medkd.inference.early_stop import LOOK_FACTOR, settled_interval
from medkd.inference.extremes import Extremes
from medkd.inference.overlap import overlapped, usable_cores
from medkd.inference.package import ModelPackage
from medkd.inference.students import Seen, Students
from medkd.slide_level.call import Call, make_call
from medkd.slide_level.pooling import SlideScore
from medkd.slide_level.slide_quality import SlideQuality
from medkd.slides.reader import SlideProperties
from medkd.slides.tiling import ScannedSlide, TileCounts, open_slide_for_tiling

# Rates do not differ from 4 tiles to 32, and few tiles keep the memory of many threads small.
_BATCH_TILES = 8

# Of the order of tiles where a pass may stop early: a slide's answer is always the same.
_SEED = 0


@dataclass(frozen=True)
class ScoredTile:
    """A used tile.

    Attributes:
        x, y: top left corner, level-0 pixels.
        probability: the students' mean.
        disagreement: largest minus smallest of the students' probabilities.
    """

    x: int
    y: int
    probability: float
    disagreement: float = 0.0


@dataclass(frozen=True)
class SlideInference:
    """Everything that a report needs of one slide.

    ``raw_score`` is the students' score before calibration, ``score`` what came of it. Of
    ``timing_s``, ``model`` is what reading had to wait for the students.
    """

    properties: SlideProperties
    raw_score: float | None
    score: SlideScore | None
    call: Call
    tiles: tuple[ScoredTile, ...]
    counts: TileCounts
    tile_extent_px: float
    extremes: Extremes
    thumbnail: np.ndarray
    thumbnail_mpp: float
    tissue_mask: np.ndarray
    tissue_area_mm2: float
    warnings: tuple[str, ...]
    timing_s: dict[str, float]


def _normalised(tile: np.ndarray, stain: StainReference | None) -> np.ndarray:
    """A tile, uint8 H x W x 3, in the colours of training."""
    if stain is None:
        return tile
    return np.moveaxis(normalise(np.moveaxis(tile, -1, 0), stain), 0, -1)


@dataclass(frozen=True)
class _Batch:
    """Tiles to predict, and what became of all candidates since the batch before.

    Attributes:
        places: of the tiles, x and y in level-0 pixels.
        pixels: uint8 N x H x W x 3 in the colours of training; of the last batch N may be 0.
        fates: of the candidates.
    """

    places: list[tuple[int, int]]
    pixels: np.ndarray
    fates: list[str]


class _Reading:
    """Brings the tiles of an open slide in batches; ``seconds`` is how long that took so far."""

    def __init__(
        self,
        slide: ScannedSlide,
        stain: StainReference | None,
        on_tile: Callable[[int, int], None] | None,
        seed: int | None,
    ) -> None:
        self._slide, self._stain, self._on_tile, self._seed = slide, stain, on_tile, seed
        self.seconds = 0.0

    def batches(self) -> Iterator[_Batch]:
        """Every candidate in one of them.

        Raises:
            SlideError: as :meth:`medkd.slides.tiling.ScannedSlide.tiles`.
        """
        places: list[tuple[int, int]] = []
        pixels: list[np.ndarray] = []
        fates: list[str] = []
        began = time.perf_counter()
        for done, tile in enumerate(self._slide.tiles(seed=self._seed), start=1):
            fates.append(tile.fate)
            if tile.pixels is not None:
                places.append((tile.x, tile.y))
                pixels.append(_normalised(self._slide.learnt_pixels(tile), self._stain))
            if self._on_tile is not None:
                self._on_tile(done, self._slide.candidates)
            if len(places) == _BATCH_TILES:
                batch = _Batch(places, np.array(pixels), fates)
                self.seconds += time.perf_counter() - began
                yield batch
                began = time.perf_counter()
                places, pixels, fates = [], [], []
        self.seconds += time.perf_counter() - began
        yield _Batch(places, np.array(pixels), fates)


def _left(slide: ScannedSlide, done: int) -> tuple[str, ...]:
    """What is to be told of a slide that was left after ``done`` candidates."""
    unread = slide.candidates - done
    if not unread:
        return ()
    return (
        f"reading stopped early: {slide.to_read - unread:,} of {slide.to_read:,} tiles, in random "
        "order, settle the call",
    )


def _within(distances: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(distances[what] <= limit for what, limit in limits.items())


def _predict(students: Students) -> Callable[[_Batch], Seen | None]:
    """What students say of a batch; None where it has no tile."""
    return lambda batch: students(batch.pixels) if batch.places else None


def infer_slide(
    path: Path,
    package: ModelPackage,
    students: Students,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    table_mpp: float | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> SlideInference:
    """Score and call one slide. Memory does not grow with the slide but by its thumbnail.

    This thread reads while others predict. The answer is the same, bit for bit, for any number of
    them: a batch is one thread's, and batches are taken in the order in which they were read.
    Where the package's gates say ``early_stop``, tiles come in random order, and the slide is left
    once they settle its call (:mod:`medkd.inference.early_stop`) and do not look out of
    distribution; a warning says so, ``counts`` are of the tiles until then, and the interval is
    the one that settled it.

    Args:
        path: the slide.
        package: the model.
        students: of the same package.
        slide_id: by default the file's name without its ending.
        mpp: resolution of level 0, um/px, over what the slide says.
        table_mpp: what slides.csv says of it; ``mpp`` is over it, too.
        on_tile: called with (candidates done, candidates in all).
        threads: that predict; None: one for each core that may be used.

    Raises:
        SlideError: the slide cannot be used.
        ModelPackageError: a student is broken.
    """
    manifest = package.manifest
    began = time.perf_counter()
    collected: list[Seen] = []
    extremes = Extremes()
    places: list[tuple[int, int]] = []
    fates: list[str] = []
    early, next_look = manifest.gates.early_stop, manifest.gates.min_tiles
    settled: tuple[float, float] | None = None
    compared = manifest.out_of_distribution
    limits = {} if compared is None else compared.limits
    distances: dict[str, float] = {}
    with open_slide_for_tiling(
        path,
        manifest.preprocessing.tile,
        slide_id=slide_id,
        table_mpp=table_mpp,
        override_mpp=mpp,
    ) as slide:
        opened = time.perf_counter()
        reading = _Reading(slide, manifest.preprocessing.stain, on_tile, _SEED if early else None)
        with closing(
            overlapped(_predict(students), reading.batches(), threads=threads or usable_cores())
        ) as predicted:
            for batch, seen in predicted:
                fates += batch.fates
                if seen is None:
                    continue
                places += batch.places
                collected.append(seen)
                extremes.add(np.mean(list(seen.probabilities.values()), axis=0), batch.pixels)
                if early and next_look <= len(places) and len(fates) < slide.candidates:
                    next_look = math.ceil(LOOK_FACTOR * len(places))
                    so_far = Seen.together(collected)
                    settled = settled_interval(so_far.probabilities, fates, manifest)
                    if settled is not None and _within(students.distances(so_far), limits):
                        break
                    settled = None
        warnings = (*slide.warnings, *_left(slide, len(fates)))
        done = time.perf_counter()

    raw: SlideScore | None = None
    tiles: tuple[ScoredTile, ...] = ()
    if places:
        seen = Seen.together(collected)
        if early:
            # As a pass row by row has them: read to the end, the answer is the same.
            order = np.lexsort(np.array(places).T)
            places, seen = [places[number] for number in order], seen.in_order(order)
        raw, distances = students.score(seen), students.distances(seen)
        if settled is not None:
            raw = replace(raw, lower=settled[0], upper=settled[1])
        of_students = np.stack(list(seen.probabilities.values()))
        tiles = tuple(
            ScoredTile(x, y, float(probability), float(spread))
            for (x, y), probability, spread in zip(
                places, of_students.mean(0), np.ptp(of_students, axis=0), strict=True
            )
        )
    score = None if raw is None else raw.calibrated(manifest.calibration)
    point, counts = manifest.operating_point, TileCounts.of(fates)
    call = make_call(
        score,
        point.threshold if point is not None else math.nan,
        manifest.gates,
        SlideQuality(
            slide.tissue_area_mm2,
            len(places),
            counts.rejected["out_of_focus"],
            counts.unreadable,
            (slide.properties.mpp,),
            distances,
        ),
        negative=package.negative,
        positive=manifest.positive,
        conformal=manifest.conformal,
        trained_mpp=manifest.trained_mpp,
        distance_limits=limits,
    )
    return SlideInference(
        properties=slide.properties,
        raw_score=None if raw is None else raw.score,
        score=score,
        call=call,
        tiles=tiles,
        counts=counts,
        tile_extent_px=slide.tile_extent_px,
        extremes=extremes,
        thumbnail=slide.thumbnail,
        thumbnail_mpp=slide.thumbnail_mpp,
        tissue_mask=slide.tissue_mask,
        tissue_area_mm2=slide.tissue_area_mm2,
        warnings=warnings,
        timing_s={
            "open": opened - began,
            "read": reading.seconds,
            "model": done - opened - reading.seconds,
        },
    )
