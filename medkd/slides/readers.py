"""Which reader a slide gets, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.cucim_reader import cucim_now, open_cucim
from medkd.slides.dicom_tiles import read_dicom_levels
from medkd.slides.jpeg_reader import CACHE_BYTES, NATIVE_READER, JpegReader
from medkd.slides.jpeg_tiles import (
    DamagedPyramidError,
    JpegLevel,
    NotNativeError,
    read_jpeg_levels,
)
from medkd.slides.openslide_reader import OPENSLIDE_READER, OpenSlideReader, open_openslide
from medkd.slides.reader import SlideReader

# Formats whose levels are whole tiled images of one TIFF file, nothing shifted or stitched.
_NATIVE_VENDORS = ("aperio", "generic-tiff", "philips")


def open_reader(
    path: Path,
    parameters: TileConfig,
    *,
    slide_id: str | None = None,
    table_mpp: float | None = None,
    override_mpp: float | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> SlideReader:
    """Open the slide at ``path`` with the reader that ``parameters.reader`` asks for.

    OpenSlide opens every slide and says what it is. With ``auto`` a pyramid of JPEG tiles is then
    read from these tiles, every other slide through OpenSlide; ``reader_reason`` says why. A reader
    that was asked for by name is never exchanged for another, and cuCIM reads only where it was
    asked for. ``cache_bytes`` bounds the decoded native tiles that are kept.

    Raises:
        SlideError: as :func:`medkd.slides.openslide_reader.open_openslide`, or ``not_native_jpeg``,
            or ``damaged_pyramid``, or as :func:`medkd.slides.cucim_reader.open_cucim`.
    """
    reader = open_openslide(
        path, parameters, slide_id=slide_id, table_mpp=table_mpp, override_mpp=override_mpp
    )
    if parameters.reader == "openslide":
        reader.properties = replace(reader.properties, reader_reason="asked for")
        return reader
    try:
        if parameters.reader == "cucim":
            checked = open_cucim(reader)
            reader.close()
            return checked
        levels = _native_levels(reader)
    except NotNativeError as error:
        if parameters.reader == "jpeg":
            reader.close()
            raise SlideError(
                "not_native_jpeg",
                f"cannot be read from native JPEG tiles: {error}",
                where=path,
                remedy="Set tile.reader to auto or openslide.",
            ) from error
        reader.properties = replace(reader.properties, reader_reason=str(error))
        return reader
    except DamagedPyramidError as error:
        reader.close()
        raise SlideError(
            "damaged_pyramid",
            f"is damaged: {error}",
            where=path,
            remedy="Copy or export the slide again.",
        ) from error
    except BaseException:
        reader.close()
        raise
    reader.close()
    properties = replace(
        reader.properties,
        reader=NATIVE_READER,
        reader_reason="asked for" if parameters.reader == "jpeg" else "it is JPEG in tiles",
    )
    return JpegReader(properties, reader.warnings, levels, cache_bytes=cache_bytes)


def reader_now(reader: str) -> str:
    """Name and version of what reads today what ``reader`` read, as a record says it."""
    if reader.startswith("native JPEG"):
        return NATIVE_READER
    return cucim_now() if reader.startswith("cuCIM") else OPENSLIDE_READER


def _native_levels(reader: OpenSlideReader) -> tuple[JpegLevel, ...]:
    vendor = reader.properties.vendor
    if vendor not in ("dicom", *_NATIVE_VENDORS):
        raise NotNativeError(f"{vendor} slides are read through OpenSlide")
    if reader.properties.icc == "applied":
        raise NotNativeError("its ICC profile is applied")
    find = read_dicom_levels if vendor == "dicom" else read_jpeg_levels
    return find(reader.properties.path, reader.level_sizes)
