"""Boxes drawn into images, with a rim that stands out on light and on dark."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

BOX_COLOURS = ("#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#E69F00")
"""Of classes, by number: those of Okabe and Ito's colours that stand out on mucosa and tissue."""

_RIM_COLOUR = "#202020"


def class_colour(number: int) -> str:
    """The colour of a class; they begin anew after the fifth."""
    return BOX_COLOURS[number % len(BOX_COLOURS)]


def draw_boxes(
    pixels: np.ndarray, boxes: Iterable[np.ndarray], classes: Iterable[int], *, line_px: int
) -> np.ndarray:
    """A copy of an image with its boxes, each in the colour of its class.

    Args:
        pixels: RGB, uint8 height x width x 3.
        boxes: x1, y1, x2, y2, pixels.
        classes: number of each box's class.
        line_px: width of the lines, without their rim of 1 px to either side.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for box, number in zip(boxes, classes, strict=True):
        draw_box(draw, box, class_colour(number), picture.size, line_px=line_px)
    return np.asarray(picture)


def draw_box(
    draw: ImageDraw.ImageDraw,
    box: np.ndarray,
    colour: str,
    size_px: tuple[int, int],
    *,
    line_px: int = 3,
    dash_px: int = 0,
) -> None:
    """Draw a box, x1, y1, x2, y2, into an image of so many pixels, width before height."""
    # A line at the image's edge must not be cut in half.
    half = (line_px + 2) // 2
    x1, y1, x2, y2 = (
        min(max(float(edge), float(half)), side - 1.0 - half)
        for edge, side in zip(box, size_px * 2, strict=True)
    )
    for ends in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x2, y2), (x1, y2)),
        ((x1, y2), (x1, y1)),
    ):
        draw_line(draw, *ends, colour, line_px=line_px, dash_px=dash_px)


def draw_line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    *,
    line_px: int = 3,
    dash_px: int = 0,
) -> None:
    """A line with a dark rim; in dashes of ``dash_px`` where that is above 0."""
    begin, way = np.array(start), np.array(end) - np.array(start)
    length = float(np.hypot(*way))
    pieces = [(0.0, length)] if not dash_px else [
        (at, min(at + dash_px, length)) for at in np.arange(0, length, 1.7 * dash_px).tolist()
    ]  # fmt: skip
    for width, fill in ((line_px + 2, _RIM_COLOUR), (line_px, colour)):
        for first, last in pieces:
            ends = [tuple(begin + way * at / max(length, 1)) for at in (first, last)]
            draw.line([*ends[0], *ends[1]], fill=fill, width=width)
