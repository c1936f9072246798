"""Slides whose pyramid is JPEG in tiles, read from the native tiles themselves.

Where a slide is scanned finer than it is wanted, the JPEG decoder makes the tiles smaller while it
decodes them; what is left to resample is small, and often nothing. Each native tile is decoded
once while a sweep passes it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import simplejpeg
from PIL import Image

from medkd.slides.jpeg_tiles import (
    REDUCTIONS,
    JpegLevel,
    decode_native_tile,
    read_tile_bytes,
    whole_stream,
)
from medkd.slides.reader import RegionUnreadableError, SlideProperties
from medkd.slides.regions import check_bounds, finest_needed, read_thumbnail

NATIVE_READER = f"native JPEG, simplejpeg {simplejpeg.__version__}"
"""As it stands in the record of a slide."""

CACHE_BYTES = 256 * 2**20
"""Of decoded native tiles; a row of tiles 112 um high across 25 mm at 0.5 um/px needs 60 MB."""

# A slide of 0.2527 um/px is halved to 0.5053 for tiles of 0.5, and enlarged by 1 per cent: that
# loses nothing to the eye and saves three quarters of the pixels.
_REDUCTION_TOLERANCE = 1.03

# So much less than a pixel that moving by it cannot be seen.
_NEGLIGIBLE_PX = 0.02

_WHITE = 255

# Tiles that threads are ahead of the sweep: enough to keep them busy, some megabytes of pixels.
_LOOK_AHEAD_TILES = 32

# Level, reduction, row and column of a native tile.
_Key: TypeAlias = tuple[int, int, int, int]
# Its pixels, nothing where the scanner left it out, or why it cannot be had.
_NativeTile: TypeAlias = np.ndarray | RegionUnreadableError | None
_Entry: TypeAlias = _NativeTile | Future[_NativeTile]


class JpegReader:
    """A :class:`medkd.slides.reader.SlideReader` over native JPEG tiles.

    Made by :func:`medkd.slides.readers.open_reader`.

    Args:
        properties: of the slide.
        warnings: a sentence each.
        levels: of the pyramid, in the order of ``properties.level_downsamples``.
        cache_bytes: bound of the decoded native tiles that are kept.
    """

    def __init__(
        self,
        properties: SlideProperties,
        warnings: tuple[str, ...],
        levels: tuple[JpegLevel, ...],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.properties = properties
        self.warnings = warnings
        self._levels = levels
        self._descriptors: dict[Path, int] = {}
        self._cache = _TileCache(cache_bytes)

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Assemble the region from native tiles and resample what the decoder left to do.

        See the protocol for arguments and errors.
        """
        plan = self._plan(x, y, width_px, height_px, mpp)
        return _resampled(plan, {key: self._entry(key) for key in plan.keys})

    def read_tiles(
        self, places: Iterable[tuple[float, float]], size_px: int, mpp: float, *, threads: int = 1
    ) -> Iterator[np.ndarray | RegionUnreadableError]:
        """Read tiles along a sweep, with more than one thread ahead of it; see the protocol."""
        plans = self._along(places, size_px, mpp)
        if threads == 1:
            for plan in plans:
                yield _resampled_or_error(plan, {key: self._entry(key) for key in plan.keys})
            return
        with contextlib.suppress(OSError):  # each tile tells it
            self._open(self._levels[self._level_for(mpp / self.properties.mpp)[0]])
        pool = ThreadPoolExecutor(threads)
        ahead: deque[Future[np.ndarray | RegionUnreadableError]] = deque()
        try:
            for plan in plans:
                # A tile waits for native tiles that were handed out before it: never for ever.
                entries = {key: self._entry(key, pool) for key in plan.keys}
                ahead.append(pool.submit(_resampled_or_error, plan, entries))
                if len(ahead) == _LOOK_AHEAD_TILES:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if ahead:
                # The sweep was left early, and some of what is cached will never be decoded.
                self._cache.clear()

    def _along(
        self, places: Iterable[tuple[float, float]], size_px: int, mpp: float
    ) -> Iterator[_Plan]:
        """Plans of a sweep. Native tiles that it has passed are let go: to decode into memory
        that was used before is a tenth faster than into fresh memory.
        """
        passed = 0
        for x, y in places:
            plan = self._plan(x, y, size_px, size_px, mpp)
            first_row = plan.rows.first // plan.tile_height_px
            if first_row > passed:
                self._cache.forget_rows(plan.number, plan.reduction, first_row)
            passed = first_row
            yield plan

    def native_jpeg(self, x: int, y: int, size_px: int, mpp: float) -> bytes | None:
        """The bytes of a native tile at full resolution; see the protocol."""
        plan = self._plan(x, y, size_px, size_px, mpp)
        columns, rows = plan.columns, plan.rows
        if (
            plan.reduction != 1
            or (plan.tile_width_px, plan.tile_height_px) != (size_px, size_px)
            or not (columns.is_exact and rows.is_exact)
            or columns.first % size_px
            or rows.first % size_px
        ):
            return None
        level = self._levels[plan.number]
        try:
            data = read_tile_bytes(
                self._open(level), level, rows.first // size_px, columns.first // size_px
            )
        except (RegionUnreadableError, OSError):
            return None
        # Zeros at its end fill it up, and are none of the image's.
        image = data.rstrip(b"\0")
        return whole_stream(level, image) if image else None

    def thumbnail(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Read the whole slide in blocks of bounded size; see the protocol."""
        scale = mpp / self.properties.mpp
        number, reduction = self._level_for(scale)
        return read_thumbnail(self, mpp, self.properties.level_downsamples[number] * reduction)

    def close(self) -> None:
        """Release the files and the cache."""
        self._cache.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _level_for(self, scale: float) -> tuple[int, int]:
        """The coarsest level that is fine enough, and what its tiles can be divided by."""
        number = finest_needed(self.properties.level_downsamples, scale)
        level = self._levels[number]
        wanted = scale * _REDUCTION_TOLERANCE / self.properties.level_downsamples[number]
        smallest = min(level.width_px, level.height_px)
        return number, next(
            (r for r in REDUCTIONS if r <= min(wanted, smallest) and level.allows(r)), 1
        )

    def _plan(self, x: float, y: float, width_px: int, height_px: int, mpp: float) -> _Plan:
        scale = mpp / self.properties.mpp
        check_bounds(self.properties, x, y, width_px * scale, height_px * scale)
        number, reduction = self._level_for(scale)
        level = self._levels[number]
        step = self.properties.level_downsamples[number] * reduction
        return _Plan(
            number=number,
            reduction=reduction,
            tile_width_px=level.tile_width_px // reduction,
            tile_height_px=level.tile_height_px // reduction,
            columns=_span(x / step, width_px * scale / step, width_px, level.width_px // reduction),
            rows=_span(y / step, height_px * scale / step, height_px, level.height_px // reduction),
            width_px=width_px,
            height_px=height_px,
        )

    def _entry(self, key: _Key, pool: ThreadPoolExecutor | None = None) -> _Entry:
        """A native tile from the cache, or decoded: now, or soon by ``pool``."""
        found = self._cache.get(key)
        if found is not None:
            return found[0]
        entry: _Entry = self._decode(key) if pool is None else pool.submit(self._decode, key)
        level, reduction = self._levels[key[0]], key[1]
        self._cache.put(key, entry, 3 * level.tile_width_px * level.tile_height_px // reduction**2)
        return entry

    def _decode(self, key: _Key) -> _NativeTile:
        number, reduction, row, column = key
        level = self._levels[number]
        try:
            data = read_tile_bytes(self._open(level), level, row, column)
            return decode_native_tile(level, data, reduction) if data else None
        except RegionUnreadableError as error:
            return error
        except OSError as error:
            return RegionUnreadableError(str(error))

    def _open(self, level: JpegLevel) -> int:
        # Opened at the first read, so in the process that reads.
        descriptor = self._descriptors.get(level.path)
        if descriptor is None:
            descriptor = self._descriptors[level.path] = os.open(level.path, os.O_RDONLY)
        return descriptor


class _Plan(NamedTuple):
    """A region in native tiles of one level, decoded at 1/``reduction``.

    ``tile_width_px`` and ``tile_height_px`` are of a native tile as decoded, ``width_px`` and
    ``height_px`` of the region that is wanted.
    """

    number: int
    reduction: int
    tile_width_px: int
    tile_height_px: int
    columns: _Span
    rows: _Span
    width_px: int
    height_px: int

    @property
    def keys(self) -> Iterator[_Key]:
        """Of the native tiles that it lies on."""
        columns = self.columns.tiles(self.tile_width_px)
        for row in self.rows.tiles(self.tile_height_px):
            for column in columns:
                yield self.number, self.reduction, row, column


def _resampled(plan: _Plan, entries: Mapping[_Key, _Entry]) -> np.ndarray:
    """The region that is wanted: uint8, height_px x width_px x 3.

    Raises:
        RegionUnreadableError: one of its native tiles cannot be had.
    """
    pixels = _assembled(plan, entries)
    columns, rows = plan.columns, plan.rows
    if columns.is_exact and rows.is_exact:
        return pixels
    # The same filter as of the OpenSlide reader: an area average with soft edges.
    resized = Image.fromarray(pixels).resize(
        (plan.width_px, plan.height_px),
        Image.Resampling.HAMMING,
        box=(columns.start, rows.start, columns.end, rows.end),
    )
    return np.array(resized)


def _resampled_or_error(
    plan: _Plan, entries: Mapping[_Key, _Entry]
) -> np.ndarray | RegionUnreadableError:
    try:
        return _resampled(plan, entries)
    except RegionUnreadableError as error:
        return error


def _assembled(plan: _Plan, entries: Mapping[_Key, _Entry]) -> np.ndarray:
    rows, columns = plan.rows, plan.columns
    height, width = plan.tile_height_px, plan.tile_width_px
    assembled = np.empty((rows.last - rows.first, columns.last - columns.first, 3), np.uint8)
    for (_, _, row, column), entry in entries.items():
        tile = entry.result() if isinstance(entry, Future) else entry
        if isinstance(tile, RegionUnreadableError):
            raise tile
        y, x = row * height, column * width
        top, bottom = max(y, rows.first), min(y + height, rows.last)
        left, right = max(x, columns.first), min(x + width, columns.last)
        here = assembled[
            top - rows.first : bottom - rows.first, left - columns.first : right - columns.first
        ]
        here[:] = _WHITE if tile is None else tile[top - y : bottom - y, left - x : right - x]
    return assembled


class _Span(NamedTuple):
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

    def tiles(self, tile_px: int) -> range:
        """Numbers of the native tiles, ``tile_px`` long, that it touches."""
        return range(self.first // tile_px, (self.last - 1) // tile_px + 1)


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
    """Native tiles, the most recently used ones, decoded or about to be."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[_Key, tuple[_Entry, int]] = OrderedDict()

    def get(self, key: _Key) -> tuple[_Entry] | None:
        """The entry, in a tuple because it may itself be None; None where there is none."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return (found[0],)

    def put(self, key: _Key, entry: _Entry, size_bytes: int) -> None:
        """Keep an entry, and let go of the oldest while there are too many bytes."""
        self._entries[key] = entry, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._most_bytes and len(self._entries) > 1:
            self._bytes -= self._entries.popitem(last=False)[1][1]

    def forget_rows(self, number: int, reduction: int, before: int) -> None:
        """Let go of a level's native tiles above the row ``before``."""
        for key in [k for k in self._entries if k[:2] == (number, reduction) and k[2] < before]:
            self._bytes -= self._entries.pop(key)[1]

    def clear(self) -> None:
        """Let go of all."""
        self._entries.clear()
        self._bytes = 0
