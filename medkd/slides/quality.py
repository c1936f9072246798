"""What makes a tile unfit: pen ink, blackness, emptiness, blur.

Each is measured at one physical scale. Folds have a module of their own.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

COARSE_MPP = 8.0
"""Micrometres per pixel at which ink and blackness are looked for: strokes are far wider than
this, nuclei and blood cells are not, so that dark nuclei are not taken for black ink."""

FOCUS_MPP = 1.0
"""Micrometres per pixel at which focus is measured."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

BRIGHT = 180
"""Glass is brighter than this in every colour."""
BRIGHT_SHARE = 0.01
"""Where less of an image is bright, it shows no glass."""

_BLACK_BELOW = 40
_DARK_FIELD_SHARE = 0.5

_WHITE_ABOVE = 200
_WHITE_COLOUR = 0.02  # optical density, most less least; the palest tissue shows 0.03

_LEAST_CONTRAST = 8.0

_BLOCK_ROWS = 256

_EXACT_REDUCTIONS = (2, 4, 8, 16)

SMALLEST_STROKE_MM2 = 0.005  # a dot of a fine pen; stained debris is smaller
_STROKE_RIM_UM = 40.0  # ink fades out at a stroke's edge, and is out of focus


def resample(pixels: np.ndarray, mpp: float, to_mpp: float) -> np.ndarray:
    """Bring an RGB image (uint8, H x W x 3) from ``mpp`` to a coarser ``to_mpp``.

    A finer ``to_mpp`` returns the image as it is: detail cannot be made.
    """
    factor = mpp / to_mpp
    if factor >= 1:
        return pixels
    height, width = pixels.shape[:2]
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    image = Image.fromarray(pixels)
    times = width // size[0]
    # Pillow rounds after each axis, and takes the columns of a tall image last. Where two calls
    # of its faster reduction round alike, to the last bit, they take half the time.
    exact = times in _EXACT_REDUCTIONS and (times * size[0], times * size[1]) == (width, height)
    if exact and height <= width:
        return np.asarray(image.reduce((times, 1)).reduce((1, times)))
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def brightest(image: np.ndarray) -> np.ndarray:
    """The largest of red, green and blue: H x W. Numpy's own maximum over so short an axis takes
    ten times as long.
    """
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def darkest(image: np.ndarray) -> np.ndarray:
    """The smallest of red, green and blue: H x W."""
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])


def black_mask(coarse: np.ndarray) -> np.ndarray:
    """Where an image at :data:`COARSE_MPP` is nearly black: bool, H x W."""
    return brightest(coarse) < _BLACK_BELOW


def white_mask(coarse: np.ndarray) -> np.ndarray:
    """Where an image at :data:`COARSE_MPP` is bright and colourless: bool, H x W."""
    most, least = brightest(coarse), darkest(coarse)
    colour = np.log10(most / np.maximum(least, 1).astype(np.float32))
    return (least > _WHITE_ABOVE) & (colour < _WHITE_COLOUR)


def is_dark_field(image: np.ndarray) -> bool:
    """Whether a low-resolution image is of light on black (fluorescence), not of stain on glass."""
    bright_share = (darkest(image) > BRIGHT).mean()
    return bool(black_mask(image).mean() > _DARK_FIELD_SHARE and bright_share < BRIGHT_SHARE)


def pen_mask(coarse: np.ndarray) -> np.ndarray:
    """Where an image at :data:`COARSE_MPP` shows pen ink: bool, H x W.

    Haematoxylin and eosin lie between blue-violet and pinkish red, and always let through some
    blue. Green and blue ink lie on the other side of the hue circle, red ink absorbs green and
    blue alike, and black ink absorbs all three.
    """
    inked = np.empty(coarse.shape[:2], bool)
    # Row by row in blocks: a whole slide at once would take some 40 bytes for each of its pixels.
    for top in range(0, len(coarse), _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        inked[rows] = _pen_in(coarse[rows])
    return inked


def _pen_in(coarse: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(coarse.astype(np.float32), -1, 0)
    most, least = brightest(coarse).astype(np.float32), darkest(coarse).astype(np.float32)
    saturation = (most - least) / np.maximum(most, 1)
    green_ink = (green > 1.1 * red) & (green > 0.95 * blue) & (saturation > 0.15)
    blue_ink = (
        (blue > 1.4 * red) & (green > 1.02 * red) & (green > 0.3 * blue) & (saturation > 0.25)
    )
    red_ink = (red > 90) & (green < 0.25 * red) & (blue < 0.35 * red) & (blue < green + 40)
    black_ink = (most < 80) & (most - least < 28)
    return green_ink | blue_ink | red_ink | black_ink


def find_pen(
    image: np.ndarray, mpp: float, smallest_mm2: float = SMALLEST_STROKE_MM2
) -> np.ndarray:
    """Pen strokes in a low-resolution image of a slide, with their pale rims: bool, H x W.

    Args:
        image: uint8, H x W x 3, RGB, about :data:`COARSE_MPP`.
        mpp: its micrometres per pixel.
        smallest_mm2: strokes of less are left out; of one tile alone that must be less.
    """
    if is_dark_field(image):
        return np.zeros(image.shape[:2], bool)
    strokes = without_small_objects(pen_mask(image), smallest_mm2, mpp)
    return ndimage.binary_dilation(strokes, disc_of(2 * _STROKE_RIM_UM, mpp))


def without_small_objects(mask: np.ndarray, least_mm2: float, mpp: float) -> np.ndarray:
    """``mask`` without connected objects smaller than ``least_mm2``."""
    labels, count = ndimage.label(mask, np.ones((3, 3), bool))
    if count == 0:
        return mask
    large = np.bincount(labels.ravel()) >= least_mm2 / area_mm2(1, mpp)
    large[0] = False
    return large[labels]


def disc_of(diameter_um: float, mpp: float) -> np.ndarray:
    """A disc for morphology: bool, square, of odd side."""
    radius_px = diameter_um / mpp / 2
    grid = np.arange(-math.floor(radius_px), math.floor(radius_px) + 1)
    return grid[:, None] ** 2 + grid[None, :] ** 2 <= radius_px**2


def area_mm2(pixels: float, mpp: float) -> float:
    """The area of ``pixels`` pixels of side ``mpp`` micrometres, square millimetres."""
    return pixels * (mpp / 1000) ** 2


def focus_score(pixels: np.ndarray, mpp: float) -> float:
    """How sharp a tile is: fine detail relative to contrast, about 0 (blurred) to 1.

    The standard deviation of the Laplacian over four times that of the grey values, at
    :data:`FOCUS_MPP`. The ratio makes pale tissue count like dark tissue. Less contrast than 8
    grey levels counts as 8, or the noise of a featureless tile would pass for detail.

    Args:
        pixels: the tile, uint8, H x W x 3, RGB.
        mpp: its micrometres per pixel.
    """
    grey = resample(pixels, mpp, FOCUS_MPP).astype(np.float32) @ _LUMA
    detail = _laplacian(grey).std() / 4
    return float(detail / max(grey.std(), _LEAST_CONTRAST))


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """Sum of each pixel's differences to its four neighbours, those that there are: H x W.

    What ndimage.laplace gives with ``mode="nearest"``, in a third of its time.
    """
    sums = np.zeros_like(grey)
    down = grey[1:] - grey[:-1]
    sums[:-1] += down
    sums[1:] -= down
    right = grey[:, 1:] - grey[:, :-1]
    sums[:, :-1] += right
    sums[:, 1:] -= right
    return sums
