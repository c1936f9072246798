"""Options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medkd.config import Config
    from medkd.datasets.tables import SlideRow

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The experiment's file; medkd.yaml in this folder if it is there."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a key: --set train.epochs=5. May be repeated."),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Also write geojson, nifti, tiff or dicom; may be repeated.",
        show_default=False,
    ),
]
MppOption = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        help="Resolution of level 0, um/px, where slides have none.",
        show_default=False,
    ),
]


def load_settings(path: Path | None, assignments: list[str] | None) -> Config:
    """The configuration that a command was given, or that of this folder, or the defaults."""
    from medkd.config import load_config

    if path is None and Path("medkd.yaml").exists():
        path = Path("medkd.yaml")
    return load_config(path, tuple(assignments or ()))


def refuse_boxes(config: Config, command: str) -> None:
    """End a command that is of slides where the configuration is of boxes in images.

    Raises:
        ConfigError: it is.
    """
    if config.task == "detection":
        from medkd.errors import ConfigError

        raise ConfigError(
            f"'medkd {command}' is of slides, and task: detection finds boxes in images",
            where="task",
            remedy="Its stages are import, split, train, evaluate and infer; docs/detection.md.",
        )


def load_rows(config: Config) -> tuple[SlideRow, ...]:
    """The rows of its slides.csv; a detection has none."""
    if config.task == "detection":
        return ()
    from medkd.datasets.tables import read_slides

    return read_slides(config.data.slides, config.data.classes)
