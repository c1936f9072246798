"""``medkd infer``: slides called, or boxes found in images and videos, by what the model is for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli_options import MapOption, MppOption
from medkd.errors import ConfigError
from medkd.inference.drawing import Draw
from medkd.terminal import print_table

if TYPE_CHECKING:
    from medkd.inference.detection_result import FoundInImages, LookedAt
    from medkd.inference.infer_stage import InferSummary

# A video has thousands of frames, a folder thousands of images: the files hold them all.
_MOST_ROWS = 40


def infer(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SLIDES]...",
            help="Slides, and folders that are searched for slides, DICOM series too; for a model "
            "that finds boxes: images, videos, and folders of them.",
            show_default=False,
        ),
    ] = None,
    *,
    model: Annotated[Path, typer.Option("--model", help="A model package (a folder).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    table: Annotated[
        Path | None,
        typer.Option(
            "--slides",
            help="Table of slides: slide_id, path and, where known, mpp.",
            show_default=False,
        ),
    ] = None,
    mpp: MppOption = None,
    maps: MapOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Leave slides whose result of the same model is there."),
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(
            "--every", help="Of videos: look at each n-th frame only.", show_default=False
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps", help="Of videos: look at so many frames a second.", show_default=False
        ),
    ] = None,
    draw: Annotated[
        Draw | None,
        typer.Option(
            "--draw",
            help="Which images are drawn with their boxes; by default all images, and of videos "
            "the frames with a called box.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log-json", help="Append what happens, a JSON line each.", show_default=False
        ),
    ] = None,
) -> None:
    """Call slides (result.json, reports, maps), or find boxes in images (detections.json)."""
    from medkd.inference.package_files import task_of

    of_slides = {"--slides": table, "--mpp": mpp, "--map": maps, "--resume": resume or None}
    of_boxes = {"--every": every, "--fps": fps, "--draw": draw}
    if task_of(model) == "detection":
        _refuse(of_slides, "is for slides, and this model finds boxes in images")
        failed = _find_boxes(inputs or [], model, out, log, every=every, fps=fps, draw=draw)
    else:
        _refuse(of_boxes, "is for a model that finds boxes, and this one calls slides")
        failed = _call_slides(
            inputs or [], model, out, log, table=table, mpp=mpp, maps=maps or [], resume=resume
        )
    for message in failed:
        print(f"failed: {message}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _refuse(
    options: Mapping[str, object], why: str, remedy: str = "Leave it out, or name another model."
) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(why, where=name, remedy=remedy)


def _logged(log: Path | None) -> contextlib.AbstractContextManager[None]:
    from medkd.logs import json_log

    return json_log(log) if log is not None else contextlib.nullcontext()


def _call_slides(
    slides: Sequence[Path],
    model: Path,
    out: Path,
    log: Path | None,
    *,
    table: Path | None,
    mpp: float | None,
    maps: Sequence[str],
    resume: bool,
) -> list[str]:
    from medkd.inference.infer_stage import infer_slides
    from medkd.inference.package import load_package
    from medkd.inference.slide_files import find_slides, no_slides, slides_of_table, told_aside
    from medkd.progress import warn

    package = load_package(model)
    if not slides and table is None:
        raise no_slides()
    listed = slides_of_table(table) if table is not None else ()
    found = find_slides(slides)
    if found.left_aside:
        warn(told_aside(found.left_aside))
    to_call, failed = [*found.slides, *listed], list(found.unusable)
    if to_call:
        with _logged(log):
            summary = infer_slides(to_call, package, out, mpp=mpp, maps=maps, resume=resume)
        _print_calls(summary, out, on_synthetic=package.manifest.provenance.trained_on_synthetic)
        failed = [*summary.failed, *failed]
    return failed


def _print_calls(summary: InferSummary, out: Path, *, on_synthetic: bool) -> None:
    if summary.rows:
        print_table(
            "Calls. Research use only.",
            ("slide", "call", "probability", "interval", "seconds"),
            (
                (
                    row.slide_id,
                    row.call,
                    "" if row.probability is None else f"{row.probability:.3f}",
                    "" if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval),
                    f"{row.seconds:.1f}",
                )
                for row in summary.rows
            ),
        )
        if on_synthetic:
            print("The model was trained on synthetic slides; its calls mean nothing in a clinic.")
        print(f"Reports: {out}/<slide>/report.html")
    if summary.there:
        print(f"{summary.there} slides were there already, called with this model.")


def _find_boxes(
    inputs: Sequence[Path],
    model: Path,
    out: Path,
    log: Path | None,
    *,
    every: int | None,
    fps: float | None,
    draw: Draw | None,
) -> Sequence[str]:
    from medkd.inference.detect_stage import detect_in_images
    from medkd.inference.detector_package import load_detector_package
    from medkd.inference.image_files import find_images
    from medkd.inference.video import Frames
    from medkd.progress import warn

    wanted = Frames(1 if every is None else every, fps)
    package = load_detector_package(model)
    found = find_images(inputs, out=out)
    if not any(file.is_video for file in found.files):
        _refuse(
            {"--every": every, "--fps": fps}, "is for videos, and there is none", "Leave it out."
        )
    if found.left_aside:
        warn(f"{found.left_aside} files that are neither images nor videos are left aside.")
    with _logged(log):
        summary = detect_in_images(found.files, package, out, wanted=wanted, draw=draw)
    _print_boxes(summary.result, out)
    return summary.failed


def _print_boxes(result: FoundInImages, out: Path) -> None:
    rows = [_row(file, list(seen)) for file, seen in groupby(result.images, lambda one: one.file)]
    if rows:
        print_table(
            "Boxes. Research use only.",
            ("file", "size", "frames", "with a box", "boxes", "best score"),
            rows[:_MOST_ROWS],
        )
        if len(rows) > _MOST_ROWS:
            print(f"... and {len(rows) - _MOST_ROWS} more files.")
        called = [image.called for image in result.images]
        print(
            f"Boxes that score {result.threshold:.3f} or more: {sum(called)}, in "
            f"{sum(count > 0 for count in called)} of {len(called)} images."
        )
    drawn = f"; pictures: {out}/drawn" if any(image.drawn for image in result.images) else ""
    print(f"Boxes: {out}/detections.json, coco.json{drawn}")


def _row(file: str, seen: Sequence[LookedAt]) -> tuple[object, ...]:
    """A file's row: an image, or all frames of a video that were looked at."""
    first, called = seen[0], [image.called for image in seen]
    scores = [box.score for image in seen for box in image.boxes]
    return (
        file,
        f"{first.width} x {first.height}",
        "" if first.frame is None else len(seen),
        sum(count > 0 for count in called),
        sum(called),
        f"{max(scores):.3f}" if scores else "",
    )
