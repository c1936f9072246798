"""How figures of an evaluation look, as PNG and as SVG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def axes_of(
    title: str, *, size_inches: tuple[float, float] = (5, 5), note_strip: float = 0.03
) -> tuple[Figure, Any]:
    """A figure with one pair of axes.

    Args:
        title: above them, to the left.
        size_inches: width and height.
        note_strip: share of the height at the bottom that is kept free for a note.
    """
    layout = ConstrainedLayoutEngine(rect=(0, note_strip, 1, 1 - note_strip))
    figure = Figure(figsize=size_inches, layout=layout)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_png(figure: Figure, note: str) -> bytes:
    """The figure with a note in its lower left corner."""
    figure.text(0.01, 0.01, note, fontsize=7, color="0.4")
    buffer = io.BytesIO()
    # No date and no version in the file: the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """The figure with its letters as outlines, so that it looks alike wherever it is shown."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "medkd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
