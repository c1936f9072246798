"""One slide through the students of a model package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.datasets.stain import StainReference, normalise
from medkd.errors import ModelPackageError
from medkd.inference.extremes import Extremes
from medkd.inference.package import ModelPackage
from medkd.slide_level.call import Call, make_call
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.pooling import SlideScore, pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.slide_head import LearnedPooling
from medkd.slide_level.slide_quality import SlideQuality
from medkd.slides.reader import SlideProperties
from medkd.slides.tiling import TileCounts, open_slide_for_tiling

_BATCH_TILES = 32

# float32 softmax may end this far outside of 0 to 1.
_ROUNDING = 1e-4


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

    ``raw_score`` is the students' score before calibration, ``score`` what came of it.
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


@dataclass(frozen=True)
class Seen:
    """What the students say of N tiles.

    Attributes:
        probabilities: of the positive class, float32 (N,) of each student.
        embeddings: float16 N x D of each student; empty where the pooling does without.
    """

    probabilities: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]

    @classmethod
    def together(cls, parts: Sequence[Seen]) -> Seen:
        """All tiles of several."""
        return cls(
            *(
                {
                    name: np.concatenate([getattr(part, kind)[name] for part in parts])
                    for name in getattr(parts[0], kind)
                }
                for kind in ("probabilities", "embeddings")
            )
        )


class Students:
    """The students' ONNX sessions, and the heads of a learned pooling; loaded once."""

    def __init__(self, package: ModelPackage) -> None:
        self._positive = package.manifest.classes.index(package.manifest.positive)
        self._package = package
        self._sessions: dict[str, Any] = {
            student.name: _session(package.folder / student.onnx)
            for student in package.manifest.students
        }
        learned = package.manifest.slide_head.learned
        self._heads = None
        if learned is not None:
            models = {
                name: (package.folder / path).read_bytes() for name, path in learned.onnx.items()
            }
            self._heads = SlideHeads(learned.kind, models)

    def __call__(self, tiles: np.ndarray) -> Seen:
        """What the students say of tiles, uint8 N x H x W x 3.

        Raises:
            ModelPackageError: a student gives something that is not a probability.
        """
        probabilities, embeddings = {}, {}
        outputs = ["probabilities"] if self._heads is None else ["probabilities", "embeddings"]
        for name, session in self._sessions.items():
            of_classes, *pooled = session.run(outputs, {"tiles": tiles})
            values = of_classes[:, self._positive]
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise ModelPackageError(
                    f"{name} gave a probability that is not a number between 0 and 1",
                    where=self._package.folder,
                    remedy="The network is broken; use another model.",
                )
            probabilities[name] = np.clip(values, 0, 1)
            if pooled:
                # As 'medkd predict' keeps them for the head's training.
                embeddings[name] = pooled[0].astype(np.float16)
        return Seen(probabilities, embeddings)

    def score(self, seen: Seen) -> SlideScore:
        """The score of a slide, before calibration, by the pooling of the package.

        Raises:
            ModelPackageError: a head gives something that is not a probability.
        """
        manifest = self._package.manifest
        head = manifest.slide_head
        options: dict[str, Any] = {
            "resamples": manifest.slide_level.bootstrap_resamples,
            "interval": Interval(manifest.slide_level.confidence, manifest.slide_level.interval),
        }
        if self._heads is not None:
            return self._heads.interval([seen.embeddings], **options)
        assert not isinstance(head.pooling, LearnedPooling)
        return pool_slide(
            seen.probabilities, pooling=head.pooling, ensembling=head.ensembling, **options
        )


def _normalised(tile: np.ndarray, stain: StainReference | None) -> np.ndarray:
    """A tile, uint8 H x W x 3, in the colours of training."""
    if stain is None:
        return tile
    return np.moveaxis(normalise(np.moveaxis(tile, -1, 0), stain), 0, -1)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise ModelPackageError(
            f"onnxruntime {onnxruntime.__version__} cannot load it: {error}",
            where=path,
            remedy="Install the onnxruntime of the machine that made the package, or a later one.",
        ) from error


def infer_slide(
    path: Path,
    package: ModelPackage,
    students: Students,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    table_mpp: float | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> SlideInference:
    """Score and call one slide. Memory does not grow with the slide but by its thumbnail.

    Args:
        path: the slide.
        package: the model.
        students: of the same package.
        slide_id: by default the file's name without its ending.
        mpp: resolution of level 0, um/px, over what the slide says.
        table_mpp: what slides.csv says of it; ``mpp`` is over it, too.
        on_tile: called with (candidates done, candidates in all).

    Raises:
        SlideError: the slide cannot be used.
        ModelPackageError: a student is broken.
    """
    manifest = package.manifest
    parameters, stain = manifest.preprocessing.tile, manifest.preprocessing.stain
    began = time.perf_counter()
    spent = {"read": 0.0, "model": 0.0}
    collected: list[Seen] = []
    extremes = Extremes()
    places: list[tuple[int, int]] = []
    fates: list[str] = []
    batch: list[np.ndarray] = []

    def flush() -> None:
        started = time.perf_counter()
        pixels = np.stack(batch)
        collected.append(students(pixels))
        extremes.add(np.mean(list(collected[-1].probabilities.values()), axis=0), pixels)
        batch.clear()
        spent["model"] += time.perf_counter() - started

    with open_slide_for_tiling(
        path, parameters, slide_id=slide_id, table_mpp=table_mpp, override_mpp=mpp
    ) as slide:
        opened = time.perf_counter()
        for tile in slide.tiles():
            fates.append(tile.fate)
            if tile.pixels is not None:
                batch.append(_normalised(slide.learnt_pixels(tile), stain))
                places.append((tile.x, tile.y))
                if len(batch) == _BATCH_TILES:
                    flush()
            if on_tile is not None:
                on_tile(len(fates), slide.candidates)
        if batch:
            flush()
        spent["read"] = time.perf_counter() - opened - spent["model"]

    raw: SlideScore | None = None
    tiles: tuple[ScoredTile, ...] = ()
    if places:
        seen = Seen.together(collected)
        raw = students.score(seen)
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
        ),
        negative=package.negative,
        positive=manifest.positive,
        conformal=manifest.conformal,
        trained_mpp=manifest.trained_mpp,
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
        warnings=slide.warnings,
        timing_s={"open": opened - began, **spent},
    )
