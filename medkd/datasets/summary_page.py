"""The summary of a dataset as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medkd
from medkd.datasets.box_drawing import class_colour
from medkd.datasets.box_summary import NO_BOX, BoxedSummary, range_words, summary_tables
from medkd.datasets.summary import DatasetSummary
from medkd.files import write_text
from medkd.pages import page_template


def write_summary_page(path: Path, summary: DatasetSummary, *, table: Path, digest: str) -> None:
    """Write the page of a dataset of slides.

    Args:
        path: of the page.
        summary: of the dataset.
        table: slides.csv, which the page names.
        digest: of tiles, labels and roles; empty where they are not there yet.

    Raises:
        OutputError: it cannot be written.
    """
    _write(
        path,
        "summary.html.j2",
        summary,
        summary.classes,
        {"table": table, "digest": digest, "digest_of": "tiles, labels and roles", "colours": {}},
    )


def write_box_summary_page(path: Path, summary: BoxedSummary, *, table: Path, digest: str) -> None:
    """Write the page of a dataset of images with boxes.

    Args:
        path: of the page.
        summary: of the dataset.
        table: boxes.parquet, which the page names.
        digest: of images, boxes and roles; empty where no training could begin with them.

    Raises:
        OutputError: it cannot be written.
    """
    kinds = (*summary.classes, *([NO_BOX] if summary.total.without_boxes else []))
    colours = {name: class_colour(number) for number, name in enumerate(summary.classes)}
    others = {
        "table": table,
        "digest": digest,
        "digest_of": "images, boxes and roles",
        "colours": colours,
        "tables": summary_tables(summary),
    }
    _write(path, "box_summary.html.j2", summary, kinds, others)


def _write(
    path: Path,
    template: str,
    summary: DatasetSummary | BoxedSummary,
    kinds: Sequence[str],
    others: Mapping[str, Any],
) -> None:
    sheet = {
        kind: [
            (picture.name, base64.b64encode(picture.jpeg).decode())
            for picture in summary.sheet
            if picture.label == kind
        ]
        for kind in kinds
    }
    page = page_template("medkd.datasets", template, {"figure": _figure, "range": range_words})
    html = page.render(summary=summary, sheet=sheet, version=medkd.__version__, **others)
    write_text(path, html)


def _figure(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
