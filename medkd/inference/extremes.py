"""The tiles of a slide that are most and least like the positive class, to be looked at."""

from __future__ import annotations

import heapq
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EACH = 6
"""How many tiles are kept at either end."""


@dataclass(order=True, frozen=True)
class TilePicture:
    """A tile as the students saw it, ordered by probability, then by place.

    Attributes:
        probability: the students' mean.
        order: number of the tile, so that equal probabilities leave no choice.
        pixels: uint8 H x W x 3.
    """

    probability: float
    order: int
    pixels: np.ndarray = field(compare=False, repr=False)


class Extremes:
    """Takes tiles as they come and keeps those at both ends; their order makes no difference."""

    def __init__(self) -> None:
        self._kept: list[TilePicture] = []
        self._seen = 0

    def add(self, probabilities: np.ndarray, tiles: np.ndarray) -> None:
        """Take tiles, uint8 N x H x W x 3, with the students' mean probability, (N,)."""
        pictures = [
            TilePicture(float(probability), self._seen + number, tile)
            for number, (probability, tile) in enumerate(zip(probabilities, tiles, strict=True))
        ]
        self._seen += len(pictures)
        candidates = self._kept + pictures
        if len(candidates) <= 2 * EACH:
            self._kept = candidates
            return
        low, high = heapq.nsmallest(EACH, candidates), heapq.nlargest(EACH, candidates)
        # A copy, so that a batch is not held for one of its tiles.
        self._kept = [
            TilePicture(one.probability, one.order, one.pixels.copy()) for one in (*low, *high)
        ]

    @property
    def highest(self) -> tuple[TilePicture, ...]:
        """Tiles of the highest probabilities, falling; none that is among the lowest."""
        ranked = sorted(self._kept)
        return tuple(reversed(ranked[len(ranked) // 2 :][-EACH:]))

    @property
    def lowest(self) -> tuple[TilePicture, ...]:
        """Tiles of the lowest probabilities, rising."""
        ranked = sorted(self._kept)
        return tuple(ranked[: len(ranked) // 2][:EACH])


def extremes_png(extremes: Extremes, positive: str) -> bytes:
    """Both ends as a picture, a row each; empty where there is no tile.

    Args:
        extremes: of the slide.
        positive: name of the positive class.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    rows = [
        (f"most like {positive}", extremes.highest),
        (f"least like {positive}", extremes.lowest),
    ]
    rows = [(title, pictures) for title, pictures in rows if pictures]
    if not rows:
        return b""
    figure = Figure(figsize=(1.55 * EACH, 1.85 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), EACH, squeeze=False)
    for (title, pictures), axes_of_row in zip(rows, grid, strict=True):
        for number, axes in enumerate(axes_of_row):
            axes.set_axis_off()
            if number < len(pictures):
                _draw(axes, pictures[number])
        axes_of_row[0].text(
            0, 1.2, title, transform=axes_of_row[0].transAxes, fontsize=9, va="bottom"
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, picture: TilePicture) -> None:
    axes.imshow(picture.pixels, interpolation="bicubic")
    axes.set_title(f"{picture.probability:.2f}", fontsize=9, loc="left", pad=2)
