"""The native tiles of a DICOM whole-slide image: where in the files of its levels the frames lie.

A level's frames are items behind each other, each with a header of 8 bytes that says its length.
Files are never read as a whole: all that is read to find the frames is their tables of offsets, or
the headers of the items.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from medkd.slides.dicom_headers import JPEG_BASELINE, DicomHeader, dicom_header, series_files
from medkd.slides.jpeg_tiles import (
    ITEM_HEADER,
    ITEM_TAG,
    MOST_TILES,
    RGB_MARKER,
    DamagedPyramidError,
    JpegLevel,
    NotNativeError,
)

_END_OF_ITEMS_TAG = 0xE0DDFFFE  # as ITEM_TAG: group and element, little-endian
_UNDEFINED_LENGTH = 0xFFFFFFFF

# In a file in this order: extended offset table, its lengths, pixel data.
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS, _PIXEL_DATA = 0x7FE00001, 0x7FE00002, 0x7FE00010

# Frames, spread over a level, that are looked at before it is taken for native, and how much of
# each: a stream says at its beginning what its colours are.
_SAMPLES = 16
_SAMPLE_BYTES = 4096

# Where frames lie in the file and how many bytes they have, int64.
_Table: TypeAlias = tuple[np.ndarray, np.ndarray]


def read_dicom_levels(path: Path, level_sizes: Sequence[tuple[int, int]]) -> tuple[JpegLevel, ...]:
    """Find the levels of a DICOM slide in the files of its series.

    Args:
        path: of any of its files.
        level_sizes: width and height of each level as OpenSlide sees them, level 0 first.

    Raises:
        NotNativeError: some level is not JPEG in tiles, or not in the order of TILED_FULL.
        DamagedPyramidError: a level has not the frames that its size needs.
    """
    try:
        headers = [(file, dicom_header(file)) for file in series_files(path)]
        volumes = [
            (file, header)
            for file, header in headers
            if header is not None and header.flavour == "VOLUME"
        ]
        return tuple(_level(volumes, *size) for size in level_sizes)
    except OSError as error:
        raise NotNativeError(f"its files cannot be read ({error.strerror})") from error


def _level(volumes: Sequence[tuple[Path, DicomHeader]], width_px: int, height_px: int) -> JpegLevel:
    found = [
        (path, header)
        for path, header in volumes
        if (header.width_px, header.height_px) == (width_px, height_px)
    ]
    if any(header.is_concatenated for _, header in found):
        raise NotNativeError("a level of it is a concatenation of files")
    if len(found) != 1:
        number = len(found) or "no"
        raise NotNativeError(f"{number} files have its level of {width_px} x {height_px} px")
    path, header = found[0]
    _check(header)
    with path.open("rb") as file:
        offsets, counts = _frames(file, header)
        _check_colours(file.fileno(), header, (offsets, counts))
    return JpegLevel(
        path=path,
        width_px=width_px,
        height_px=height_px,
        tile_width_px=header.tile_width_px,
        tile_height_px=header.tile_height_px,
        offsets=offsets.tolist(),
        counts=counts.tolist(),
        # Frames lie behind each other: a table that says otherwise was not believed.
        shared=[False] * len(offsets),
        prefix=RGB_MARKER if header.photometric == "RGB" else b"",
        in_items=True,
    )


def _check(header: DicomHeader) -> None:
    if header.transfer_syntax != JPEG_BASELINE:
        from pydicom.uid import UID

        syntax = UID(header.transfer_syntax)
        is_compressed = syntax.is_transfer_syntax and syntax.is_compressed
        how = f"compressed as {syntax.name}" if is_compressed else "not compressed"
        raise NotNativeError(f"its frames are {how}, not JPEG baseline")
    if header.organization != "TILED_FULL":
        how = header.organization or "placed in a way that is not told"
        raise NotNativeError(f"its frames are {how}, not TILED_FULL")
    if (header.samples, header.bits) != (3, 8):
        raise NotNativeError("its pixels are not red, green and blue of 8 bits")
    if header.photometric not in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        raise NotNativeError(f"its colours are stored as {header.photometric}")
    if header.optical_paths > 1:
        raise NotNativeError("it has several optical paths")
    if header.focal_planes > 1:
        raise NotNativeError("it has several focal planes")
    if not (header.tile_width_px and header.tile_height_px):
        raise _wrong_number(header, header.frames)
    needed = -(-header.width_px // header.tile_width_px) * -(
        -header.height_px // header.tile_height_px
    )
    if needed and header.frames > needed and header.frames % needed == 0:
        raise NotNativeError("it has several frames for each place")
    if header.frames != needed or not 0 < needed < MOST_TILES:
        raise _wrong_number(header, header.frames)


def _wrong_number(header: DicomHeader, frames: int) -> DamagedPyramidError:
    return DamagedPyramidError(
        f"it is {header.width_px} x {header.height_px} px in tiles of {header.tile_width_px} x "
        f"{header.tile_height_px} px and has {frames} frames"
    )


def _frames(file: BinaryIO, header: DicomHeader) -> _Table:
    """From the extended offset table, else the basic one, else from item to item.

    A table that does not run from the first item on, frame behind frame, or that the items gainsay
    is not believed where the items themselves lead from the first frame to the last.
    """
    first, table = _read_table(file, header.frames)
    if table is not None and _fits_items(file.fileno(), table):
        return table
    offsets, counts = _walk(file.fileno(), first, header.frames)
    if len(offsets) > header.frames:
        raise NotNativeError("its frames are stored in several fragments")
    missing = header.frames - len(offsets)
    if missing and table is not None:
        return table
    if missing:
        end = offsets[-1] + counts[-1] if offsets else first
        mark = os.pread(file.fileno(), 8, end)
        if len(mark) == 8 and ITEM_HEADER.unpack(mark)[0] == _END_OF_ITEMS_TAG:
            raise _wrong_number(header, len(offsets))
        # Those behind an item that is damaged or cut short: where no bytes are, unreadable.
        beyond = os.fstat(file.fileno()).st_size + 1
        offsets += range(beyond, beyond + missing)
        counts += [1] * missing
    return np.array(offsets, np.int64), np.array(counts, np.int64)


def _read_table(file: BinaryIO, frames: int) -> tuple[int, _Table | None]:
    """Where the first item with a frame begins, and what the tables of offsets say."""
    _seek_tables(file)
    extended: dict[int, np.ndarray] = {}
    while True:
        # All elements from here on are of the long form.
        element = file.read(12)
        if len(element) < 12:
            raise NotNativeError("its frames cannot be found")
        group, number, _, length = struct.unpack("<HH4sI", element)
        tag = group << 16 | number
        if tag == _PIXEL_DATA:
            break
        if tag in (_EXTENDED_OFFSETS, _EXTENDED_LENGTHS) and length == 8 * frames:
            extended[tag] = _numbers(file, frames, "<u8")
        else:
            file.seek(length, os.SEEK_CUR)
    tag, table_bytes = ITEM_HEADER.unpack(file.read(8).ljust(8, b"\0"))
    if length != _UNDEFINED_LENGTH or tag != ITEM_TAG:
        raise NotNativeError("its frames cannot be found")
    first = file.tell() + table_bytes
    if len(extended) == 2:
        starts, counts = extended[_EXTENDED_OFFSETS], extended[_EXTENDED_LENGTHS]
        if _in_a_row(starts, counts):
            return first, (starts + first + 8, counts)
    if table_bytes == 4 * frames:
        starts = _numbers(file, frames, "<u4")
        last = _item(file.fileno(), first + int(starts[-1]))
        # Without the last item's header its frame is unreadable, whatever is put down here.
        counts = np.append(np.diff(starts) - 8, 1 if last is None else last)
        if _in_a_row(starts, counts):
            return first, (starts + first + 8, counts)
    return first, None


def _numbers(file: BinaryIO, count: int, kind: str) -> np.ndarray:
    data = file.read(count * np.dtype(kind).itemsize)
    if len(data) != count * np.dtype(kind).itemsize:
        raise NotNativeError("its table of frames is cut short")
    return np.frombuffer(data, kind).astype(np.int64)


def _seek_tables(file: BinaryIO) -> None:
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_partial(
                file,
                stop_when=lambda tag, _vr, _length: tag >= _EXTENDED_OFFSETS,
                specific_tags=[Tag("SOPInstanceUID")],
            )
        except OSError:
            raise
        except Exception as error:  # a damaged header fails in many ways
            kind = type(error).__name__
            raise NotNativeError(f"its DICOM header cannot be read ({kind})") from error


def _in_a_row(starts: np.ndarray, counts: np.ndarray) -> bool:
    """Whether frames begin with the first item and follow each other without a gap; each has a
    header of 8 bytes, and is filled up to an even length."""
    if starts[0] != 0 or counts.min() < 0:
        return False
    ends = starts + 8 + counts + counts % 2
    return bool((ends[:-1] == starts[1:]).all())


def _samples(table: _Table) -> Iterator[tuple[int, int]]:
    """Offset and count of some frames, spread over the level."""
    offsets, counts = table
    step = max(len(offsets) // _SAMPLES, 1)
    yield from zip(offsets[::step].tolist(), counts[::step].tolist(), strict=True)


def _fits_items(descriptor: int, table: _Table) -> bool:
    """Whether the samples' items have the lengths that the table says; where there is no item
    header, that one frame is unreadable, and the table may be right."""
    return all(
        _item(descriptor, offset - 8) in (None, count, count + count % 2)
        for offset, count in _samples(table)
    )


def _item(descriptor: int, position: int) -> int | None:
    """The length that the item at ``position`` says; None where there is none."""
    header = os.pread(descriptor, 8, position)
    if len(header) < 8:
        return None
    tag, length = ITEM_HEADER.unpack(header)
    return length if tag == ITEM_TAG else None


def _walk(descriptor: int, first: int, frames: int) -> tuple[list[int], list[int]]:
    """From item to item, one beyond the wanted number of frames at most."""
    offsets: list[int] = []
    counts: list[int] = []
    position = first
    while len(offsets) <= frames and (length := _item(descriptor, position)) is not None:
        offsets.append(position + 8)
        counts.append(length)
        position += 8 + length
    return offsets, counts


def _check_colours(descriptor: int, header: DicomHeader, table: _Table) -> None:
    """OpenSlide believes the header, the decoder here the streams: let them agree.

    Raises:
        NotNativeError: a sample says that it has other colours than the header.
    """
    for offset, count in _samples(table):
        said = _says_rgb(os.pread(descriptor, min(count, _SAMPLE_BYTES), offset))
        if said is not None and said != (header.photometric == "RGB"):
            raise NotNativeError(
                f"its colours are stored as {header.photometric}, but its frames say otherwise"
            )


def _says_rgb(data: bytes) -> bool | None:
    """Whether a JPEG stream says by itself that it is RGB, or that it is not; None: neither.

    In the decoder's order: JFIF's marker, Adobe's marker, the names of the components.
    """
    adobe: bool | None = None
    position = 2
    while position + 10 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        body = data[position + 4 : position + 24]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            return False
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            adobe = body[11] == 0
        if marker in (0xC0, 0xC1, 0xC2):
            return adobe if adobe is not None else body[6:15:3] == b"RGB" or None
        if marker == 0xDA:
            break
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return adobe
