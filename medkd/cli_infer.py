"""``medkd infer``: slides, folders of slides or a table of slides, called."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli_options import MapOption, MppOption
from medkd.terminal import print_table

if TYPE_CHECKING:
    from medkd.inference.infer_stage import InferSummary


def infer(
    slides: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Slides, and folders that are searched for slides, DICOM series too.",
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
    log: Annotated[
        Path | None,
        typer.Option(
            "--log-json", help="Append what happens, a JSON line each.", show_default=False
        ),
    ] = None,
) -> None:
    """Call slides with the students of a model package: result.json, reports, maps."""
    from medkd.inference.infer_stage import infer_slides
    from medkd.inference.package import load_package
    from medkd.inference.slide_files import find_slides, no_slides, slides_of_table, told_aside
    from medkd.logs import json_log
    from medkd.progress import warn

    package = load_package(model)
    if not slides and table is None:
        raise no_slides()
    listed = slides_of_table(table) if table is not None else ()
    found = find_slides(slides or ())
    if found.left_aside:
        warn(told_aside(found.left_aside))
    to_call, failed = [*found.slides, *listed], list(found.unusable)
    if to_call:
        with json_log(log) if log is not None else contextlib.nullcontext():
            summary = infer_slides(to_call, package, out, mpp=mpp, maps=maps or (), resume=resume)
        _print(summary, out, on_synthetic=package.manifest.provenance.trained_on_synthetic)
        failed = [*summary.failed, *failed]
    for message in failed:
        print(f"failed: {message}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _print(summary: InferSummary, out: Path, *, on_synthetic: bool) -> None:
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
