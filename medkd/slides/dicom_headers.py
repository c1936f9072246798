"""What the files of a DICOM slide say of themselves, and which files make up one slide.

Each level is a file of its own; those of one slide lie in one folder and share their series. Only
headers are read, never a file as a whole.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
"""How its frames are compressed, as :attr:`DicomHeader.transfer_syntax`."""

_WHOLE_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DEFLATED = "1.2.840.10008.1.2.1.99"

# Functional groups begin here: of a sparse slide they are megabytes, and nothing of them is used.
_FUNCTIONAL_GROUPS = 0x52000000

_KEYWORDS = (
    "BitsAllocated",
    "Columns",
    "ConcatenationUID",
    "DimensionOrganizationType",
    "ImageType",
    "NumberOfFrames",
    "NumberOfOpticalPaths",
    "PhotometricInterpretation",
    "Rows",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixFocalPlanes",
    "TotalPixelMatrixRows",
)


@dataclass(frozen=True)
class DicomHeader:
    """What one file says of itself; text that it lacks is empty, a number zero.

    Attributes:
        series: identifier that the files of a slide share.
        transfer_syntax: identifier of how its frames are compressed.
        flavour: ``VOLUME`` for a level of the pyramid.
        organization: the order of its frames, such as ``TILED_FULL``.
        width_px, height_px: of the level that the frames cover.
        tile_width_px, tile_height_px: of a frame.
        frames: their number.
        samples, bits: numbers in a pixel, and bits of each.
        photometric: what these numbers mean.
        optical_paths, focal_planes: how many images of the level there are.
        is_concatenated: this is one of several files that only together are a level.
    """

    series: str
    transfer_syntax: str
    flavour: str
    organization: str
    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    frames: int
    samples: int
    bits: int
    photometric: str
    optical_paths: int
    focal_planes: int
    is_concatenated: bool


def series_files(path: Path) -> tuple[Path, ...]:
    """The files of a DICOM slide: ``path`` and those of its series beside it, in order of name.

    Any other file is alone.

    Raises:
        OSError: ``path`` or its folder cannot be read.
    """
    header = dicom_header(path)
    if header is None:
        return (path,)
    found = {path.name: path}
    with os.scandir(path.parent) as entries:
        for entry in entries:
            try:
                other = dicom_header(Path(entry.path)) if entry.is_file() else None
            except OSError:  # OpenSlide, too, goes on without it
                continue
            if other is not None and other.series == header.series:
                found.setdefault(entry.name, path.parent / entry.name)
    return tuple(found[name] for name in sorted(found))


def dicom_header(path: Path) -> DicomHeader | None:
    """The header of a DICOM whole-slide image; None for any other file, or one that is damaged.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _read_header(path, (status.st_size, status.st_mtime_ns))


# A folder may hold the files of many slides, and each slide asks for the headers of all.
@functools.lru_cache(maxsize=2**14)
def _read_header(path: Path, version: tuple[int, int]) -> DicomHeader | None:  # noqa: ARG001
    with path.open("rb") as file:
        file.seek(128)
        if file.read(4) != b"DICM":
            return None
    from pydicom.filereader import read_file_meta_info, read_partial
    from pydicom.tag import Tag

    try:
        # Names that are longer than they should be, and the like, are nothing to tell of here.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            meta = read_file_meta_info(path)
            syntax = str(meta.TransferSyntaxUID)
            # To look into a deflated file, all of it would have to be inflated.
            if meta.MediaStorageSOPClassUID != _WHOLE_SLIDE_CLASS or syntax == _DEFLATED:
                return None
            content = read_partial(
                file,
                stop_when=lambda tag, _vr, _length: tag >= _FUNCTIONAL_GROUPS,
                specific_tags=[Tag(keyword) for keyword in _KEYWORDS],
            )
            return _header_of(content, syntax)
    except OSError:
        raise
    except Exception:  # a damaged header fails in many ways
        return None


def _header_of(content: Any, transfer_syntax: str) -> DicomHeader:
    def number(keyword: str, absent: int = 0) -> int:
        value = content.get(keyword)
        return absent if value is None else int(value)

    image_type: Sequence[Any] = content.get("ImageType") or ()
    return DicomHeader(
        series=str(content.SeriesInstanceUID),
        transfer_syntax=transfer_syntax,
        flavour=str(image_type[2]) if len(image_type) > 2 else "",
        organization=str(content.get("DimensionOrganizationType") or ""),
        width_px=number("TotalPixelMatrixColumns"),
        height_px=number("TotalPixelMatrixRows"),
        tile_width_px=number("Columns"),
        tile_height_px=number("Rows"),
        frames=number("NumberOfFrames", 1),
        samples=number("SamplesPerPixel"),
        bits=number("BitsAllocated"),
        photometric=str(content.get("PhotometricInterpretation") or ""),
        optical_paths=number("NumberOfOpticalPaths", 1),
        focal_planes=number("TotalPixelMatrixFocalPlanes", 1),
        is_concatenated="ConcatenationUID" in content,
    )
