"""``report.html``: one file that holds everything, for a screen and for A4."""

from __future__ import annotations

import base64

from markupsafe import Markup

from medkd.inference.manifest import Manifest
from medkd.inference.report_content import report_content
from medkd.inference.result import Result
from medkd.pages import page_template


def report_html(result: Result, manifest: Manifest, heatmap: bytes, tiles: bytes = b"") -> str:
    """The report of one slide.

    Args:
        result: what ``result.json`` will hold.
        manifest: of the model.
        heatmap: the PNG.
        tiles: a PNG of the most and least positive tiles; empty: there is none.
    """
    return page_template("medkd.inference", "report.html.j2").render(
        r=result,
        c=report_content(result, manifest),
        heatmap=base64.b64encode(heatmap).decode("ascii"),
        tiles=base64.b64encode(tiles).decode("ascii"),
        positive=manifest.positive,
        scale=score_scale(result, manifest.positive),
    )


def score_scale(result: Result, positive: str) -> Markup:
    """The score with its interval and the operating point on a scale from 0 to 1, as SVG."""
    left, width, axis = 14, 372, 58

    def at(value: float) -> str:
        return f"{left + width * value:.1f}"

    threshold = result.operating_point.threshold
    parts = [
        '<svg viewBox="0 0 400 104" role="img" width="100%" '
        'xmlns="http://www.w3.org/2000/svg" font-size="12" fill="#1d2733">',
        f'<rect x="{left}" y="{axis - 4}" width="{width}" height="8" rx="4" fill="#e8ecf0"/>',
        f'<line x1="{at(threshold)}" x2="{at(threshold)}" y1="{axis - 16}" y2="{axis + 16}" '
        'stroke="#a04000" stroke-width="2"/>',
        f'<text x="{at(min(max(threshold, 0.2), 0.8))}" y="{axis + 40}" text-anchor="middle" '
        f'fill="#a04000">operating point {threshold:.2f}</text>',
    ]
    if result.probability_msi is not None and result.interval is not None:
        score, (lower, upper) = result.probability_msi, result.interval
        parts += [
            f'<rect x="{at(lower)}" y="{axis - 4}" width="{width * (upper - lower):.1f}" '
            'height="8" fill="#7db0cf"/>',
            f'<circle cx="{at(score)}" cy="{axis}" r="7" fill="#0b5f8a"/>',
            f'<text x="{at(min(max(score, 0.3), 0.7))}" y="{axis - 28}" text-anchor="middle" '
            f'font-weight="600">probability of {Markup.escape(positive)} {score:.2f} '
            f"({lower:.2f} to {upper:.2f})</text>",
        ]
    parts += [
        f'<text x="{left}" y="{axis + 22}" text-anchor="middle">0</text>',
        f'<text x="{left + width}" y="{axis + 22}" text-anchor="middle">1</text>',
        "</svg>",
    ]
    return Markup("".join(parts))
