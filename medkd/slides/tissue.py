"""Where the tissue is, from a low-resolution image of the slide."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from medkd.slides.quality import (
    BRIGHT,
    BRIGHT_SHARE,
    black_mask,
    brightest,
    darkest,
    disc_of,
    find_pen,
    is_dark_field,
    without_small_objects,
)

SMALLEST_TISSUE_MM2 = 0.01
"""Objects smaller than this are dust: a biopsy fragment is a hundred times as large."""

_SMOOTH_UM = 10.0  # evens out JPEG blocks and the noise of glass
_CLOSE_UM = 64.0  # joins the nuclei and fibres of loose tissue; wider gaps stay holes

# Otsu's threshold on colourfulness (optical density, most minus least absorbed channel) is kept
# within these. Glass stays below the lower one, also when the whole image is glass; the palest
# stained tissue is above the upper one, also when the whole image is tissue.
_COLOUR_RANGE = (0.02, 0.04)
_LEAST_DENSITY = 0.02

# So many bright pixels tell the glass's colour as well as all do.
_GLASS_SAMPLE = 250_000

# Brightfield tissue lets some of every colour through; a fluorescent stain shows one alone.
_LEAST_CHANNEL = 8


def find_tissue(
    image: np.ndarray,
    mpp: float,
    *,
    smallest_mm2: float = SMALLEST_TISSUE_MM2,
    pen: np.ndarray | None = None,
) -> np.ndarray:
    """Find stained tissue on bright glass. Pen ink and black are not tissue; holes stay holes.

    Args:
        image: the slide at low resolution, about 8 um/px, uint8, height x width x 3, RGB.
        mpp: its micrometres per pixel.
        smallest_mm2: objects smaller than this are left out.
        pen: what :func:`medkd.slides.quality.find_pen` found on it, if that is known.

    Returns:
        bool, height x width.
    """
    if is_dark_field(image):
        return np.zeros(image.shape[:2], bool)
    density = optical_density(image)
    colour = brightest(density) - darkest(density)
    darkness = density.mean(axis=-1)
    del density
    sigma = _SMOOTH_UM / mpp / 2
    colour = ndimage.gaussian_filter(colour, sigma)
    darkness = ndimage.gaussian_filter(darkness, sigma)
    threshold = float(np.clip(threshold_otsu(colour), *_COLOUR_RANGE))
    mask = (colour > threshold) & (darkness > _LEAST_DENSITY)
    mask &= darkest(image) >= _LEAST_CHANNEL
    not_tissue = black_mask(image) | (find_pen(image, mpp) if pen is None else pen)
    mask = _closed(mask & ~not_tissue, _CLOSE_UM, mpp) & ~not_tissue
    return without_small_objects(mask, smallest_mm2, mpp)


def optical_density(image: np.ndarray) -> np.ndarray:
    """Absorption relative to the slide's own glass, float32, height x width x 3."""
    glass = np.full(3, 245, np.float32)
    bright = image[darkest(image) > BRIGHT]
    if len(bright) > BRIGHT_SHARE * image.shape[0] * image.shape[1]:
        some = bright[:: max(len(bright) // _GLASS_SAMPLE, 1)]
        typical = np.percentile(some, 90, axis=0).astype(np.float32)
        # Where there is no glass the brightest pixels are pale tissue, and coloured.
        if typical.max() - typical.min() < 12 and typical.min() > 215:
            glass = typical
    table = np.log10(glass / np.clip(np.arange(256, dtype=np.float32), 1, None)[:, None])
    density = np.empty(image.shape, np.float32)
    for channel in range(3):
        np.take(table[:, channel], image[..., channel], out=density[..., channel])
    return density


def _closed(mask: np.ndarray, diameter_um: float, mpp: float) -> np.ndarray:
    disc = disc_of(diameter_um, mpp)
    margin = disc.shape[0] // 2
    # Outside of the image counts as its edge, or closing would eat tissue that is cut off.
    padded = np.pad(mask, margin, mode="edge")
    closed = ndimage.binary_closing(padded, disc)
    return closed[margin : closed.shape[0] - margin, margin : closed.shape[1] - margin]
