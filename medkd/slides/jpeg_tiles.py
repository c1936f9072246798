"""The native tiles of a tiled JPEG pyramid: where their bytes lie, and decoding them with care.

A tile is decoded at 1/1, 1/2, 1/4 or 1/8 of its size by the JPEG decoder itself, which then does
that much less work. Every tile is checked; one that is not whole is :class:`RegionUnreadableError`,
never another tile's pixels.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from medkd.slides.reader import RegionUnreadableError

REDUCTIONS = (8, 4, 2, 1)
"""What the decoder can divide a tile's sides by."""

_START, _END = b"\xff\xd8", b"\xff\xd9"
RGB_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's, with transform 0: the three components are red, green and blue as they are."""

ITEM_HEADER = struct.Struct("<II")
"""Before each item of DICOM's pixel data: :data:`ITEM_TAG` and the item's length in bytes."""
ITEM_TAG = 0xE000FFFE

MOST_TILES = 2**30
"""A level that claims more is damaged: at 64 px a side it would be 2 million px wide and high."""

# What it says of damaged directories, it says in exceptions too.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class NotNativeError(Exception):
    """The file is no tiled JPEG pyramid that is read here; the message says why."""


class DamagedPyramidError(Exception):
    """The table of tiles contradicts the level's size: no one can tell which tile lies where."""


@dataclass(frozen=True)
class JpegLevel:
    """One level of the pyramid.

    Attributes:
        path: of the file that its tiles lie in.
        width_px, height_px: of the level.
        tile_width_px, tile_height_px: of its native tiles; those at the edges reach beyond it.
        offsets, counts: of each tile's bytes in the file, row by row.
        shared: whether a tile's bytes are those of another one too.
        prefix: what the tiles' streams lack: the shared tables, and how their colours are meant.
        in_items: each tile's bytes are an item of DICOM, behind the item's header.
    """

    path: Path
    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    offsets: list[int]
    counts: list[int]
    shared: list[bool]
    prefix: bytes
    in_items: bool = False

    @property
    def columns(self) -> int:
        """Native tiles in a row."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def rows(self) -> int:
        """Rows of native tiles."""
        return -(-self.height_px // self.tile_height_px)

    def allows(self, reduction: int) -> bool:
        """Whether tiles of 1/``reduction`` still fit together without a seam."""
        return self.tile_width_px % reduction == 0 and self.tile_height_px % reduction == 0


def read_jpeg_levels(path: Path, level_sizes: Sequence[tuple[int, int]]) -> tuple[JpegLevel, ...]:
    """Find the levels of a slide in its TIFF directories.

    Args:
        path: of the slide.
        level_sizes: width and height of each level as OpenSlide sees them, level 0 first.

    Raises:
        NotNativeError: it is no TIFF, or some level is not JPEG in tiles.
        DamagedPyramidError: a level's table of tiles is not one.
    """
    with path.open("rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            raise NotNativeError("it is no TIFF file")
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            tiled = {(page.imagewidth, page.imagelength): page for page in pages if page.is_tiled}
            if any(size not in tiled for size in level_sizes):
                raise NotNativeError("its levels are not all tiled images of one TIFF file")
            return tuple(_level(path, tiled[size]) for size in level_sizes)
    except (NotNativeError, DamagedPyramidError):
        raise
    except Exception as error:  # a damaged directory fails in many ways
        kind = type(error).__name__
        raise NotNativeError(f"its TIFF directory cannot be read ({kind})") from error


def _level(path: Path, page: tifffile.TiffPage) -> JpegLevel:
    if page.compression != tifffile.COMPRESSION.JPEG:
        name = getattr(page.compression, "name", str(page.compression))
        raise NotNativeError(f"its tiles are compressed as {name}, not JPEG")
    if (page.samplesperpixel, page.bitspersample, page.planarconfig) != (3, 8, 1):
        raise NotNativeError("its pixels are not red, green and blue of 8 bits")
    if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        raise NotNativeError(
            f"its colours are stored as {getattr(page.photometric, 'name', page.photometric)}"
        )
    columns = -(-page.imagewidth // page.tilewidth)
    rows = -(-page.imagelength // page.tilelength)
    offsets = np.array(page.dataoffsets, np.int64)
    counts = np.array(page.databytecounts, np.int64)
    tiles = columns * rows
    if not 0 < tiles < MOST_TILES or {len(offsets), len(counts)} != {tiles}:
        raise DamagedPyramidError(
            f"it is {page.imagewidth} x {page.imagelength} px in tiles of {page.tilewidth} x "
            f"{page.tilelength} px, which makes {tiles} tiles, and lists {len(offsets)} places and "
            f"{len(counts)} lengths"
        )
    prefix = b""
    if page.photometric == tifffile.PHOTOMETRIC.RGB:
        prefix += RGB_MARKER
    tables = page.jpegtables
    if tables:
        prefix += tables.removeprefix(_START).removesuffix(_END)
    return JpegLevel(
        path=path,
        width_px=page.imagewidth,
        height_px=page.imagelength,
        tile_width_px=page.tilewidth,
        tile_height_px=page.tilelength,
        # As lists: one number of an array takes numpy as long as the rest of the look-up.
        offsets=offsets.tolist(),
        counts=counts.tolist(),
        shared=_overlapping(offsets, counts).tolist(),
        prefix=prefix,
    )


def _overlapping(offsets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which tiles have the very bytes of another one; a range that ends elsewhere has no end
    marker where it should, and is found when it is decoded."""
    order = np.lexsort((counts, offsets))
    same = (np.diff(offsets[order]) == 0) & (np.diff(counts[order]) == 0)
    shared = np.zeros(len(offsets), bool)
    shared[order[1:]] |= same
    shared[order[:-1]] |= same
    return shared & (counts > 0)


def read_tile_bytes(descriptor: int, level: JpegLevel, row: int, column: int) -> bytes:
    """The stored bytes of a native tile; empty where the scanner left it out.

    Raises:
        RegionUnreadableError: they cannot be had, or are those of another tile too.
    """
    index = row * level.columns + column
    offset, count = level.offsets[index], level.counts[index]
    before = ITEM_HEADER.size if level.in_items else 0
    if count == 0 and not level.in_items:
        return b""
    where = f"native tile {column}, {row}"
    if level.shared[index]:
        raise RegionUnreadableError(f"{where} has the bytes of another tile")
    if offset <= before or count < 0 or offset + count > os.fstat(descriptor).st_size:
        raise RegionUnreadableError(f"{where} lies outside the file")
    try:
        data = os.pread(descriptor, before + count, offset - before)
    except OSError as error:
        raise RegionUnreadableError(f"{where}: {error.strerror}") from error
    if len(data) != before + count:
        raise RegionUnreadableError(f"{where} is cut short")
    if not level.in_items:
        return data
    # A table of offsets may leave out the byte that fills an item up to an even length.
    if ITEM_HEADER.unpack_from(data) not in ((ITEM_TAG, count), (ITEM_TAG, count + count % 2)):
        raise RegionUnreadableError(f"{where} is not the item that the table of offsets says")
    return data[before:]


def decode_native_tile(level: JpegLevel, data: bytes, reduction: int) -> np.ndarray:
    """Decode a native tile to 1/``reduction`` of its sides: uint8, height x width x 3, RGB.

    Raises:
        RegionUnreadableError: its stream is not one whole JPEG image of the tile's size.
    """
    if not data.startswith(_START):
        raise RegionUnreadableError("a native tile does not begin as a JPEG image")
    if not data.endswith(_END) and not data.rstrip(b"\0").endswith(_END):
        raise RegionUnreadableError("a native tile does not end as a JPEG image")
    height, width = level.tile_height_px, level.tile_width_px
    # The decoder would set memory aside for whatever size a damaged header claims.
    if _claimed_size(data) != (height, width):
        raise RegionUnreadableError("a native tile claims another size")
    stream = whole_stream(level, data)
    try:
        pixels = simplejpeg.decode_jpeg(
            stream,
            colorspace="RGB",
            min_height=height // reduction,
            min_width=width // reduction,
            min_factor=reduction,
        )
    except ValueError as error:
        raise RegionUnreadableError(f"a native tile cannot be decoded: {error}") from error
    if pixels.shape != (height // reduction, width // reduction, 3):
        raise RegionUnreadableError("a native tile has another size")
    return pixels


def whole_stream(level: JpegLevel, data: bytes) -> bytes:
    """A native tile's bytes with what they lack to be a JPEG image on their own."""
    return _START + level.prefix + data[2:] if level.prefix else data


def _claimed_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG's frame header, or None where there is none."""
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        if marker == 0xDA:
            return None
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None
