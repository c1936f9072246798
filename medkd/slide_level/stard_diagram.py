"""The STARD flow diagram of the test patients (Bossuyt et al. 2015), as SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_WIDTH = 900
_LINE, _PADDING, _GAP = 19, 11, 34
_MAIN_X, _MAIN_WIDTH = 20, 400
_SIDE_X, _SIDE_WIDTH = 470, 410
_LAST_WIDTH, _LAST_GAP = 273, 20
_LETTERS_OF_SIDE = 50


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    width: float
    lines: Sequence[str]
    fill: str = "#ffffff"

    @property
    def height(self) -> float:
        return 2 * _PADDING + _LINE * len(self.lines) - 4

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle_x(self) -> float:
        return self.x + self.width / 2

    def svg(self) -> str:
        weights = ["600"] + ["400"] * (len(self.lines) - 1)
        lines = [
            f'<text x="{self.x + _PADDING}" y="{self.y + _PADDING + 11 + _LINE * number}" '
            f'font-weight="{weight}">{escape(line)}</text>'
            for number, (line, weight) in enumerate(zip(self.lines, weights, strict=True))
        ]
        return (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="3" '
            f'fill="{self.fill}" stroke="#5b6775"/>' + "".join(lines)
        )


def stard_diagram(flow: Mapping[str, Any], *, positive: str, negative: str) -> Markup:
    """Draw the flow.

    Args:
        flow: as ``Flow.to_json`` gives it.
        positive, negative: names of the classes.
    """

    def split(group: Mapping[str, int]) -> str:
        negatives = group["patients"] - group["positives"]
        return f"{positive} {group['positives']}, {negative} {negatives}"

    def counted(patients: int) -> str:
        return f"{patients} patient" + ("" if patients == 1 else "s")

    eligible, no_result = flow["eligible"], flow["no_result"]
    excluded = eligible["patients"] - flow["scored"]
    slides = eligible["slides"]
    top = _Box(
        _MAIN_X, 10, _MAIN_WIDTH,
        (
            f"Test patients in slides.csv: {eligible['patients']} ({slides} slides)",
            f"reference standard: {split(eligible)}",
        ),
    )  # fmt: skip
    lost = _Box(_SIDE_X, top.bottom + 12, _SIDE_WIDTH, _lost_lines(flow, excluded, counted, split))
    scored = _Box(
        _MAIN_X, max(top.bottom + 2 * _GAP, lost.bottom + 12), _MAIN_WIDTH,
        (f"Scored: {counted(flow['scored'])}",),
    )  # fmt: skip
    gated = _Box(
        _SIDE_X, scored.bottom + 12, _SIDE_WIDTH,
        (
            f"No result: {counted(no_result['patients'])}",
            "too little tissue, or too few usable tiles",
            *((split(no_result),) if no_result["patients"] else ()),
        ),
    )  # fmt: skip
    passed = _Box(
        _MAIN_X, gated.bottom + 12, _MAIN_WIDTH,
        (f"Passed the quality gates: {counted(flow['scored'] - no_result['patients'])}",),
    )  # fmt: skip
    last = [
        _Box(
            _MAIN_X + number * (_LAST_WIDTH + _LAST_GAP), passed.bottom + 2 * _GAP, _LAST_WIDTH,
            (
                f"{title}: {flow[key]['patients']}",
                "by the reference standard:",
                f"{positive} {flow[key]['positives']}",
                f"{negative} {flow[key]['patients'] - flow[key]['positives']}",
            ),
            fill,
        )
        for number, (title, key, fill) in enumerate(
            (
                (f"Called {negative}", "called_negative", "#e6f0f7"),
                ("Indeterminate", "indeterminate", "#f1f3f5"),
                (f"Called {positive} suspected", "called_positive", "#fbe9df"),
            )
        )
    ]  # fmt: skip
    fork = passed.bottom + _GAP
    lines = [
        _arrow(top.middle_x, top.bottom, top.middle_x, scored.y),
        _arrow(top.middle_x, lost.y + lost.height / 2, lost.x, lost.y + lost.height / 2),
        _arrow(top.middle_x, scored.bottom, top.middle_x, passed.y),
        _arrow(top.middle_x, gated.y + gated.height / 2, gated.x, gated.y + gated.height / 2),
        f'<path d="M{passed.middle_x} {passed.bottom}V{fork}M{last[0].middle_x} {fork}'
        f'H{last[-1].middle_x}" fill="none" stroke="#5b6775"/>',
        *(_arrow(box.middle_x, fork, box.middle_x, box.y) for box in last),
    ]
    boxes = [box.svg() for box in (top, lost, scored, gated, passed, *last)]
    height = last[0].bottom + 10
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" width="100%" role="img" '
        'aria-label="STARD flow of the test patients" xmlns="http://www.w3.org/2000/svg" '
        'font-size="14" font-family="system-ui, DejaVu Sans, sans-serif" fill="#1d2733">'
        '<defs><marker id="stard-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5b6775"/></marker></defs>'
        + "".join((*lines, *boxes))
        + "</svg>"
    )


def _lost_lines(
    flow: Mapping[str, Any],
    excluded: int,
    counted: Callable[[int], str],
    split: Callable[[Mapping[str, int]], str],
) -> list[str]:
    lines = [f"No tile to score: {counted(excluded)}"]
    for reason, group in flow["without_tiles"].items():
        lines += textwrap.wrap(
            f"{reason}: {group['patients']} ({split(group)})",
            _LETTERS_OF_SIDE,
            subsequent_indent="\u00a0\u00a0",
        )
    slides = sum(flow["slide_fates"].values())
    of_lost = sum(group["slides"] for group in flow["without_tiles"].values())
    if slides > of_lost:
        # Their patients have other slides, and go on.
        others = slides - of_lost
        lines.append(f"(and {others} slide{'' if others == 1 else 's'} of patients with others)")
    return lines


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="#5b6775" '
        'marker-end="url(#stard-arrow)"/>'
    )
