"""What ``medkd import`` tells at its end: what was found, where it lies, what was left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medkd.terminal import print_table

if TYPE_CHECKING:
    from medkd.importers.box_table import BoxSummary
    from medkd.importers.image_array import ArraySummary
    from medkd.importers.problems import Problem
    from medkd.importers.tile_set import TileSetSummary

# More lines than fit on a screen tell no more; all of them are in a file.
_PROBLEMS_SHOWN = 20


def finish(problems: Sequence[Problem], report: Path | None = None) -> None:
    """Print what was left out, and end with status 1 where anything was."""
    for problem in problems[:_PROBLEMS_SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    rest = len(problems) - _PROBLEMS_SHOWN
    if rest > 0:
        print(f"left out: {rest:,} more." + (f" All: {report}" if report else ""), file=sys.stderr)
    if problems:
        raise typer.Exit(1)


def tell_tile_set(summary: TileSetSummary, out: Path) -> None:
    """Print roles, labels, tables and configuration of a tile set; then :func:`finish`."""
    from medkd.importers.tile_set import PROBLEMS_NAME

    with_roles = any(role for role, _ in summary.counts)
    print_table(
        f"Tiles of {summary.size_px} px",
        (*(("role",) if with_roles else ()), "label", "patients", "slides", "tiles"),
        (
            (*((role,) if with_roles else ()), label, *(f"{count:,}" for count in counts))
            for (role, label), counts in summary.counts.items()
        ),
    )
    print(f"Tables: {out / 'slides.csv'} and {out / 'tiles' / 'index.parquet'}")
    if with_roles:
        print(f"Split: {out / 'splits.parquet'}, as published; go on with 'medkd train'.")
    kept = " (it was there, and is left as it was)" if summary.config_kept else ""
    print(f"Configuration: {summary.config}{kept}")
    finish(summary.problems, out / "tiles" / PROBLEMS_NAME)


def tell_boxes(summary: BoxSummary, out: Path) -> None:
    """Print labels and counts of a table of boxes; then :func:`finish`."""
    from medkd.importers.box_table import PROBLEMS_NAME, TABLE_NAME

    print_table(
        "Boxes", ("label", "boxes"), ((name, f"{n:,}") for name, n in summary.boxes.items())
    )
    print(f"{summary.images:,} images, {summary.without_boxes:,} of them without a box.")
    for word, count in (("Patients", summary.patients), ("Sequences", summary.sequences)):
        print(f"{word}: {'not known' if count is None else f'{count:,}'}.")
    print(f"Table: {out / TABLE_NAME}")
    finish(summary.problems, out / PROBLEMS_NAME)


def tell_array(summary: ArraySummary, out: Path) -> None:
    """Print roles and sizes of an array of images; then :func:`finish`."""
    from medkd.importers.image_array import IMAGES_NAME, TABLE_NAME

    total = {role: sum(counts.values()) for role, counts in summary.counts.items()}
    print_table(
        f"Images of {summary.width_px} x {summary.height_px} px",
        ("role", "images", "classes", "images of the rarest class", "of the most frequent"),
        (
            (
                role,
                f"{total[role]:,}",
                len(counts),
                f"{min(counts.values()):,}",
                f"{max(counts.values()):,}",
            )
            for role, counts in summary.counts.items()
        ),
    )
    print(f"Images: {out / IMAGES_NAME}; label and role of each: {out / TABLE_NAME}")
    finish(summary.problems)
