"""Slides through cuCIM on the CPU, for those who ask for it.

cuCIM tells nothing of a native tile that it cannot decode: it hands over whatever lay in memory,
often another tile's pixels. So it gets only slides of which every native tile has been decoded and
checked before. What the slide is, its resolution above all, is OpenSlide's word: where a slide has
no mpp, cuCIM says 1.0.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medkd.errors import SlideError
from medkd.slides.jpeg_tiles import (
    REDUCTIONS,
    JpegLevel,
    NotNativeError,
    decode_native_tile,
    read_jpeg_levels,
    read_tile_bytes,
)
from medkd.slides.openslide_reader import OpenSlideReader
from medkd.slides.reader import RegionUnreadableError, SlideProperties
from medkd.slides.regions import (
    check_bounds,
    finest_needed,
    level_window,
    read_in_turn,
    read_thumbnail,
    resampled,
)

# Those that the native checks know and cuCIM reads.
_VENDORS = ("aperio", "generic-tiff", "philips")

_CHECKING_THREADS = 2

# Of each level so many native tiles, those with the most bytes, are compared pixel by pixel before
# cuCIM reads the slide; other decoders of the same JPEG differ by a level or two of 255.
_COMPARED_TILES = 4
_MOST_DIFFERENCE = 2

# What cuCIM raises where it does complain.
_CUCIM_ERRORS = (RuntimeError, ValueError, OSError)


class CucimReader:
    """A :class:`medkd.slides.reader.SlideReader` over cuCIM.

    Made by :func:`open_cucim`, which checks the slide. The file is opened at the first read, so in
    the process that reads.

    Args:
        properties: of the slide.
        warnings: a sentence each.
        level_sizes: width and height of each level, pixels.
    """

    def __init__(
        self,
        properties: SlideProperties,
        warnings: tuple[str, ...],
        level_sizes: tuple[tuple[int, int], ...],
    ) -> None:
        self.properties = properties
        self.warnings = warnings
        self._level_sizes = level_sizes
        self._handle: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Read from the next finer level and resample as through OpenSlide; see the protocol."""
        scale = mpp / self.properties.mpp
        extent = width_px * scale, height_px * scale
        # Before all else: beyond the slide cuCIM's pixels are white, without an error.
        check_bounds(self.properties, x, y, *extent)
        level, downsample = self._level_for(scale)
        first = math.floor(max(x, 0) / downsample), math.floor(max(y, 0) / downsample)
        start = first[0] * downsample, first[1] * downsample
        window = level_window((x, y), extent, start, downsample, self._level_sizes[level])
        pixels = self.read_level(level, first, window.size)
        return resampled(Image.fromarray(pixels), (width_px, height_px), window.box)

    def read_level(self, level: int, first: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Read pixels of a level: uint8, height x width x 3.

        Args:
            level: its number.
            first: the top left pixel, column and row of the level.
            size: width and height, pixels of the level; all of them must lie in it.

        Raises:
            RegionUnreadableError: cuCIM complains.
        """
        downsample = self.properties.level_downsamples[level]
        place = tuple(_level0_inside(number, downsample) for number in first)
        try:
            if self._handle is None:
                from cucim import CuImage

                self._handle = CuImage(str(self.properties.path))
            pixels = np.asarray(self._handle.read_region(place, size, level))
        except _CUCIM_ERRORS as error:
            self.close()
            raise RegionUnreadableError(f"cuCIM: {error}") from error
        if pixels.shape != (size[1], size[0], 3) or pixels.dtype != np.uint8:
            raise RegionUnreadableError(f"cuCIM: pixels of {pixels.dtype}, {pixels.shape}")
        return pixels

    def read_tiles(
        self,
        places: Iterable[tuple[float, float]],
        size_px: int,
        mpp: float,
        *,
        threads: int = 1,  # noqa: ARG002  # its batches cannot tell which tile failed
    ) -> Iterator[np.ndarray | RegionUnreadableError]:
        """Read tiles one after the other; see the protocol."""
        return read_in_turn(self, places, size_px, mpp)

    def native_jpeg(self, x: int, y: int, size_px: int, mpp: float) -> bytes | None:  # noqa: ARG002
        """None: cuCIM does not give the bytes away."""
        return None

    def thumbnail(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Read the whole slide in blocks of bounded size; see the protocol."""
        _, downsample = self._level_for(mpp / self.properties.mpp)
        return read_thumbnail(self, mpp, downsample)

    def close(self) -> None:
        """Release the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _level_for(self, scale: float) -> tuple[int, float]:
        """The coarsest level that is no coarser than ``scale``, and its downsample."""
        # A level between is passed over: its pixels may not have a level-0 pixel each well inside.
        sure = tuple(
            downsample if downsample == 1 or downsample >= 2 else math.inf
            for downsample in self.properties.level_downsamples
        )
        level = finest_needed(sure, scale)
        return level, sure[level]


def open_cucim(reader: OpenSlideReader) -> CucimReader:
    """The slide that OpenSlide has opened, through cuCIM, once all its native tiles are checked.

    Raises:
        SlideError: ``no_cucim``, ``not_checked_for_cucim``, ``damaged_for_cucim``, or
            ``wrong_in_cucim``.
        DamagedPyramidError: a level's table of tiles is not one.
    """
    path = reader.properties.path
    _require_cucim(path)
    levels = _checkable_levels(reader)
    bad = count_bad_tiles(path, levels)
    if bad:
        total = sum(len(level.offsets) for level in levels)
        raise SlideError(
            "damaged_for_cucim",
            f"{bad} of its {total} native tiles {'is' if bad == 1 else 'are'} damaged, and cuCIM "
            "would show other pixels in their place without an error",
            where=path,
            remedy="Set tile.reader to auto or openslide, which read the rest of it; or copy the "
            "slide again.",
        )
    properties = replace(reader.properties, reader=cucim_now(), reader_reason="asked for")
    opened = CucimReader(properties, reader.warnings, reader.level_sizes)
    with contextlib.closing(opened):
        reason = _how_it_differs(opened, levels)
    if reason:
        raise SlideError(
            "wrong_in_cucim",
            f"cuCIM reads it wrong: {reason}",
            where=path,
            remedy="Set tile.reader to auto or openslide.",
        )
    return opened


def cucim_now() -> str:
    """Name and version of the cuCIM that is installed, as it stands in the record of a slide."""
    for name in ("cucim-cu12", "cucim-cu13", "cucim"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"cuCIM {metadata.version(name)}"
    return "cuCIM, not installed"


def count_bad_tiles(path: Path, levels: Iterable[JpegLevel]) -> int:
    """How many native tiles of all levels do not pass the checks of the native JPEG reader.

    Each is decoded at the strongest reduction that its level allows: that goes through all of its
    data and finds what decoding it in full would find, in much less time.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(_CHECKING_THREADS) as pool:
            rows = [(descriptor, level, row) for level in levels for row in range(level.rows)]
            return sum(pool.map(_bad_tiles_in_row, *zip(*rows, strict=True)))
    finally:
        os.close(descriptor)


def _bad_tiles_in_row(descriptor: int, level: JpegLevel, row: int) -> int:
    reduction = next(r for r in REDUCTIONS if level.allows(r))
    bad = 0
    for column in range(level.columns):
        try:
            data = read_tile_bytes(descriptor, level, row, column)
            if data:  # else the scanner left it out: cuCIM makes it white as every reader does
                decode_native_tile(level, data, reduction)
        except RegionUnreadableError:
            bad += 1
    return bad


def _require_cucim(path: Path) -> None:
    try:
        import cucim  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cucim"
        raise SlideError(
            "no_cucim",
            "tile.reader is cucim, and cuCIM "
            + ("is not installed" if absent else f"cannot be loaded: {error}"),
            where=path,
            remedy="Install it with 'pip install cucim-cu12' (Linux), or set tile.reader to auto.",
        ) from error


def _checkable_levels(reader: OpenSlideReader) -> tuple[JpegLevel, ...]:
    properties = reader.properties
    if properties.icc == "applied":
        why = "its ICC profile is applied"
    elif properties.vendor not in _VENDORS:
        why = f"{properties.vendor} slides cannot be checked for damage"
    else:
        try:
            return read_jpeg_levels(properties.path, reader.level_sizes)
        except NotNativeError as error:
            why = f"it cannot be checked for damage, as {error}"
    raise SlideError(
        "not_checked_for_cucim",
        f"is not read with cuCIM: {why}",
        where=properties.path,
        remedy="Set tile.reader to auto or openslide.",
    )


def _how_it_differs(reader: CucimReader, levels: tuple[JpegLevel, ...]) -> str:
    """What is wrong with cuCIM's pixels on the richest native tiles of each level; '' if nothing.

    A guard against formats, colours and versions of cuCIM that no one has measured.
    """
    descriptor = os.open(reader.properties.path, os.O_RDONLY)
    try:
        for number, level in enumerate(levels):
            for index in np.argsort(level.counts)[-_COMPARED_TILES:].tolist():
                row, column = divmod(index, level.columns)
                data = read_tile_bytes(descriptor, level, row, column)
                if not data:
                    continue
                x, y = column * level.tile_width_px, row * level.tile_height_px
                width = min(level.tile_width_px, level.width_px - x)
                height = min(level.tile_height_px, level.height_px - y)
                expected = decode_native_tile(level, data, 1)[:height, :width].astype(int)
                found = reader.read_level(number, (x, y), (width, height))
                difference = int(np.abs(found - expected).max())
                if difference > _MOST_DIFFERENCE:
                    return (
                        f"native tile {column}, {row} of level {number} differs by {difference} "
                        "of 255 from its JPEG image"
                    )
    except RegionUnreadableError as error:
        return str(error)
    finally:
        os.close(descriptor)
    return ""


def _level0_inside(number: int, downsample: float) -> int:
    """A level-0 pixel inside pixel ``number`` of a level, as near its middle as may be.

    cuCIM takes places in level-0 pixels and finds the level's pixel in single precision: from the
    pixel's own corner a rounding would bring it to the one before.
    """
    return max(math.ceil(number * downsample), math.floor((number + 0.5) * downsample))
