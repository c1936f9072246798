"""The summary of a dataset as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

import medkd
from medkd.datasets.summary import DatasetSummary
from medkd.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet = {
        name: [
            (tile.slide_id, base64.b64encode(tile.jpeg).decode())
            for tile in summary.sheet
            if tile.label == name
        ]
        for name in summary.classes
    }
    html = environment.get_template("summary.html.j2").render(
        summary=summary, sheet=sheet, table=table, digest=digest, version=medkd.__version__
    )
    write_text(path, html)
