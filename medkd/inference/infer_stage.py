"""The infer stage: a folder with result.json, the report and heatmap.png for each slide."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from medkd import __version__
from medkd.errors import MedkdError, SlideError
from medkd.files import atomic_path, make_folder, remove_stale_temporaries
from medkd.inference.earlier_result import result_of
from medkd.inference.engine import SlideInference, Students, infer_slide
from medkd.inference.extremes import extremes_png
from medkd.inference.heatmap import heatmap_png
from medkd.inference.manifest import Manifest
from medkd.inference.maps.write import MAP_FILES, check_map_kinds, map_files
from medkd.inference.package import ModelPackage
from medkd.inference.report import report_html
from medkd.inference.report_pdf import report_pdf
from medkd.inference.result import (
    Gate,
    Model,
    Mpp,
    NotChecked,
    Quality,
    Reading,
    Result,
    Synthetic,
    Tiles,
)
from medkd.inference.slide_files import SlideFile, check_mpp, slide_id_of
from medkd.logs import log_event
from medkd.progress import progress, warn
from medkd.slide_level.calibration import least_score
from medkd.slide_level.call import out_of_distribution
from medkd.slide_level.out_of_distribution import BEFORE, nothing_checked
from medkd.slide_level.pooling import MEAN_PROBABILITY
from medkd.slides.openslide_reader import fingerprint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferRow:
    """One slide for the table in the terminal."""

    slide_id: str
    call: str
    probability: float | None
    interval: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True)
class InferSummary:
    """Slides that were called, a line for each that failed, and how many were there already."""

    rows: tuple[InferRow, ...]
    failed: tuple[str, ...]
    there: int = 0


def _by_id(slides: Sequence[Path | SlideFile]) -> dict[str, SlideFile]:
    ids: dict[str, SlideFile] = {}
    for named in slides:
        slide = SlideFile(slide_id_of(named), named) if isinstance(named, Path) else named
        first = ids.setdefault(slide.slide_id, slide)
        if first is slide:
            continue
        if first.path.resolve() == slide.path.resolve():
            warn(f"{slide.path} is named more than once; it is called once.")
            continue
        error = SlideError(
            "duplicate_id",
            f"would be written to the same folder as {first.path}",
            where=slide.path,
            remedy="Rename one of the two, give both an id in a table (--slides), or each an "
            "output folder of its own.",
        )
        error.exit_status = 2
        raise error
    return ids


def infer_slides(
    slides: Sequence[Path | SlideFile],
    package: ModelPackage,
    out: Path,
    *,
    mpp: float | None = None,
    maps: Sequence[str] = (),
    students: Students | None = None,
    resume: bool = False,
) -> InferSummary:
    """Call every slide; one that cannot be used costs one line.

    Args:
        slides: what is to be called; a path is named for its file.
        package: the model.
        out: gets a folder for each slide. ``result.json`` is written last: where it is, the
            others are whole.
        mpp: resolution of level 0, um/px, over what the slides and the table say.
        maps: kinds of maps beside the report, see docs/maps.md.
        students: of the package, where they are loaded already.
        resume: leave slides whose result is there, of the same file, model and resolution, and
            whose maps are.

    Raises:
        ConfigError: there is no such kind of map, or its extra is not installed.
        OutputError: ``out`` cannot be written.
        SlideError: two slides have one id, or ``mpp`` is not a length.
    """
    check_mpp(mpp)
    check_map_kinds(maps)
    ids = _by_id(slides)
    make_folder(out)
    students = students or Students(package)
    rows: list[InferRow] = []
    failed: list[str] = []
    there = 0
    with progress("inferring", 100 * len(ids)) as advance:
        for number, slide in enumerate(ids.values(), start=1):
            shown = 100 * (number - 1)

            def on_tile(
                done: int, total: int, number: int = number, name: str = slide.slide_id
            ) -> None:
                nonlocal shown
                now = 100 * (number - 1) + 95 * done // max(total, 1)
                if now > shown:
                    advance(now - shown, note=name)
                    shown = now

            if resume and _is_there(slide, package, out, mpp, maps):
                there += 1
                log_event(_log, "slide_there_already", slide_id=slide.slide_id)
            else:
                folder = out / slide.slide_id
                try:
                    row = _infer_one(slide, package, students, folder, mpp, maps, on_tile)
                except Exception as error:
                    failed.append(_failure(slide, error))
                    log_event(_log, "slide_failed", slide_id=slide.slide_id, reason=failed[-1])
                else:
                    rows.append(row)
                    log_event(_log, "slide_called", **asdict(row))
            advance(100 * number - shown, note=slide.slide_id)
    return InferSummary(tuple(rows), tuple(failed), there)


def _is_there(
    slide: SlideFile, package: ModelPackage, out: Path, mpp: float | None, maps: Sequence[str]
) -> bool:
    try:
        mark = fingerprint(slide.path)
    except OSError:  # told when it is read
        return False
    told = slide.mpp if mpp is None else mpp
    folder, sha256 = out / slide.slide_id, package.sha256
    # The first of a kind is always there; of one student there is no disagreement.
    wanted = [names[0] for kind, names in MAP_FILES.items() if kind in maps]
    if not all((folder / name).exists() for name in wanted):
        return False
    return result_of(folder, fingerprint=mark, model_sha256=sha256, mpp=told) is not None


def _failure(slide: SlideFile, error: Exception) -> str:
    """Why a slide was not called; an error that is not the slide's is raised again."""
    if isinstance(error, SlideError):
        return str(error)
    if isinstance(error, MedkdError):
        raise error
    if isinstance(error, MemoryError):
        return (
            f"{slide.path}: takes more memory than this process may have. Check the size that the "
            "slide says it has; if it is true, use a machine with more memory."
        )
    # One slide that no one foresaw must not stop the others.
    _log.debug("inferring %s", slide.path, exc_info=error)
    message = f"{type(error).__name__}: {error}".replace("\n", " ")
    return f"{slide.path}: {message}. This is a fault of medkd; please report it."


def _infer_one(
    slide: SlideFile,
    package: ModelPackage,
    students: Students,
    folder: Path,
    mpp: float | None,
    maps: Sequence[str],
    on_tile: Callable[[int, int], None],
) -> InferRow:
    began = time.perf_counter()
    inference = infer_slide(
        slide.path,
        package,
        students,
        slide_id=slide.slide_id,
        mpp=mpp,
        table_mpp=slide.mpp,
        on_tile=on_tile,
    )
    drawing = time.perf_counter()
    manifest = package.manifest
    point = manifest.operating_point
    assert point is not None  # load_package refuses a package without one
    # Tiles are not calibrated, and what another pooling scores is no mean of them.
    is_mean = manifest.slide_head.pooling == MEAN_PROBABILITY
    heatmap = heatmap_png(
        inference,
        least_score(manifest.calibration, point.threshold) if is_mean else None,
        manifest.positive,
        synthetic_model=manifest.provenance.trained_on_synthetic,
    )
    tiles = extremes_png(inference.extremes, manifest.positive)
    now = time.perf_counter()
    timing = {**inference.timing_s, "report": now - drawing, "total": now - began}
    result = build_result(inference, package, timing)
    text = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    _write(
        folder,
        {
            "result.json": f"{text}\n".encode(),
            "report.html": report_html(result, manifest, heatmap, tiles).encode(),
            "report.pdf": report_pdf(result, manifest, heatmap, tiles),
            "heatmap.png": heatmap,
            **_maps(inference, result, package, maps),
        },
    )
    return InferRow(
        slide.slide_id, result.call, result.probability_msi, result.interval, timing["total"]
    )


def _maps(
    inference: SlideInference, result: Result, package: ModelPackage, kinds: Sequence[str]
) -> dict[str, bytes]:
    """Maps by file name; one that this slide cannot have costs a line, not its result."""
    files: dict[str, bytes] = {}
    for kind in kinds:
        try:
            files |= map_files(inference, result, [kind], package=package)
        except SlideError as error:
            warn(f"{error} There is no {kind} map of it.")
    return files


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """All or none: an earlier result stays until the new one is whole on the disk.

    Args:
        folder: of the slide.
        files: content by name, ``result.json`` first.
    """
    make_folder(folder)
    remove_stale_temporaries(folder)
    with ExitStack() as written:
        for name, content in files.items():
            written.enter_context(atomic_path(folder / name)).write_bytes(content)
        # They move into place from the last to the first; killed in between, none is stale.
        (folder / "result.json").unlink(missing_ok=True)
        # A map of an earlier model beside the new result would be taken for the new one's.
        for name in {name for names in MAP_FILES.values() for name in names}.difference(files):
            (folder / name).unlink(missing_ok=True)


def build_result(
    inference: SlideInference, package: ModelPackage, timing_s: dict[str, float]
) -> Result:
    """What ``result.json`` holds. The slide's path and its other metadata stay out of it."""
    manifest = package.manifest
    point = manifest.operating_point
    assert point is not None  # load_package refuses a package without one
    call, score = inference.call, inference.score
    called = score if call.call != "no result" else None
    return Result(
        slide_id=inference.properties.slide_id,
        call=call.call,
        reasons=call.reasons,
        score=None if called is None else inference.raw_score,
        calibration=manifest.calibration.kind,
        probability_msi=None if called is None else called.score,
        interval=None if called is None else (called.lower, called.upper),
        students={} if called is None else called.students,
        disagreement=None if called is None else called.disagreement,
        mutual_information=None if called is None else called.mutual_information,
        operating_point=point,
        qc=Quality(
            gates=tuple(
                Gate(name=g.name, value=float(g.value), limit=float(g.limit), passed=g.passed)
                for g in call.gates
            ),
            not_checked=_not_checked(manifest),
            warnings=inference.warnings,
        ),
        tiles=Tiles(**asdict(inference.counts)),
        tissue_area_mm2=round(inference.tissue_area_mm2, 4),
        mpp=Mpp(value=inference.properties.mpp, source=inference.properties.mpp_source),
        reading=Reading(
            reader=inference.properties.reader,
            reason=inference.properties.reader_reason,
            icc=inference.properties.icc,
        ),
        slide_fingerprint=inference.properties.fingerprint,
        model=Model(name=manifest.name, version=manifest.version, sha256=package.sha256),
        software={"medkd": __version__, "onnxruntime": version("onnxruntime")},
        timing_s={name: round(seconds, 3) for name, seconds in timing_s.items()},
        synthetic=Synthetic(
            slide=inference.properties.synthetic,
            model=manifest.provenance.trained_on_synthetic,
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _not_checked(manifest: Manifest) -> tuple[NotChecked, ...]:
    compared = manifest.out_of_distribution or nothing_checked(BEFORE)
    return tuple(
        NotChecked(name=out_of_distribution(one.what), reason=one.reason)
        for one in compared.not_checked
    )


def infer_for_table(
    path: Path, package: ModelPackage, students: Students, mpp: float | None
) -> tuple[Result | None, str]:
    """One slide without files: its result, or the reason why there is none."""
    try:
        check_mpp(mpp)
        inference = infer_slide(path, package, students, slide_id=slide_id_of(path), mpp=mpp)
    except MedkdError as error:
        return None, str(error)
    return build_result(inference, package, inference.timing_s), ""
