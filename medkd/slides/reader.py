"""What a slide reader is: the one seam between file formats and everything that uses slides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class RegionUnreadableError(Exception):
    """A region's pixels cannot be had. The reader itself stays usable."""


@dataclass(frozen=True)
class SlideProperties:
    """What is known of a slide before any pixel is used.

    Attributes:
        slide_id: its name in tables and reports.
        path: of its file.
        width_px, height_px: of level 0.
        mpp: micrometres per pixel of level 0, the value that is believed.
        mpp_source: ``--mpp``, ``slides.csv``, ``metadata`` or ``objective power``.
        vendor: the format as the reading library names it.
        objective_power: as the file says; None where it says nothing.
        synthetic: drawn by this project, not scanned; outputs made from it must say so.
        fingerprint: of the file's content, see :func:`medkd.slides.openslide_reader.fingerprint`.
        level_downsamples: of each level of the pyramid, the first is 1.
        reader: name and version of the reading library.
        reader_reason: why this one reads it.
        icc: ``none``, ``ignored`` or ``applied``: the slide's ICC profile.
        icc_description: what the profile calls itself.
    """

    slide_id: str
    path: Path
    width_px: int
    height_px: int
    mpp: float
    mpp_source: str
    vendor: str
    objective_power: float | None
    synthetic: bool
    fingerprint: str
    level_downsamples: tuple[float, ...]
    reader: str
    reader_reason: str
    icc: str
    icc_description: str


class SlideReader(Protocol):
    """Reads pixels of one open slide at any resolution. Not shared between processes."""

    @property
    def properties(self) -> SlideProperties:
        """What is known of the slide."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about this slide's metadata, a sentence each."""

    def read_region(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> np.ndarray:
        """Read a region, resampled to ``mpp``.

        Args:
            x, y: its top left corner, level-0 pixels.
            width_px, height_px: its size in pixels of ``mpp``.
            mpp: wanted micrometres per pixel.

        Returns:
            uint8, height_px x width_px x 3, RGB; what the scanner left out is white.

        Raises:
            RegionUnreadableError: some of its pixels cannot be decoded.
            ValueError: it reaches beyond the bounds of level 0.
        """

    def read_tiles(
        self, places: Iterable[tuple[float, float]], size_px: int, mpp: float, *, threads: int = 1
    ) -> Iterator[np.ndarray | RegionUnreadableError]:
        """Read tiles along a sweep; row by row is fastest.

        Args:
            places: their top left corners, level-0 pixels.
            size_px: side of a tile, pixels of ``mpp``.
            mpp: wanted micrometres per pixel.
            threads: a reader that can, decodes with so many.

        Yields:
            For each place what :meth:`read_region` returns, or the error that it raises where the
            tile cannot be read.

        Raises:
            ValueError: a tile reaches beyond the bounds of level 0.
        """

    def native_jpeg(self, x: int, y: int, size_px: int, mpp: float) -> bytes | None:
        """The slide's own JPEG of this tile, where the tile is just one of its native tiles.

        Args:
            x, y: the tile's top left corner, level-0 pixels.
            size_px: its side, pixels of ``mpp``.
            mpp: micrometres per pixel.

        Returns:
            A whole JPEG stream that decodes to what :meth:`read_region` returns, or None.
        """

    def thumbnail(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Read the whole slide at ``mpp``, whole pixels only (a rest at the edges is left out).

        Returns:
            The image, uint8, height x width x 3, RGB, and where it could be read, bool,
            height x width. Pixels that could not be read are white.
        """

    def close(self) -> None:
        """Release the file."""
