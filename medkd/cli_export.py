"""``medkd export``: a model in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medkd.export.kinds import ExportKind
from medkd.terminal import print_table


def export(
    model: Annotated[
        Path, typer.Argument(help="The model package (a folder).", show_default=False)
    ],
    *,
    to: Annotated[ExportKind, typer.Option("--to", help="What for.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the export; must not exist.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Students in 8-bit integers; its cost is measured.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            help="With --int8: a tiles folder of 'medkd tile', or a slide.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a model for MLflow, MONAI, ONNX, TorchScript or OpenVINO, or as int8 package.

    A model that finds boxes is exported to ONNX alone. What comes out was held against the model on
    drawn tiles. Nothing of the teacher is in it.
    """
    from medkd.errors import ConfigError
    from medkd.export.stage import run_export_stage

    if int8 != (calibrate is not None):
        raise ConfigError(
            "--int8 and --calibrate go together",
            where="medkd export",
            remedy="Ranges of 8-bit integers are set on tiles: give both, or neither.",
        )
    done = run_export_stage(model, to, out, calibrate=calibrate)
    print_table(
        to.value,
        ("file", "kB"),
        ((name, f"{size / 1000:,.1f}") for name, size in done.files),
    )
    for line in done.lines:
        print(line)
    print(f"Export: {done.folder}")
