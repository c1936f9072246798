"""A small picture of a slide: its tissue's outline and the fate of every tile that matters."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from medkd.slides.judging import (
    ANNOTATION,
    BACKGROUND,
    BLACK,
    FOLD,
    OUT_OF_FOCUS,
    PEN,
    UNREADABLE,
    USED,
    WHITE,
)
from medkd.slides.tiling import ScannedSlide, Tile

COLOURS = {
    USED: (0, 114, 178),
    UNREADABLE: (213, 0, 0),
    OUT_OF_FOCUS: (204, 121, 167),
    PEN: (230, 159, 0),
    BLACK: (90, 90, 90),
    FOLD: (240, 228, 66),
    WHITE: (86, 180, 233),
    ANNOTATION: (140, 86, 75),
}
"""RGB of each fate that is drawn, from a palette that the colour-blind can tell apart."""
OUTLINE = (0, 158, 115)
"""RGB of the tissue's outline."""

_LONG_SIDE_PX = 420
_JPEG_QUALITY = 80


def draw_preview(slide: ScannedSlide, tiles: Sequence[Tile]) -> bytes:
    """Draw ``tiles`` over the thumbnail of ``slide``; returns a JPEG, long side 420 px."""
    height, width = slide.tissue_mask.shape
    zoom = _LONG_SIDE_PX / max(height, width)
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    image = Image.fromarray(slide.thumbnail).resize(size, Image.Resampling.HAMMING)
    per_px = slide.properties.mpp / slide.thumbnail_mpp * zoom
    image = Image.alpha_composite(
        image.convert("RGBA"), _tile_layer(tiles, size, slide.tile_extent_px, per_px)
    ).convert("RGB")
    mask = Image.fromarray(slide.tissue_mask).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(mask)
    pixels = np.array(image)
    pixels[inside & ~ndimage.binary_erosion(inside, border_value=1)] = OUTLINE
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_JPEG_QUALITY)
    return content.getvalue()


def _tile_layer(
    tiles: Sequence[Tile], size: tuple[int, int], extent_px: float, per_px: float
) -> Image.Image:
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    for tile in tiles:
        if tile.fate == BACKGROUND:
            continue
        left, top = tile.x * per_px, tile.y * per_px
        right, bottom = left + extent_px * per_px, top + extent_px * per_px
        colour = COLOURS[tile.fate]
        # Used tiles stay see-through: they are what one wants to look at.
        fill = (*colour, 30 if tile.fate == USED else 130)
        draw.rectangle((left, top, right, bottom), fill=fill, outline=(*colour, 150))
    return layer
