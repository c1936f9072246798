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
) -> None:
    """Export a model for MLflow, MONAI, ONNX, TorchScript or OpenVINO.

    Each export is held against the model on drawn tiles before it is there. Nothing of the
    teacher is in it.
    """
    from medkd.export.stage import run_export_stage

    done = run_export_stage(model, to, out)
    print_table(
        f"{model} as {to.value}",
        ("file", "kB"),
        ((name, f"{size / 1000:,.1f}") for name, size in done.files),
    )
    for line in done.lines:
        print(line)
    print(f"Export: {done.folder}")
