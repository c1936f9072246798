"""One slide to its tile store: the zip, the record of how it was made, and a preview."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import openslide
import PIL
import simplejpeg

import medkd
from medkd.config import TileConfig
from medkd.errors import OutputError, SlideError
from medkd.files import output_errors, write_bytes, write_json
from medkd.slides.annotations import Annotations, annotation_digest, read_annotations
from medkd.slides.openslide_reader import fingerprint
from medkd.slides.preview import draw_preview
from medkd.slides.readers import reader_now
from medkd.slides.store import StoredTile, writing_store
from medkd.slides.tiling import (
    ScannedSlide,
    Tile,
    TileCounts,
    no_tissue,
    open_slide_for_tiling,
)

SCHEMA_VERSION = 1
"""Of the record beside each store; raise it where old stores must be made anew."""

_CONTENT = ("slide file", "annotations")  # of which a digest is all there is to tell

_log = logging.getLogger(__name__)


class SlideRowLike(Protocol):
    """What the tile stage needs of a row of slides.csv."""

    @property
    def slide_id(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def patient_id(self) -> str: ...  # noqa: D102
    @property
    def mpp(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class SlideTask:
    """One slide to tile. Goes to a worker process."""

    slide_id: str
    patient_id: str
    path: Path
    table_mpp: float | None
    parameters: TileConfig
    folder: Path

    @property
    def store_path(self) -> Path:
        """The zip of tiles."""
        return self.folder / f"{self.slide_id}.zip"

    @property
    def record_path(self) -> Path:
        """How the zip was made. Written last, so that it vouches for the others."""
        return self.folder / f"{self.slide_id}.json"

    @property
    def preview_path(self) -> Path:
        """The thumbnail with the mask's outline and the fates of the tiles."""
        return self.folder / f"{self.slide_id}.jpg"


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide: a row of the report.

    Attributes:
        slide_id, patient_id: as in slides.csv.
        status: ``ok`` (tiled now), ``skipped`` (was there already) or ``failed``.
        reason: short code of a failure; empty otherwise.
        message: why it failed, or why it was done again; one line.
        record: the content of the slide's JSON; of a failed slide, what was found out.
        preview: a JPEG; None where the slide could not be opened.
        seconds: that it took.
    """

    slide_id: str
    patient_id: str
    status: str
    reason: str = ""
    message: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    seconds: float = 0.0

    @property
    def synthetic(self) -> bool:
        """Whether the slide was drawn, not scanned (False where it could not be opened)."""
        return bool(self.record.get("slide", {}).get("synthetic", False))


def tile_slide(task: SlideTask) -> SlideOutcome:
    """Tile one slide. Whatever is wrong with the slide becomes a failed outcome.

    Raises:
        OutputError: its files cannot be written; the other slides would fare no better.
    """
    try:
        return _attempt(task)
    except OutputError:
        # Without its record the store is worth nothing, and the disk may be full.
        with contextlib.suppress(OutputError):
            _remove_files(task)
        raise


def outdated(task: SlideTask) -> str | None:
    """Why the slide's store must be made anew; None where it is just what a run would make."""
    try:
        record = json.loads(task.record_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "not tiled yet"
    except (OSError, ValueError):
        return "its record cannot be read"
    if not isinstance(record, dict):
        return "its record cannot be read"
    for path in (task.store_path, task.preview_path):
        if not path.is_file():
            return f"{path.name} is missing"
    try:
        fingerprint_now = fingerprint(task.path)
        digest = annotation_digest(task.parameters, task.slide_id)
    except OSError:
        return "the slide or its annotations cannot be read"
    drawn = record.get("annotations") or {}
    slide = record.get("slide", {})
    compared = {
        "schema version": (record.get("schema_version"), SCHEMA_VERSION),
        "medkd": (record.get("software", {}).get("medkd"), medkd.__version__),
        "reader": (slide.get("reader"), reader_now(slide.get("reader", ""))),
        "patient": (record.get("patient_id"), task.patient_id),
        "mpp in slides.csv": (record.get("table_mpp"), task.table_mpp),
        "slide file": (slide.get("fingerprint"), fingerprint_now),
        "annotations": (drawn.get("sha256"), digest),
    }
    parameters, before = task.parameters.recorded(), record.get("parameters", {})
    if before.get("store") == "coordinates":
        # Training looks for the slide where the record says.
        compared["slide path"] = (slide.get("path"), str(task.path))
    for key in sorted({*parameters, *before}):
        compared[f"tile.{key}"] = (before.get(key), parameters.get(key))
    changes = [
        f"{name} changed" if name in _CONTENT else f"{name} was {old}, is {new}"
        for name, (old, new) in compared.items()
        if old != new
    ]
    return "; ".join(changes) or None


def skipped(task: SlideTask) -> SlideOutcome:
    """The outcome of a slide whose store is there and not :func:`outdated`."""
    record = json.loads(task.record_path.read_text(encoding="utf-8"))
    return SlideOutcome(
        task.slide_id,
        task.patient_id,
        "skipped",
        record=record,
        preview=task.preview_path.read_bytes(),
        seconds=record["timing_s"],
    )


def _attempt(task: SlideTask) -> SlideOutcome:
    started = time.monotonic()
    outcome = SlideOutcome(task.slide_id, task.patient_id, "failed")
    try:
        annotations = read_annotations(task.parameters, task.slide_id)
        with open_slide_for_tiling(
            task.path,
            task.parameters,
            slide_id=task.slide_id,
            table_mpp=task.table_mpp,
            annotations=annotations,
        ) as slide:
            outcome = replace(outcome, record=_record(task, slide, annotations))
            outcome = _tile_open_slide(task, slide, outcome)
    except SlideError as error:
        outcome = replace(outcome, reason=error.reason, message=str(error))
    except OutputError:
        raise
    except Exception as error:
        # One slide that no one foresaw must not stop the others.
        _log.debug("tiling %s", task.path, exc_info=True)
        message = f"{task.path}: {type(error).__name__}: {error}".replace("\n", " ")
        remedy = "This is a fault of medkd; please report it."
        outcome = replace(outcome, reason="internal_error", message=f"{message}. {remedy}")
    outcome = replace(outcome, seconds=round(time.monotonic() - started, 3))
    if outcome.status == "ok":
        outcome.record["timing_s"] = outcome.seconds
        write_json(task.record_path, outcome.record)
    return outcome


def _tile_open_slide(task: SlideTask, slide: ScannedSlide, outcome: SlideOutcome) -> SlideOutcome:
    seen: list[Tile] = []

    def remembered() -> Iterator[Tile]:
        for tile in slide.tiles():
            seen.append(replace(tile, pixels=None))
            yield tile

    try:
        _remove_files(task)
        with writing_store(task.store_path) as store:
            for tile in remembered():
                if tile.pixels is not None:
                    figures = StoredTile(tile.x, tile.y, tile.tissue_fraction, tile.focus)
                    store.add(figures, slide.stored_jpeg(tile))
            counts = TileCounts.of(tile.fate for tile in seen)
            if counts.used == 0:
                raise _nothing_to_use(slide, counts)
    except SlideError as error:
        # The preview shows what is wrong with it.
        return replace(
            outcome,
            reason=error.reason,
            message=str(error),
            record=outcome.record | _figures(slide, seen),
            preview=draw_preview(slide, seen),
        )
    preview = draw_preview(slide, seen)
    write_bytes(task.preview_path, preview)
    return replace(
        outcome, status="ok", record=outcome.record | _figures(slide, seen), preview=preview
    )


def _remove_files(task: SlideTask) -> None:
    """Remove the slide's files; the record first, for it vouches for the rest."""
    for path in (task.record_path, task.store_path, task.preview_path):
        with output_errors(path):
            path.unlink(missing_ok=True)


def _nothing_to_use(slide: ScannedSlide, counts: TileCounts) -> SlideError:
    if slide.tissue_area_mm2 == 0 and counts.unreadable == 0:
        return no_tissue(slide.properties.path)
    fates = {"unreadable": counts.unreadable, **counts.rejected}
    told = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
    return SlideError(
        "no_usable_tiles",
        f"none of its {counts.candidate} tiles can be used ({told})",
        where=slide.properties.path,
        remedy="Look at its thumbnail in the report; tile.min_tissue, tile.min_focus, "
        "tile.max_pen and its annotations set what is refused.",
    )


def _record(
    task: SlideTask, slide: ScannedSlide, annotations: Annotations | None
) -> dict[str, Any]:
    properties = slide.properties
    return {
        "schema_version": SCHEMA_VERSION,
        "slide_id": task.slide_id,
        "patient_id": task.patient_id,
        "table_mpp": task.table_mpp,
        "parameters": task.parameters.recorded(),
        "slide": {
            "path": str(task.path),
            "fingerprint": properties.fingerprint,
            "vendor": properties.vendor,
            "width_px": properties.width_px,
            "height_px": properties.height_px,
            "mpp": properties.mpp,
            "mpp_source": properties.mpp_source,
            "objective_power": properties.objective_power,
            "synthetic": properties.synthetic,
            "reader": properties.reader,
            "reader_reason": properties.reader_reason,
            "icc": properties.icc,
            "icc_description": properties.icc_description,
            "warnings": list(slide.warnings),
        },
        "annotations": annotations.recorded() if annotations else None,
        "software": {
            "medkd": medkd.__version__,
            "openslide": openslide.__library_version__,
            "pillow": PIL.__version__,
            "simplejpeg": simplejpeg.__version__,
            "python": platform.python_version(),
        },
    }


def _figures(slide: ScannedSlide, seen: list[Tile]) -> dict[str, Any]:
    counts = TileCounts.of(tile.fate for tile in seen)
    parameters = slide.parameters
    # Overlapping tiles share tissue: each adds only its step's worth of area.
    side_px = min(parameters.size_px, parameters.step_px or parameters.size_px)
    tile_mm2 = (side_px * parameters.mpp / 1000) ** 2
    return {
        "tiles": asdict(counts),
        "tissue_area_mm2": round(slide.tissue_area_mm2, 6),
        "unreadable_mm2": round(counts.unreadable * tile_mm2, 6),
    }
