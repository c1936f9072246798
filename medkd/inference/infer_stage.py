"""The infer stage: a folder with result.json, the report and heatmap.png for each slide."""

from __future__ import annotations

import json
import logging
import math
import re
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
from medkd.inference.engine import SlideInference, Students, infer_slide
from medkd.inference.heatmap import heatmap_png
from medkd.inference.package import ModelPackage
from medkd.inference.report import report_html
from medkd.inference.report_pdf import report_pdf
from medkd.inference.result import Gate, Model, Mpp, Quality, Reading, Result, Synthetic, Tiles
from medkd.progress import progress, warn

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
    """Slides that were called, and a line for each that failed."""

    rows: tuple[InferRow, ...]
    failed: tuple[str, ...]


def slide_id_of(path: Path) -> str:
    """The file's name without its ending, with nothing in it that could not name a folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip(".") or "slide"


def _check_mpp(mpp: float | None) -> None:
    if mpp is None or 0 < mpp < math.inf:
        return
    error = SlideError(
        "wrong_mpp",
        "the resolution must be a number above 0, micrometres per pixel",
        where=f"--mpp {mpp:g}",
        remedy="Give the slide's own, for example 0.25 for a scan at 40x.",
    )
    error.exit_status = 2
    raise error


def _by_id(paths: Sequence[Path]) -> dict[str, Path]:
    ids: dict[str, Path] = {}
    for path in paths:
        slide_id = slide_id_of(path)
        if slide_id not in ids:
            ids[slide_id] = path
        elif ids[slide_id].resolve() == path.resolve():
            warn(f"{path} is named more than once; it is called once.")
        else:
            error = SlideError(
                "duplicate_id",
                f"would be written to the same folder as {ids[slide_id]}",
                where=path,
                remedy="Rename one of the two, or give each an output folder of its own.",
            )
            error.exit_status = 2
            raise error
    return ids


def infer_slides(
    paths: Sequence[Path], package: ModelPackage, out: Path, *, mpp: float | None = None
) -> InferSummary:
    """Call every slide; one that cannot be used costs one line.

    Args:
        paths: the slides.
        package: the model.
        out: gets a folder for each slide. ``result.json`` is written last: where it is, the
            others are whole.
        mpp: resolution of level 0, um/px, over what the slides say.

    Raises:
        OutputError: ``out`` cannot be written.
        SlideError: two slides have one id, or ``mpp`` is not a length.
    """
    _check_mpp(mpp)
    ids = _by_id(paths)
    make_folder(out)
    students = Students(package)
    rows: list[InferRow] = []
    failed: list[str] = []
    with progress("inferring", 100 * len(ids)) as advance:
        for number, (slide_id, path) in enumerate(ids.items(), start=1):
            shown = 100 * (number - 1)

            def on_tile(done: int, total: int, number: int = number, name: str = slide_id) -> None:
                nonlocal shown
                now = 100 * (number - 1) + 95 * done // max(total, 1)
                if now > shown:
                    advance(now - shown, note=name)
                    shown = now

            try:
                rows.append(
                    _infer_one(path, slide_id, package, students, out / slide_id, mpp, on_tile)
                )
            except SlideError as error:
                failed.append(str(error))
            except MedkdError:
                raise
            except Exception as error:
                # One slide that no one foresaw must not stop the others.
                _log.debug("inferring %s", path, exc_info=True)
                message = f"{type(error).__name__}: {error}".replace("\n", " ")
                failed.append(f"{path}: {message}. This is a fault of medkd; please report it.")
            advance(100 * number - shown, note=slide_id)
    return InferSummary(tuple(rows), tuple(failed))


def _infer_one(
    path: Path,
    slide_id: str,
    package: ModelPackage,
    students: Students,
    folder: Path,
    mpp: float | None,
    on_tile: Callable[[int, int], None],
) -> InferRow:
    began = time.perf_counter()
    inference = infer_slide(path, package, students, slide_id=slide_id, mpp=mpp, on_tile=on_tile)
    drawing = time.perf_counter()
    manifest = package.manifest
    point = manifest.operating_point
    assert point is not None  # load_package refuses a package without one
    heatmap = heatmap_png(
        inference,
        point.threshold,
        manifest.positive,
        synthetic_model=manifest.provenance.trained_on_synthetic,
    )
    now = time.perf_counter()
    timing = {**inference.timing_s, "report": now - drawing, "total": now - began}
    result = build_result(inference, package, timing)
    text = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    _write(
        folder,
        {
            "result.json": f"{text}\n".encode(),
            "report.html": report_html(result, manifest, heatmap).encode(),
            "report.pdf": report_pdf(result, manifest, heatmap),
            "heatmap.png": heatmap,
        },
    )
    return InferRow(slide_id, result.call, result.probability_msi, result.interval, timing["total"])


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


def infer_for_table(
    path: Path, package: ModelPackage, students: Students, mpp: float | None
) -> tuple[Result | None, str]:
    """One slide without files: its result, or the reason why there is none."""
    try:
        _check_mpp(mpp)
        inference = infer_slide(path, package, students, slide_id=slide_id_of(path), mpp=mpp)
    except MedkdError as error:
        return None, str(error)
    return build_result(inference, package, inference.timing_s), ""
