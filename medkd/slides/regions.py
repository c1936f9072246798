"""What every reader does alike: bounds, the level to read, the whole slide in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from medkd.slides.reader import RegionUnreadableError, SlideProperties, SlideReader

# A pyramid's 2.0005 counts as 2: the next finer level would cost four times the pixels.
_LEVEL_TOLERANCE = 1.01

# Half a pixel past the edge is rounding; more is a caller's mistake.
_BOUNDS_TOLERANCE_PX = 0.5

# A thumbnail is read in blocks of at most this side, pixels as they are decoded, so that memory
# does not grow with the slide. Blocks that fail are quartered down to the smallest side.
_BLOCK_PX = 2048
_SMALLEST_BLOCK_PX = 256


def check_bounds(
    properties: SlideProperties, x: float, y: float, width: float, height: float
) -> None:
    """Refuse a region (level-0 pixels) that reaches beyond the slide.

    Raises:
        ValueError: it does.
    """
    tolerance = _BOUNDS_TOLERANCE_PX
    if (
        min(x, y) < -tolerance
        or x + width > properties.width_px + tolerance
        or y + height > properties.height_px + tolerance
    ):
        raise ValueError(
            f"region {width:.1f} x {height:.1f} px at ({x:g}, {y:g}) is outside the slide's "
            f"{properties.width_px} x {properties.height_px} px"
        )


def finest_needed(level_downsamples: tuple[float, ...], scale: float) -> int:
    """The number of the coarsest level that is no coarser than ``scale`` level-0 pixels."""
    fine_enough = [
        (downsample, level)
        for level, downsample in enumerate(level_downsamples)
        if downsample <= scale * _LEVEL_TOLERANCE
    ]
    return max(fine_enough, default=(1.0, 0))[1]


class LevelWindow(NamedTuple):
    """What to read of a level for a region.

    Attributes:
        size: width and height to read, whole pixels of the level.
        box: the region in what is read: left, top, right and bottom, pixels of the level.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]


def level_window(
    place: tuple[float, float],
    extent: tuple[float, float],
    start: tuple[float, float],
    downsample: float,
    level_size: tuple[int, int],
) -> LevelWindow:
    """The window of a level on which a region lies; it ends where the level does.

    Args:
        place: the region's top left corner, level-0 pixels.
        extent: its width and height, level-0 pixels.
        start: where the level's pixel begins from which on it is read, level-0 pixels.
        downsample: of the level.
        level_size: its width and height, pixels.
    """
    offset = [max(at - begin, 0.0) / downsample for at, begin in zip(place, start, strict=True)]
    end = [
        min(first + length / downsample, size - begin / downsample)
        for first, length, size, begin in zip(offset, extent, level_size, start, strict=True)
    ]
    size = (max(math.ceil(end[0] - 1e-6), 1), max(math.ceil(end[1] - 1e-6), 1))
    return LevelWindow(size, (offset[0], offset[1], min(end[0], size[0]), min(end[1], size[1])))


def resampled(
    image: Image.Image, size_px: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    """The part ``box`` of an image at ``size_px``, width and height: uint8, height x width x 3.

    PIL's Hamming filter with antialiasing is an area average with soft edges. Plain box
    averaging is not used: for scales such as 1.002 it drops a row every 500 pixels.
    """
    return np.array(image.resize(size_px, Image.Resampling.HAMMING, box=box))


def read_in_turn(
    reader: SlideReader, places: Iterable[tuple[float, float]], size_px: int, mpp: float
) -> Iterator[np.ndarray | RegionUnreadableError]:
    """One tile after the other; see :meth:`medkd.slides.reader.SlideReader.read_tiles`."""
    for x, y in places:
        try:
            yield reader.read_region(x, y, size_px, size_px, mpp)
        except RegionUnreadableError as error:
            yield error


def read_thumbnail(
    reader: SlideReader, mpp: float, decoded_downsample: float
) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole slide at ``mpp`` in blocks of bounded size.

    Args:
        reader: of the slide.
        mpp: wanted micrometres per pixel.
        decoded_downsample: level-0 pixels to a pixel that the reader decodes for it.

    Returns:
        What :meth:`medkd.slides.reader.SlideReader.thumbnail` returns.
    """
    properties = reader.properties
    scale = mpp / properties.mpp
    # A slide of less than one such pixel still gives one.
    columns = max(math.floor(properties.width_px / scale + 1e-6), 1)
    rows = max(math.floor(properties.height_px / scale + 1e-6), 1)
    image = np.full((rows, columns, 3), 255, np.uint8)
    readable = np.ones((rows, columns), bool)
    per_decoded_px = scale / decoded_downsample
    side = max(math.floor(_BLOCK_PX / per_decoded_px), 1)
    smallest = max(math.floor(_SMALLEST_BLOCK_PX / per_decoded_px), 1)
    blocks = [
        (left, top, min(side, columns - left), min(side, rows - top))
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    while blocks:
        left, top, width, height = blocks.pop()
        here = np.s_[top : top + height, left : left + width]
        try:
            image[here] = reader.read_region(left * scale, top * scale, width, height, mpp)
        except RegionUnreadableError:
            if max(width, height) <= smallest:
                readable[here] = False
                continue
            blocks.extend(_quarters(left, top, width, height))
    return image, readable


def _quarters(left: int, top: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    half_width, half_height = math.ceil(width / 2), math.ceil(height / 2)
    return [
        (x, y, w, h)
        for y, h in ((top, half_height), (top + half_height, height - half_height))
        for x, w in ((left, half_width), (left + half_width, width - half_width))
        if w > 0 and h > 0
    ]
