"""The page of a detector's evaluation: one HTML file that loads nothing, for screen and for A4."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from medkd.pages import page_template
from medkd.slide_level.evaluation_page import estimate_html, p_value
from medkd.training.box_evaluation import in_words
from medkd.training.box_evaluation_plots import box_evaluation_drawings
from medkd.training.box_examples import FOUND_COLOUR, TRUE_COLOUR

FIGURES = {
    "ap50": "AP50",
    "ap75": "AP75",
    "ap": "AP",
    "recall_at_1_fp": "recall at 1 false positive per image",
    "sensitivity": "sensitivity per image",
    "fp_per_negative_image": "false positives per image without a box",
    "mean_iou": "mean IoU",
}
"""Figures in the order of the page, and how they are called there."""

_KINDS = {
    "miss": "Worst misses",
    "false_alarm": "Worst false alarms",
    "best": "Best",
}


def box_evaluation_page(report: Mapping[str, Any], pictures: Sequence[bytes]) -> str:
    """The page as HTML.

    Args:
        report: what ``evaluation.json`` holds.
        pictures: of its examples, in their order, JPEG.
    """
    drawings = {
        name: _data("image/svg+xml", svg.encode())
        for name, svg in box_evaluation_drawings(report).items()
    }
    shown = [
        {**example, "picture": _data("image/jpeg", picture)}
        for example, picture in zip(report["examples"], pictures, strict=True)
    ]
    return page_template(
        "medkd.training",
        "box_evaluation.html.j2",
        {"estimate": estimate_html, "p_value": p_value, "words": in_words},
    ).render(
        r=report,
        drawings=drawings,
        figures=FIGURES,
        examples=[
            (title, [one for one in shown if one["kind"] == kind]) for kind, title in _KINDS.items()
        ],
        true_colour=TRUE_COLOUR,
        found_colour=FOUND_COLOUR,
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
