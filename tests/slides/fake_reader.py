"""A slide in memory, for tests of what is done with slides, not of how files are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from medkd.slides.reader import RegionUnreadableError, SlideProperties

Rectangle = tuple[int, int, int, int]
"""x, y, width and height, level-0 pixels."""


class FakeReader:
    """A :class:`medkd.slides.reader.SlideReader` over an array.

    Args:
        pixels: of level 0, uint8, H x W x 3, RGB.
        mpp: of level 0, micrometres per pixel.
        unreadable: no region that has a pixel of one of these can be read.
        unseen: just the thumbnail cannot be read here, as where a coarse level is damaged.
        native: JPEG streams by the corner of their tile, as :meth:`native_jpeg` gives them.

    Attributes:
        read: corners of all tiles that :meth:`read_tiles` was asked for.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        mpp: float = 0.5,
        *,
        unreadable: Iterable[Rectangle] = (),
        unseen: Iterable[Rectangle] = (),
        native: Mapping[tuple[int, int], bytes] | None = None,
    ) -> None:
        self.properties = _properties(pixels, mpp)
        self.warnings: tuple[str, ...] = ()
        self.read: list[tuple[float, float]] = []
        self._image = Image.fromarray(pixels)
        self._unreadable = tuple(unreadable)
        self._unseen = tuple(unseen)
        self._native = dict(native or {})

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Area averages; see the protocol."""
        scale = mpp / self.properties.mpp
        right, bottom = x + width_px * scale, y + height_px * scale
        if min(x, y) < 0 or right > self._image.width or bottom > self._image.height:
            raise ValueError(f"({x}, {y}) to ({right}, {bottom}) reaches beyond the slide")
        for left, top, width, height in self._unreadable:
            if x < left + width and right > left and y < top + height and bottom > top:
                raise RegionUnreadableError(f"({x}, {y}) is unreadable")
        size = (width_px, height_px)
        box = (x, y, right, bottom)
        return np.array(self._image.resize(size, Image.Resampling.BOX, box=box))

    def read_tiles(
        self,
        places: Iterable[tuple[float, float]],
        size_px: int,
        mpp: float,
        *,
        threads: int = 1,
    ) -> Iterator[np.ndarray | RegionUnreadableError]:
        """One after the other; see the protocol."""
        for x, y in places:
            self.read.append((x, y))
            try:
                yield self.read_region(x, y, size_px, size_px, mpp)
            except RegionUnreadableError as error:
                yield error

    def native_jpeg(self, x: int, y: int, size_px: int, mpp: float) -> bytes | None:
        """What ``native`` holds, whatever the size; see the protocol."""
        return self._native.get((x, y))

    def thumbnail(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Area averages, white where any pixel beneath is unreadable; see the protocol."""
        scale = mpp / self.properties.mpp
        size = (math.floor(self._image.width / scale), math.floor(self._image.height / scale))
        box = (0, 0, size[0] * scale, size[1] * scale)
        image = np.array(self._image.resize(size, Image.Resampling.BOX, box=box))
        readable = np.ones(image.shape[:2], bool)
        for left, top, width, height in (*self._unreadable, *self._unseen):
            rows = slice(math.floor(top / scale), math.ceil((top + height) / scale))
            columns = slice(math.floor(left / scale), math.ceil((left + width) / scale))
            readable[rows, columns] = False
        image[~readable] = 255
        return image, readable

    def close(self) -> None:
        """Nothing is held."""


def _properties(pixels: np.ndarray, mpp: float) -> SlideProperties:
    return SlideProperties(
        slide_id="fake",
        path=Path("fake.svs"),
        width_px=pixels.shape[1],
        height_px=pixels.shape[0],
        mpp=mpp,
        mpp_source="metadata",
        vendor="fake",
        objective_power=None,
        synthetic=False,
        fingerprint="",
        level_downsamples=(1.0,),
        reader="fake",
        reader_reason="a test asked for it",
        icc="none",
        icc_description="",
    )
