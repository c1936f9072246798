"""An image with the boxes that were called, as PNG or JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medkd.datasets.box_drawing import class_colour
from medkd.inference.detection_result import FoundBox

_DARK, _LIGHT = "#111111", "#ffffff"
_JPEG_QUALITY = 90


def drawn_boxes(
    pixels: np.ndarray,
    boxes: Sequence[FoundBox],
    classes: Sequence[str],
    *,
    note: str,
    ending: str,
) -> bytes:
    """Draw the called boxes, each with its class and score, and a note below the image.

    Args:
        pixels: RGB, uint8 height x width x 3; they stay where they are, and what is written is
            higher by the note, and wider where a word of it is longer than the image.
        boxes: of the image, in its pixels.
        classes: each has a colour by its place.
        note: such as the model's name.
        ending: ``.jpg``, ``.jpeg`` or ``.png``.
    """
    height, width = pixels.shape[:2]
    longer = max(height, width)
    letters = _font(max(12, round(longer / 42)))
    small = _font(max(11, round(longer / 60)))
    line = max(2, round(longer / 280))
    margin = max(3, line)
    lines = _lines(note, small, width - 2 * margin)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), lines, small)
    strip = round(bottom - top) + 2 * margin
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    # The best last: nothing covers it.
    for found in sorted((box for box in boxes if box.called), key=lambda box: box.score):
        colour = class_colour(classes.index(found.class_name))
        _outline(draw, found.box, colour, line, (width, height))
        _label(draw, found, colour, letters, margin, (width, height))
    canvas = Image.new("RGB", (max(width, round(right - left) + 2 * margin), height + strip), _DARK)
    canvas.paste(picture)
    place = margin - left, height + margin - top
    ImageDraw.Draw(canvas).text(place, lines, _LIGHT, font=small)
    buffer = io.BytesIO()
    if ending.lower() == ".png":
        canvas.save(buffer, "PNG", compress_level=3)
    else:
        canvas.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _outline(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    colour: str,
    line: int,
    size: tuple[int, int],
) -> None:
    """The box with a dark rim, so that it is seen on light and on dark."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    # The right and lower edge are outside the box, Pillow's inside.
    x2, y2 = max(x1, min(x2, size[0]) - 1), max(y1, min(y2, size[1]) - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_DARK, width=line + 2)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _label(
    draw: ImageDraw.ImageDraw,
    found: FoundBox,
    colour: str,
    letters: ImageFont.FreeTypeFont,
    margin: int,
    size: tuple[int, int],
) -> None:
    """Class and score above the box, or inside it where there is no room above."""
    text = f"{found.class_name} {found.score:.2f}"
    left, top, right, bottom = letters.getbbox(text)
    wide, high = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
    x = max(0, min(round(found.box[0]), size[0] - wide))
    above = round(found.box[1]) - high
    y = above if above >= 0 else max(0, min(round(found.box[1]), size[1] - high))
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour, outline=_DARK)
    draw.text((x + margin - left, y + margin - top), text, _DARK, font=letters)


def _lines(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """The text with its words on as many lines as ``width`` pixels take."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and letters.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


@lru_cache(maxsize=16)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl

    # It brings a font that has most of the world's letters, wherever medkd runs.
    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size_px)
