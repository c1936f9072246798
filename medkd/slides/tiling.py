"""From a slide to its tiles: the one path that ``tile`` and ``infer`` share.

Every candidate on the grid meets exactly one fate, and is counted. What the thumbnail shows to be
background, pen, black or a fold is settled without reading it; the rest is read at the wanted
resolution and judged by :func:`medkd.slides.judging.judge_tile`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.annotations import Annotations
from medkd.slides.folds import find_folds, typical_stain
from medkd.slides.judging import (
    ANNOTATION,
    BACKGROUND,
    BLACK,
    FOLD,
    MAX_BLACK,
    PEN,
    REJECTIONS,
    UNREADABLE,
    USED,
    judge_tile,
)
from medkd.slides.quality import COARSE_MPP, area_mm2, black_mask, find_pen
from medkd.slides.reader import RegionUnreadableError, SlideProperties, SlideReader
from medkd.slides.readers import open_reader
from medkd.slides.store import decode_tile, encode_tile
from medkd.slides.tissue import find_tissue

# A tile of which less than this lies where annotations want it is refused.
_LEAST_WANTED = 0.5


# At 8 um/px that is 28 mm by 28 mm.
_MOST_THUMBNAIL_PX = 12_500_000


@dataclass(frozen=True)
class Tile:
    """One candidate of the grid.

    Attributes:
        x, y: its top left corner, level-0 pixels.
        fate: ``used``, ``unreadable``, or why it was rejected, one of :data:`REJECTIONS`.
        tissue_fraction: share of it that is tissue on the thumbnail; by its own pixels where
            the thumbnail could not be read, nan where neither could.
        focus: see :func:`medkd.slides.quality.focus_score`; nan where it was not measured.
        pixels: uint8, size_px x size_px x 3, RGB; None unless it is used.
    """

    x: int
    y: int
    fate: str
    tissue_fraction: float
    focus: float
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class TileCounts:
    """Tiles by fate; ``candidate == used + unreadable + sum(rejected.values())``."""

    candidate: int
    used: int
    unreadable: int
    rejected: dict[str, int]

    @classmethod
    def of(cls, fates: Iterable[str]) -> TileCounts:
        """Count ``fates``; every reason of :data:`REJECTIONS` is there, if only as zero."""
        counts = Counter(fates)
        return cls(
            candidate=counts.total(),
            used=counts[USED],
            unreadable=counts[UNREADABLE],
            rejected={reason: counts[reason] for reason in REJECTIONS},
        )


class ScannedSlide:
    """An open slide with its thumbnail, tissue and grid. A context manager.

    Made by :func:`open_slide_for_tiling`.

    Attributes:
        properties: of the slide.
        parameters: how it is tiled.
        thumbnail: uint8, height x width x 3, RGB.
        thumbnail_mpp: micrometres per pixel of the thumbnail.
        tissue_mask: bool, the size of the thumbnail.
        tissue_area_mm2: of the mask.
        warnings: what is odd about the slide, a sentence each.
        tile_extent_px: side of a tile in level-0 pixels.
    """

    def __init__(
        self, reader: SlideReader, parameters: TileConfig, annotations: Annotations | None = None
    ) -> None:
        self._reader = reader
        self._annotations = annotations
        self.properties: SlideProperties = reader.properties
        self.parameters = parameters
        scale = parameters.mpp / self.properties.mpp
        self.tile_extent_px = parameters.size_px * scale
        step_px = (parameters.step_px or parameters.size_px) * scale
        self._xs = _grid(self.properties.width_px, self.tile_extent_px, step_px)
        self._ys = _grid(self.properties.height_px, self.tile_extent_px, step_px)
        self._check_size()
        self.thumbnail_mpp = _thumbnail_mpp(self.properties)
        self.thumbnail, self._readable = reader.thumbnail(self.thumbnail_mpp)
        self._pen = find_pen(self.thumbnail, self.thumbnail_mpp)
        tissue = find_tissue(self.thumbnail, self.thumbnail_mpp, pen=self._pen)
        self.tissue_mask = tissue & self._readable
        self._stain = typical_stain(self.thumbnail, self.thumbnail_mpp, self.tissue_mask)
        self.tissue_area_mm2 = area_mm2(int(self.tissue_mask.sum()), self.thumbnail_mpp)
        self.warnings = reader.warnings + self._thumbnail_warnings()
        if annotations is not None:
            size = (self.properties.width_px, self.properties.height_px)
            self.warnings += annotations.warnings_on(*size)

    def __enter__(self) -> ScannedSlide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the slide's file."""
        self._reader.close()

    @property
    def candidates(self) -> int:
        """How many tiles lie fully inside the slide's bounds."""
        return len(self._xs) * len(self._ys)

    @property
    def to_read(self) -> int:
        """How many of them the thumbnail does not settle, so that they must be read."""
        return int((self._settled[0] == "").sum())

    def tiles(self, *, seed: int | None = None) -> Iterator[Tile]:
        """Every candidate exactly once, row by row, from the top left.

        Args:
            seed: of a random order instead: what the thumbnail settles comes first, then, drawn at
                random, the tiles that are read. Reading takes longer: few neighbours share what
                was decoded.

        Raises:
            SlideError: ``too_unreadable`` at the end, where more than ``max_unreadable`` of the
                tiles that had to be read could not be.
        """
        fates, tissue = self._settled
        order = np.argwhere(np.ones_like(fates, bool))
        if seed is not None:
            drawn = np.random.default_rng(seed).permutation(np.argwhere(fates == ""))
            order = np.concatenate([np.argwhere(fates != ""), drawn])
        wanted_places = (
            (self._xs[column], self._ys[row]) for row, column in order if fates[row, column] == ""
        )
        pixels = self._reader.read_tiles(
            wanted_places, self.parameters.size_px, self.parameters.mpp
        )
        read = unreadable = 0
        for row, column in order:
            x, y = self._xs[column], self._ys[row]
            fraction, fate = float(tissue[row, column]), str(fates[row, column])
            if fate:
                yield Tile(x, y, fate, fraction, math.nan)
                continue
            tile = self._judged(x, y, fraction, next(pixels))
            read += 1
            unreadable += tile.fate == UNREADABLE
            yield tile
        self._check_readable(read, unreadable)

    @cached_property
    def _settled(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each candidate, rows x columns: its fate by the thumbnail, empty where it must be
        read, and its share of tissue, nan where the thumbnail could not be read.
        """
        tissue = self._shares(self.tissue_mask)
        pen = self._shares(self._pen)
        black = self._shares(black_mask(self.thumbnail))
        folds = find_folds(self.thumbnail, self.thumbnail_mpp, self._stain, pen=self._pen)
        fold = self._shares(folds)
        unknown = self._shares(~self._readable) > 0
        fates = np.select(
            [
                unknown,
                black > MAX_BLACK,
                pen > self.parameters.max_pen,
                fold > self.parameters.max_fold,
            ],
            ["", BLACK, PEN, FOLD],
            np.where(tissue < self.parameters.min_tissue, BACKGROUND, ""),
        ).astype(object)
        if self._annotations is not None:
            scale = self.thumbnail_mpp / self.properties.mpp
            height, width = self.tissue_mask.shape
            wanted = self._shares(self._annotations.wanted(height, width, scale))
            fates[(wanted < _LEAST_WANTED) & (fates != BACKGROUND)] = ANNOTATION
        tissue[unknown] = math.nan
        return fates, tissue

    def _judged(
        self, x: int, y: int, tissue_fraction: float, pixels: np.ndarray | RegionUnreadableError
    ) -> Tile:
        """A tile that was read; ``tissue_fraction`` is nan where the thumbnail has none."""
        parameters = self.parameters
        if isinstance(pixels, RegionUnreadableError):
            return Tile(x, y, UNREADABLE, tissue_fraction, math.nan)
        judged = judge_tile(pixels, parameters, tissue_fraction=tissue_fraction, stain=self._stain)
        return Tile(x, y, *judged, pixels if judged.fate == USED else None)

    def stored_jpeg(self, tile: Tile) -> bytes | None:
        """What the store holds of a used tile; None where it holds places only.

        The slide's own JPEG where the tile is one native tile: no further loss. Else it is encoded.
        """
        parameters = self.parameters
        if parameters.store == "coordinates":
            return None
        native = self._reader.native_jpeg(tile.x, tile.y, parameters.size_px, parameters.mpp)
        if native is not None:
            return native
        assert tile.pixels is not None
        return encode_tile(tile.pixels, parameters.jpeg_quality)

    def learnt_pixels(self, tile: Tile) -> np.ndarray:
        """A used tile as training sees it: with what the store's JPEG took, if it holds JPEGs."""
        assert tile.pixels is not None
        jpeg = self.stored_jpeg(tile)
        return tile.pixels if jpeg is None else decode_tile(jpeg)

    def _shares(self, mask: np.ndarray) -> np.ndarray:
        """The share of each candidate that ``mask`` covers: float, rows x columns.

        Exact for masks of whole thumbnail pixels, whatever part of one a tile covers.
        """
        per_px = self.properties.mpp / self.thumbnail_mpp
        sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
        sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
        top, bottom, height = _edges(self._ys, self.tile_extent_px, per_px, mask.shape[0])
        left, right, width = _edges(self._xs, self.tile_extent_px, per_px, mask.shape[1])
        rows = _at(sums, bottom, axis=0) - _at(sums, top, axis=0)
        covered = _at(rows, right, axis=1) - _at(rows, left, axis=1)
        return covered / (height[:, None] * width[None, :])

    def _check_size(self) -> None:
        if self.candidates:
            return
        properties, parameters = self.properties, self.parameters
        um = parameters.size_px * parameters.mpp
        raise SlideError(
            "smaller_than_one_tile",
            f"the slide ({properties.width_px} x {properties.height_px} px, "
            f"{properties.width_px * properties.mpp:.0f} x "
            f"{properties.height_px * properties.mpp:.0f} um) is smaller than one tile of "
            f"{um:g} um",
            where=properties.path,
            remedy="Check the slide's mpp, or choose a smaller tile.size_px or tile.mpp.",
        )

    def _check_readable(self, read: int, unreadable: int) -> None:
        if unreadable <= self.parameters.max_unreadable * read:
            return
        raise SlideError(
            "too_unreadable",
            f"{unreadable} of {read} tiles that had to be read are unreadable "
            f"({unreadable / read:.0%}, tile.max_unreadable is "
            f"{self.parameters.max_unreadable:.0%})",
            where=self.properties.path,
            remedy="Copy or export the slide again; to use the rest of it, raise "
            "tile.max_unreadable.",
        )

    def _thumbnail_warnings(self) -> tuple[str, ...]:
        if self._readable.all():
            return ()
        share = 1 - self._readable.mean()
        return (f"{share:.1%} of the slide could not be read at low resolution",)


def open_slide_for_tiling(
    path: Path,
    parameters: TileConfig,
    *,
    slide_id: str | None = None,
    table_mpp: float | None = None,
    override_mpp: float | None = None,
    annotations: Annotations | None = None,
) -> ScannedSlide:
    """Open the slide at ``path``, settle its resolution and find its tissue.

    A slide without tissue is opened like any other: see :func:`no_tissue`.

    Args:
        path: of the slide.
        parameters: how it is to be tiled.
        slide_id: its name; the file's name without its ending unless given.
        table_mpp: what slides.csv says of its resolution.
        override_mpp: what ``--mpp`` says.
        annotations: where tiles are wanted; None: everywhere.

    Raises:
        SlideError: it cannot be opened, its resolution is unknown, not believed or too coarse,
            or it is smaller than one tile.
    """
    reader = open_reader(
        path, parameters, slide_id=slide_id, table_mpp=table_mpp, override_mpp=override_mpp
    )
    try:
        return ScannedSlide(reader, parameters, annotations)
    except BaseException:
        reader.close()
        raise


def no_tissue(path: Path) -> SlideError:
    """The error for a slide on which no tissue was found."""
    return SlideError(
        "no_tissue",
        "no tissue was found on the slide",
        where=path,
        remedy="Look at its thumbnail in the report; blank, fluorescence and inked-over slides "
        "cannot be used, leave them out of the table.",
    )


def _thumbnail_mpp(properties: SlideProperties) -> float:
    """As a rule :data:`COARSE_MPP`; coarser for huge slides, so that memory does not grow."""
    area_um2 = properties.width_px * properties.height_px * properties.mpp**2
    return max(COARSE_MPP, properties.mpp, math.sqrt(area_um2 / _MOST_THUMBNAIL_PX))


def _grid(length_px: int, extent_px: float, step_px: float) -> list[int]:
    """Starts of the tiles along one axis; each is rounded by itself, so no error adds up."""
    if length_px < extent_px - 1e-6:
        return []
    count = math.floor((length_px - extent_px) / step_px + 1e-9) + 1
    last = max(math.floor(length_px - extent_px + 1e-6), 0)
    return [min(round(index * step_px), last) for index in range(count)]


def _edges(
    starts: list[int], extent_px: float, per_px: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both edges of each tile along one axis, and its length, in thumbnail pixels.

    The thumbnail leaves out what is less than a pixel of it at the slide's far edge.
    """
    begin = np.asarray(starts, float) * per_px
    end = np.minimum(begin + extent_px * per_px, size)
    begin = np.minimum(begin, np.maximum(end - 1e-3, 0))
    return begin, end, end - begin


def _at(sums: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """``sums`` at fractional positions along ``axis``, linearly between whole ones."""
    whole = np.minimum(positions.astype(int), sums.shape[axis] - 2)
    part = np.expand_dims(positions - whole, 1 - axis)
    before, after = np.take(sums, whole, axis), np.take(sums, whole + 1, axis)
    return before + part * (after - before)
