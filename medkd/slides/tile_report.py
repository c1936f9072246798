"""The report of the tile stage: report.csv for programs, report.html for people."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medkd
from medkd.config import TileConfig
from medkd.files import write_text
from medkd.pages import page_template
from medkd.slides.judging import REJECTIONS
from medkd.slides.preview import COLOURS, OUTLINE
from medkd.slides.tile_slide import SlideOutcome

COLUMNS = (
    "slide_id",
    "patient_id",
    "status",
    "reason",
    "message",
    "mpp",
    "mpp_source",
    "reader",
    "reader_reason",
    "tissue_mm2",
    "candidate",
    "used",
    "unreadable",
    *REJECTIONS,
    "synthetic",
    "warnings",
    "seconds",
)
"""Of report.csv. Cells that are not known of a failed slide are empty."""


def write_report(
    folder: Path,
    outcomes: Sequence[SlideOutcome],
    parameters: TileConfig,
    *,
    elapsed_s: float | None = None,
) -> None:
    """Write report.csv and report.html into ``folder``.

    Args:
        folder: of the tile stores.
        outcomes: of every slide of the table.
        parameters: of the stage.
        elapsed_s: that the stage took; the report tells its speed.

    Raises:
        OutputError: they cannot be written.
    """
    content = io.StringIO()
    table = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(report_row(outcome) for outcome in outcomes)
    write_text(folder / "report.csv", content.getvalue())
    write_text(folder / "report.html", _html(outcomes, parameters, elapsed_s))


def report_row(outcome: SlideOutcome) -> dict[str, Any]:
    """One row of report.csv."""
    record = outcome.record
    slide, tiles = record.get("slide", {}), record.get("tiles", {})
    rejected = tiles.get("rejected", {})
    return {
        "slide_id": outcome.slide_id,
        "patient_id": outcome.patient_id,
        "status": outcome.status,
        "reason": outcome.reason,
        "message": outcome.message,
        "mpp": slide.get("mpp", ""),
        "mpp_source": slide.get("mpp_source", ""),
        "reader": slide.get("reader", ""),
        "reader_reason": slide.get("reader_reason", ""),
        "tissue_mm2": record.get("tissue_area_mm2", ""),
        "candidate": tiles.get("candidate", ""),
        "used": tiles.get("used", ""),
        "unreadable": tiles.get("unreadable", ""),
        **{reason: rejected.get(reason, "") for reason in REJECTIONS},
        "synthetic": outcome.synthetic if slide else "",
        "warnings": "; ".join(slide.get("warnings", ())),
        "seconds": outcome.seconds,
    }


def _html(outcomes: Sequence[SlideOutcome], parameters: TileConfig, elapsed_s: float | None) -> str:
    cards = [
        report_row(outcome)
        | {
            "preview": base64.b64encode(outcome.preview).decode() if outcome.preview else "",
            "warnings": outcome.record.get("slide", {}).get("warnings", []),
            "unreadable_mm2": outcome.record.get("unreadable_mm2", 0),
        }
        for outcome in outcomes
    ]
    good = [card for card in cards if card["status"] != "failed"]
    tried = [outcome for outcome in outcomes if outcome.status != "skipped"]
    made = sum(card["used"] for card in good if card["status"] == "ok")
    colours = {"tissue outline": OUTLINE, **COLOURS}
    return page_template("medkd.slides", "tile_report.html.j2").render(
        failed=[card for card in cards if card["status"] == "failed"],
        good=good,
        status=Counter(card["status"] for card in cards),
        total=len(cards),
        tiles_used=sum(card["used"] for card in good),
        slides_per_hour=3600 * len(tried) / elapsed_s if elapsed_s and tried else None,
        tiles_per_s=made / elapsed_s if elapsed_s else None,
        tissue_mm2=sum(card["tissue_mm2"] for card in good),
        synthetic=sum(outcome.synthetic for outcome in outcomes),
        rejections=REJECTIONS,
        legend={name.replace("_", " "): f"rgb{colour}" for name, colour in colours.items()},
        parameters=parameters.model_dump(mode="json", exclude={"workers"}),
        version=medkd.__version__,
    )
