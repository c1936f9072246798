"""The summary of a dataset as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
from pathlib import Path

import medkd
from medkd.datasets.summary import DatasetSummary
from medkd.files import write_text
from medkd.pages import page_template


def write_summary_page(path: Path, summary: DatasetSummary, *, table: Path, digest: str) -> None:
    """Write the page.

    Args:
        path: of the page.
        summary: of the dataset.
        table: slides.csv, which the page names.
        digest: of tiles, labels and roles; empty where they are not there yet.

    Raises:
        OutputError: it cannot be written.
    """
    sheet = {
        name: [
            (tile.slide_id, base64.b64encode(tile.jpeg).decode())
            for tile in summary.sheet
            if tile.label == name
        ]
        for name in summary.classes
    }
    html = page_template("medkd.datasets", "summary.html.j2").render(
        summary=summary, sheet=sheet, table=table, digest=digest, version=medkd.__version__
    )
    write_text(path, html)
