"""Tiles with structure of every size, and what copying does to them."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image


def eight(image: np.ndarray) -> list[np.ndarray]:
    """An image in its eight orientations, by turning pixels."""
    return [
        np.ascontiguousarray(np.rot90(side, turns))
        for side in (image, image.transpose(1, 0, *range(2, image.ndim)))
        for turns in range(4)
    ]


def textured(seed: int, side_px: int = 96) -> np.ndarray:
    """RGB tile with structure of every size, as tissue has."""
    random = np.random.default_rng(seed)
    sizes = (3, 6, 12, 24, 48, side_px)
    layers = [
        np.asarray(
            Image.fromarray(random.uniform(-1, 1, (size, size)).astype(np.float32)).resize(
                (side_px, side_px), Image.Resampling.BICUBIC
            )
        )
        for size in sizes
    ]
    grey = 140 + 22 * sum(layers)
    return np.clip(grey[..., None] + np.array([20, -15, 10]), 0, 255).astype(np.uint8)


def grey_of(jpeg: bytes, least_px: int = 0) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=least_px, min_width=least_px)[..., 0]
