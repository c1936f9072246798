"""Tissue folds: where the section lies double, and no cell can be told from the one beneath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medkd.slides.quality import (
    brightest,
    darkest,
    disc_of,
    find_pen,
    is_dark_field,
    without_small_objects,
)
from medkd.slides.tissue import optical_density

_SMOOTH_UM = 16.0  # evens out single nuclei
_CLOSE_UM = 24.0  # a fold is one object, also where pale fibres cross it
_SMALLEST_MM2 = 0.003  # a fold of 30 um by 100 um; a cluster of dark nuclei is smaller

# Double tissue takes up twice the light of single tissue, in every colour (Beer-Lambert); the
# optics and the section's own variation leave some of that.
_TIMES_DENSITY = 1.6
_TIMES_COLOUR = 1.5

# Whatever a slide's typical tissue, less than this is no fold. Dense haematoxylin (lymphoid
# follicles, crypts, basal epithelium) is as dark as a fold, but less colourful: three of 1,500
# colorectal tiles reach these, all stained strongly, and none by the factors above. Blood is as
# colourful, but lets red light through.
_LEAST_DENSITY = 0.35
_LEAST_COLOUR = 0.40
_LEAST_IN_EVERY_COLOUR = 0.10


@dataclass(frozen=True)
class Stain:
    """What single tissue of a slide takes up, optical density.

    Attributes:
        density: mean over red, green and blue.
        colour: most absorbed colour less the least absorbed one.
    """

    density: float
    colour: float


UNKNOWN_STAIN = Stain(0.30, 0.30)
"""Where nothing is known of the slide: it may be stained strongly, so more is needed of a fold."""


def typical_stain(image: np.ndarray, mpp: float, tissue: np.ndarray) -> Stain:
    """The median over a slide's tissue; :data:`UNKNOWN_STAIN` where there is none.

    Args:
        image: the slide at low resolution, uint8, H x W x 3, RGB.
        mpp: its micrometres per pixel.
        tissue: bool, H x W.
    """
    if not tissue.any():
        return UNKNOWN_STAIN
    absorbed = _smooth_density(image, mpp)[tissue]
    return Stain(
        density=float(np.median(absorbed.mean(axis=-1))),
        colour=float(np.median(brightest(absorbed) - darkest(absorbed))),
    )


def find_folds(
    image: np.ndarray,
    mpp: float,
    typical: Stain = UNKNOWN_STAIN,
    *,
    pen: np.ndarray | None = None,
) -> np.ndarray:
    """Folds in a low-resolution image: bool, H x W. Ink is none.

    A fold is darker and more colourful than the slide's single tissue, by the factor that
    lying double gives, and absorbs some of every colour.

    Args:
        image: uint8, H x W x 3, RGB, about :data:`medkd.slides.quality.COARSE_MPP`.
        mpp: its micrometres per pixel.
        typical: of the slide, see :func:`typical_stain`.
        pen: what :func:`medkd.slides.quality.find_pen` found on it, if that is known.
    """
    if is_dark_field(image):
        return np.zeros(image.shape[:2], bool)
    absorbed = _smooth_density(image, mpp)
    least, most = darkest(absorbed), brightest(absorbed)
    folds = (
        (absorbed.mean(axis=-1) > max(_TIMES_DENSITY * typical.density, _LEAST_DENSITY))
        & (most - least > max(_TIMES_COLOUR * typical.colour, _LEAST_COLOUR))
        & (least > _LEAST_IN_EVERY_COLOUR)
        & ~(find_pen(image, mpp) if pen is None else pen)
    )
    return without_small_objects(_closed(folds, mpp), _SMALLEST_MM2, mpp)


def _smooth_density(image: np.ndarray, mpp: float) -> np.ndarray:
    sigma = _SMOOTH_UM / mpp / 2
    return ndimage.gaussian_filter(optical_density(image), (sigma, sigma, 0))


def _closed(mask: np.ndarray, mpp: float) -> np.ndarray:
    disc = disc_of(_CLOSE_UM, mpp)
    margin = disc.shape[0] // 2
    closed = ndimage.binary_closing(np.pad(mask, margin), disc)
    return closed[margin : closed.shape[0] - margin, margin : closed.shape[1] - margin]
