"""The page of an evaluation: one HTML file that loads nothing, for a screen and for A4."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from medkd.pages import page_template
from medkd.slide_level.evaluation_plots import evaluation_drawings
from medkd.slide_level.stard_diagram import stard_diagram
from medkd.slide_level.tripod import BY_THE_AUTHORS, SOURCE, ChecklistItem


def evaluation_page(report: Mapping[str, Any], items: Sequence[ChecklistItem]) -> str:
    """The page as HTML.

    Args:
        report: what ``report.json`` holds.
        items: of the TRIPOD+AI checklist.
    """
    drawings = {
        name: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"
        for name, svg in evaluation_drawings(report).items()
    }
    sections = [
        (section, list(of_section))
        for section, of_section in groupby(items, key=lambda item: item.section)
    ]
    return page_template(
        "medkd.slide_level",
        "evaluation.html.j2",
        {"estimate": estimate_html, "p_value": p_value, "percent": _percent},
    ).render(
        r=report,
        drawings=drawings,
        flow=stard_diagram(
            report["flow"],
            positive=report["classes"]["positive"],
            negative=report["classes"]["negative"],
        ),
        tripod=sections,
        by_the_authors=BY_THE_AUTHORS,
        tripod_source=SOURCE,
    )


def p_value(value: float | None) -> str:
    """A p-value with three places; an empty text where there is none."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def estimate_html(estimate: Mapping[str, Any], places: int = 3, sign: bool = False) -> Markup:
    """A figure with its interval; where either is lacking, why."""
    value, lower, upper = (estimate.get(key) for key in ("value", "lower", "upper"))
    reason = estimate.get("reason", "")
    plus = "+" if sign else ""
    parts = []
    if value is not None:
        parts.append(f"<b>{value:{plus}.{places}f}</b>")
    if lower is not None and upper is not None:
        parts.append(f'<span class="i">{lower:{plus}.{places}f} to {upper:{plus}.{places}f}</span>')
    elif lower is not None:
        parts.append(f'<span class="i">at least {lower:{plus}.{places}f}</span>')
    if reason:
        parts.append(f'<span class="why">{escape(reason)}</span>')
    return Markup(" ".join(parts))
