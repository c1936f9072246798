"""The probabilities over the slide in grey, as a pyramid that slide viewers open."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from PIL import Image

from medkd.inference.engine import SlideInference
from medkd.inference.heatmap import heatmap_values
from medkd.inference.maps.grid import colours

_TILE_PX = 256

# As in heatmap.png.
_OPACITY = 0.6


def tiff_map(inference: SlideInference, description: str) -> bytes:
    """A tiled, pyramidal RGB TIFF of the whole level 0, with its resolution.

    It has the thumbnail's pixels: 8 um, or more on slides of more than 8 cm², which bounds memory.
    Pixel (0, 0) begins where level 0 does, so the resolutions alone lay it over the slide.
    Compression is lossless, so that colours at the edges of tiles stay what they are.

    Args:
        inference: of the slide.
        description: written into the file; ASCII.
    """
    image = Image.fromarray(_overlay(inference))
    mpp = inference.thumbnail_mpp
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        level = 0
        while True:
            per_cm = 1e4 / mpp / 2**level
            tiff.write(
                np.asarray(image),
                photometric="rgb",
                tile=(_TILE_PX, _TILE_PX),
                compression="zlib",
                predictor=True,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                # Slide readers tell the levels of a pyramid from other pages by it.
                subfiletype=1 if level else 0,
                description=description.encode("ascii", "replace").decode() if not level else None,
                metadata=None,
                software=False,
            )
            if max(image.size) <= _TILE_PX:
                return buffer.getvalue()
            image, level = image.reduce(2), level + 1


def _overlay(inference: SlideInference) -> np.ndarray:
    """uint8, height x width x 3."""
    shape = inference.thumbnail.shape[:2]
    scale = inference.properties.mpp / inference.thumbnail_mpp
    values = heatmap_values(inference.tiles, inference.tile_extent_px, scale, shape)
    overlay = np.empty((*shape, 3), np.uint8)
    # Row by row of blocks: a whole picture in floats would be many times the thumbnail.
    for top in range(0, shape[0], _TILE_PX):
        rows = slice(top, top + _TILE_PX)
        grey = inference.thumbnail[rows].mean(axis=2, keepdims=True)
        blended = _OPACITY * colours(values[rows]) + (1 - _OPACITY) * grey
        here = np.where(np.isnan(values[rows])[..., np.newaxis], grey, blended)
        overlay[rows] = np.rint(here)
    return overlay
