"""Slides through OpenSlide: every format it knows, region by region."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.colour import Colour, colour_of
from medkd.slides.dicom_headers import series_files
from medkd.slides.reader import RegionUnreadableError, SlideProperties
from medkd.slides.regions import (
    check_bounds,
    finest_needed,
    level_window,
    read_in_turn,
    read_thumbnail,
    resampled,
)
from medkd.slides.resolution import MppMetadata, Resolution, believed_resolution

OPENSLIDE_READER = f"openslide {openslide.__library_version__}"
"""As it stands in the record of a slide."""

_FINGERPRINT_BLOCKS = 16
_FINGERPRINT_BLOCK_BYTES = 4096


class OpenSlideReader:
    """A :class:`medkd.slides.reader.SlideReader` over an OpenSlide handle.

    Made by :func:`open_openslide`.

    Attributes:
        properties, warnings: see the protocol.
        level_sizes: width and height of each level, pixels.
    """

    def __init__(
        self,
        handle: openslide.OpenSlide,
        properties: SlideProperties,
        warnings: tuple[str, ...],
        colour: Colour,
    ) -> None:
        self._handle: openslide.OpenSlide | None = handle
        self._colour = colour
        self.level_sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.properties = properties
        self.warnings = warnings

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Read from the next finer level and resample; see the protocol."""
        properties = self.properties
        scale = mpp / properties.mpp
        extent = width_px * scale, height_px * scale
        check_bounds(properties, x, y, *extent)
        level, downsample = self._level_for(scale)
        # Begin on a whole pixel of the level: OpenSlide would blur a fraction of one.
        left, top = (math.floor(math.floor(max(at, 0) / downsample) * downsample) for at in (x, y))
        window = level_window((x, y), extent, (left, top), downsample, self.level_sizes[level])
        image = self._read_level(left, top, level, window.size)
        return resampled(image, (width_px, height_px), window.box)

    def read_tiles(
        self,
        places: Iterable[tuple[float, float]],
        size_px: int,
        mpp: float,
        *,
        threads: int = 1,  # noqa: ARG002  # OpenSlide's own cache is not faster with more
    ) -> Iterator[np.ndarray | RegionUnreadableError]:
        """Read tiles one after the other; see the protocol."""
        return read_in_turn(self, places, size_px, mpp)

    def native_jpeg(self, x: int, y: int, size_px: int, mpp: float) -> bytes | None:  # noqa: ARG002
        """None: OpenSlide does not give the bytes away."""
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
        level = finest_needed(self.properties.level_downsamples, scale)
        return level, self.properties.level_downsamples[level]

    def _read_level(self, x: int, y: int, level: int, size: tuple[int, int]) -> Image.Image:
        try:
            if self._handle is None:
                self._handle = openslide.OpenSlide(self.properties.path)
            region = self._handle.read_region((x, y), level, size)
        except (openslide.OpenSlideError, OSError) as error:
            # After one error OpenSlide's handle refuses every later read: begin a new one.
            self.close()
            raise RegionUnreadableError(str(error)) from error
        image = self._colour(region.convert("RGB"))
        alpha = region.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return image
        # What the scanner left out has no colour to be corrected: it is white.
        image.putalpha(alpha)
        white = Image.new("RGBA", region.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")


def open_openslide(
    path: Path,
    parameters: TileConfig,
    *,
    slide_id: str | None = None,
    table_mpp: float | None = None,
    override_mpp: float | None = None,
) -> OpenSlideReader:
    """Open the slide at ``path`` and settle its resolution.

    Raises:
        SlideError: it cannot be opened, or :func:`believed_resolution` or :func:`colour_of`
            refuses it.
    """
    handle = _open_handle(path)
    try:
        resolution = believed_resolution(
            _mpp_metadata(handle), parameters, path, table_mpp=table_mpp, override_mpp=override_mpp
        )
        colour = colour_of(handle, parameters, path)
        properties = _properties(handle, path, slide_id or path.stem, resolution, colour)
    except BaseException:
        handle.close()
        raise
    warnings = resolution.warnings
    if parameters.icc == "apply" and colour.icc == "none":
        warnings += ("it has no ICC profile: its colours are used as they are",)
    return OpenSlideReader(handle, properties, warnings, colour)


def fingerprint(path: Path) -> str:
    """SHA-256 over the file's size and 16 blocks of 4 KiB spread evenly from end to end.

    Of a DICOM slide, over all files of its series: the same, whichever of them was named, and
    whatever they are called. Cheap for any size. It tells one scan from another, and a re-exported
    or truncated file from what it was; it is no checksum of every byte.

    Raises:
        OSError: a file cannot be read.
    """
    digests = sorted(_file_fingerprint(file) for file in series_files(path))
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(size - _FINGERPRINT_BLOCK_BYTES, 0)
    with path.open("rb") as file:
        for block in range(_FINGERPRINT_BLOCKS):
            file.seek(last * block // (_FINGERPRINT_BLOCKS - 1))
            digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        # OpenSlide tells every refusal of the system as 'unsupported or missing'.
        with path.open("rb") as file:
            file.read(1)
    except IsADirectoryError:
        raise SlideError(
            "is_a_folder",
            "is a folder, not a slide",
            where=path,
            remedy="Name the slide's file; of a MIRAX slide the .mrxs file, of a DICOM series "
            "one of its .dcm files.",
        ) from None
    except FileNotFoundError:
        raise SlideError(
            "no_such_file", "no such file", where=path, remedy="Correct the slide's path."
        ) from None
    except PermissionError:
        raise SlideError(
            "no_permission",
            "no permission to read it",
            where=path,
            remedy=f"Give the user {_user()} the right to read the file and its folders.",
        ) from None
    except OSError as error:
        raise SlideError(
            "unreadable_file",
            f"cannot be read: {error.strerror or error}",
            where=path,
            remedy="Check the disk or network drive that it lies on.",
        ) from error
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise _unknown_format(path) from None
    except openslide.OpenSlideError as error:
        reason = str(error).removeprefix(f"Reading {path}:").strip().rstrip(".")
        raise SlideError(
            "openslide_refused",
            f"OpenSlide cannot open it: {reason}",
            where=path,
            remedy="Check that the file was copied whole, or export it again as 8-bit RGB.",
        ) from None


def _unknown_format(path: Path) -> SlideError:
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        return SlideError(
            "empty_file", "is an empty file", where=path, remedy="Copy the slide again."
        )
    if magic[:2] in (b"II", b"MM"):
        try:
            # Pillow reads the first directory only, so this is cheap for any TIFF.
            with Image.open(path) as image:
                tiled = 322 in image.tag_v2  # type: ignore[attr-defined]  # TileWidth
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            tiled = True
        if not tiled:
            return SlideError(
                "untiled_tiff",
                "is an untiled TIFF, which cannot be read region by region",
                where=path,
                remedy="Convert it to a pyramidal tiled TIFF, for example with "
                "'vips tiffsave IN OUT --tile --pyramid', and give its mpp.",
            )
    return SlideError(
        "unknown_format",
        "is not a slide in a format that OpenSlide knows",
        where=path,
        remedy="Check that the file was copied whole; otherwise convert it to a pyramidal tiled "
        "TIFF.",
    )


def _mpp_metadata(handle: openslide.OpenSlide) -> MppMetadata:
    return MppMetadata(
        mpp_x=_positive(handle, openslide.PROPERTY_NAME_MPP_X),
        mpp_y=_positive(handle, openslide.PROPERTY_NAME_MPP_Y),
        objective_power=_positive(handle, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
    )


def _positive(handle: openslide.OpenSlide, name: str) -> float | None:
    try:
        value = float(handle.properties.get(name, "nan"))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _properties(
    handle: openslide.OpenSlide, path: Path, slide_id: str, resolution: Resolution, colour: Colour
) -> SlideProperties:
    width_px, height_px = handle.dimensions
    return SlideProperties(
        slide_id=slide_id,
        path=path,
        width_px=width_px,
        height_px=height_px,
        mpp=resolution.mpp,
        mpp_source=resolution.source,
        vendor=handle.properties.get(openslide.PROPERTY_NAME_VENDOR, ""),
        objective_power=_positive(handle, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
        synthetic=handle.properties.get("aperio.Synthetic") == "medkd",
        fingerprint=fingerprint(path),
        level_downsamples=tuple(handle.level_downsamples),
        reader=OPENSLIDE_READER,
        reader_reason="",
        icc=colour.icc,
        icc_description=colour.description,
    )


def _user() -> str:
    # Windows has no numeric user.
    return str(os.getuid()) if hasattr(os, "getuid") else "of this process"
