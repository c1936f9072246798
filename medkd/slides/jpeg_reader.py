"""Slides whose pyramid is JPEG in tiles, read from the native tiles themselves.

Where a slide is scanned finer than it is wanted, the JPEG decoder makes the tiles smaller while it
decodes them; what is left to resample is small, and often nothing. Each native tile is decoded
once while a sweep passes it.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medkd.slides.jpeg_tiles import (
    REDUCTIONS,
    JpegLevel,
    decode_native_tile,
    read_tile_bytes,
)
from medkd.slides.reader import RegionUnreadableError, SlideProperties
from medkd.slides.regions import check_bounds, finest_needed, read_thumbnail

# A slide of 0.2527 um/px is halved to 0.5053 for tiles of 0.5, and enlarged by 1 per cent: that
# loses nothing to the eye and saves three quarters of the pixels.
_REDUCTION_TOLERANCE = 1.03

# So much less than a pixel that moving by it cannot be seen.
_NEGLIGIBLE_PX = 0.02

_WHITE = 255


class JpegReader:
    """A :class:`medkd.slides.reader.SlideReader` over native JPEG tiles.

    Made by :func:`medkd.slides.readers.open_reader`.

    Args:
        properties: of the slide.
        warnings: a sentence each.
        levels: of the pyramid, in the order of ``properties.level_downsamples``.
        cache_bytes: bound of the decoded native tiles that are kept. A row of tiles 112 um high
            across 25 mm of slide at 0.5 um/px needs about 60 MB.
    """

    def __init__(
        self,
        properties: SlideProperties,
        warnings: tuple[str, ...],
        levels: tuple[JpegLevel, ...],
        *,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.properties = properties
        self.warnings = warnings
        self._levels = levels
        self._descriptor: int | None = None
        self._cache = _TileCache(cache_bytes)

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Assemble the region from native tiles and resample what the decoder left to do.

        See the protocol for arguments and errors.
        """
        scale = mpp / self.properties.mpp
        check_bounds(self.properties, x, y, width_px * scale, height_px * scale)
        number, reduction = self._level_for(scale)
        level = self._levels[number]
        step = self.properties.level_downsamples[number] * reduction
        columns = _span(x / step, width_px * scale / step, width_px, level.width_px // reduction)
        rows = _span(y / step, height_px * scale / step, height_px, level.height_px // reduction)
        pixels = self._assemble(number, reduction, rows, columns)
        if columns.is_exact and rows.is_exact:
            return pixels
        box = (columns.start, rows.start, columns.end, rows.end)
        # The same filter as of the OpenSlide reader: an area average with soft edges.
        resized = Image.fromarray(pixels).resize(
            (width_px, height_px), Image.Resampling.HAMMING, box=box
        )
        return np.array(resized)

    def thumbnail(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Read the whole slide in blocks of bounded size; see the protocol."""
        scale = mpp / self.properties.mpp
        number, reduction = self._level_for(scale)
        return read_thumbnail(self, mpp, self.properties.level_downsamples[number] * reduction)

    def close(self) -> None:
        """Release the file and the cache."""
        self._cache.clear()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _level_for(self, scale: float) -> tuple[int, int]:
        """The coarsest level that is fine enough, and what its tiles can be divided by."""
        number = finest_needed(self.properties.level_downsamples, scale)
        level = self._levels[number]
        wanted = scale * _REDUCTION_TOLERANCE / self.properties.level_downsamples[number]
        smallest = min(level.width_px, level.height_px)
        return number, next(
            (r for r in REDUCTIONS if r <= min(wanted, smallest) and level.allows(r)), 1
        )

    def _assemble(self, number: int, reduction: int, rows: _Span, columns: _Span) -> np.ndarray:
        level = self._levels[number]
        height, width = level.tile_height_px // reduction, level.tile_width_px // reduction
        assembled = np.empty((rows.last - rows.first, columns.last - columns.first, 3), np.uint8)
        for row in range(rows.first // height, (rows.last - 1) // height + 1):
            top, bottom = max(row * height, rows.first), min((row + 1) * height, rows.last)
            for column in range(columns.first // width, (columns.last - 1) // width + 1):
                left = max(column * width, columns.first)
                right = min((column + 1) * width, columns.last)
                tile = self._native_tile(number, reduction, row, column)
                assembled[
                    top - rows.first : bottom - rows.first,
                    left - columns.first : right - columns.first,
                ] = (
                    _WHITE  # the scanner left it out
                    if tile is None
                    else tile[
                        top - row * height : bottom - row * height,
                        left - column * width : right - column * width,
                    ]
                )
        return assembled

    def _native_tile(self, number: int, reduction: int, row: int, column: int) -> np.ndarray | None:
        key = (number, reduction, row, column)
        found = self._cache.get(key)
        if found is None:
            found = self._decode(*key)
            self._cache.put(key, found)
        if isinstance(found, RegionUnreadableError):
            raise found
        return found if found.size else None

    def _decode(
        self, number: int, reduction: int, row: int, column: int
    ) -> np.ndarray | RegionUnreadableError:
        """A native tile, without pixels where the scanner left it out, or why there is none."""
        level = self._levels[number]
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.properties.path, os.O_RDONLY)
            data = read_tile_bytes(self._descriptor, level, row, column)
            if not data:
                return np.empty((0, 0, 3), np.uint8)
            return decode_native_tile(level, data, reduction)
        except RegionUnreadableError as error:
            return error
        except OSError as error:
            return RegionUnreadableError(str(error))


@dataclass(frozen=True)
class _Span:
    """Pixels to assemble along one axis, and the part of them that is wanted.

    Attributes:
        first, last: whole decoded pixels, of the level; the last is not among them.
        start, end: what is wanted of these, decoded pixels from ``first``.
        is_exact: nothing is left to resample.
    """

    first: int
    last: int
    start: float
    end: float
    is_exact: bool


def _span(start: float, length: float, wanted_px: int, limit: int) -> _Span:
    """The span from ``start`` over ``length`` decoded pixels, of which there are ``limit``.

    What the level has beyond its last whole decoded pixel is left out: there the decoder would mix
    in what lies beyond the slide.
    """
    nearest = round(start)
    if (
        abs(start - nearest) <= _NEGLIGIBLE_PX
        and abs(length - wanted_px) <= _NEGLIGIBLE_PX
        and nearest + wanted_px <= limit
    ):
        return _Span(nearest, nearest + wanted_px, 0.0, float(wanted_px), is_exact=True)
    start = min(max(start, 0.0), limit - 1e-3)
    end = max(min(start + length, float(limit)), start + 1e-3)
    first, last = math.floor(start), math.ceil(end - 1e-6)
    return _Span(first, last, start - first, min(end, last) - first, is_exact=False)


class _TileCache:
    """Decoded native tiles, the most recently used ones; unreadable ones as their error."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tiles: OrderedDict[tuple[int, ...], np.ndarray | RegionUnreadableError] = (
            OrderedDict()
        )

    def get(self, key: tuple[int, ...]) -> np.ndarray | RegionUnreadableError | None:
        found = self._tiles.get(key)
        if found is not None:
            self._tiles.move_to_end(key)
        return found

    def put(self, key: tuple[int, ...], tile: np.ndarray | RegionUnreadableError) -> None:
        self._tiles[key] = tile
        self._bytes += _size_bytes(tile)
        while self._bytes > self._most_bytes and len(self._tiles) > 1:
            _, oldest = self._tiles.popitem(last=False)
            self._bytes -= _size_bytes(oldest)

    def clear(self) -> None:
        self._tiles.clear()
        self._bytes = 0


def _size_bytes(tile: np.ndarray | RegionUnreadableError) -> int:
    # What Python needs to keep an entry counts too, or empty tiles would pile up.
    return 500 + (tile.nbytes if isinstance(tile, np.ndarray) else 0)
