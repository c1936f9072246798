"""The ways of reading a slide's tiles that tiling.py holds against each other.

Each opens the slide, reads every tile of a sweep and closes it; opening counts.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
from PIL import Image

from medkd.config import TileConfig
from medkd.slides.jpeg_reader import JpegReader
from medkd.slides.jpeg_tiles import (
    REDUCTIONS,
    JpegLevel,
    NotNativeError,
    read_jpeg_levels,
    read_tile_bytes,
    whole_stream,
)
from medkd.slides.reader import SlideReader
from medkd.slides.readers import open_reader
from medkd.slides.regions import finest_needed

Places = tuple[tuple[int, int], ...]

# OpenSlide is an order of magnitude slower than the rest: so many tiles say as much as all.
_FEWER = 100


@dataclass(frozen=True)
class Sweep:
    """Tiles of one slide, row by row.

    Attributes:
        path: of the slide.
        mpp: of its level 0, micrometres per pixel.
        wanted_mpp: of the tiles.
        side_px: of a tile, pixels of ``wanted_mpp``.
        level: of the pyramid that is read, the same by every way.
        read_px: side of a tile there.
        places: top left corners of the tiles, level-0 pixels.
    """

    path: Path
    mpp: float
    wanted_mpp: float
    side_px: int
    level: int
    read_px: int
    places: Places

    def fewer(self) -> Sweep:
        """The first part of it."""
        return replace(self, places=self.places[: max(len(self.places) // 6, _FEWER)])


def sweep_of(
    path: Path, mpp: float, wanted_mpp: float, side_px: int, *, start_px: int, most: int
) -> Sweep:
    """At most ``most`` tiles in a grid without gaps from (start_px, start_px) on."""
    scale = wanted_mpp / mpp
    extent_px = round(side_px * scale)
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
        level = finest_needed(slide.level_downsamples, scale)
        read_px = round(side_px * scale / slide.level_downsamples[level])
    rows = range(start_px, height - extent_px + 1, extent_px)
    columns = range(start_px, width - extent_px + 1, extent_px)
    places = tuple((x, y) for y in rows for x in columns)[:most]
    return Sweep(path, mpp, wanted_mpp, side_px, level, read_px, places)


def native_level(sweep: Sweep) -> JpegLevel | None:
    """The level that is read, where medkd reads its native JPEG tiles and they lie in a TIFF."""
    reader = medkd_reader(sweep)
    reader.close()
    if not isinstance(reader, JpegReader):
        return None
    with openslide.OpenSlide(sweep.path) as slide:
        sizes = slide.level_dimensions
    try:
        return read_jpeg_levels(sweep.path, sizes)[sweep.level]
    except NotNativeError:
        return None


def medkd_reader(sweep: Sweep) -> SlideReader:
    """medkd's own choice of reader."""
    parameters = TileConfig(mpp=sweep.wanted_mpp, size_px=sweep.side_px)
    return open_reader(sweep.path, parameters, override_mpp=sweep.mpp)


def through_openslide(sweep: Sweep) -> int:
    """Region by region, made smaller with PIL: what most pipelines do."""
    with openslide.OpenSlide(sweep.path) as slide:
        for place in sweep.places:
            region = slide.read_region(place, sweep.level, (sweep.read_px, sweep.read_px))
            _smaller(region.convert("RGB"), sweep.side_px)
    return len(sweep.places)


def through_cucim(sweep: Sweep) -> int:
    """The same with cuCIM on the CPU."""
    from cucim import CuImage

    slide = CuImage(str(sweep.path))
    for place in sweep.places:
        region = slide.read_region(place, (sweep.read_px, sweep.read_px), sweep.level)
        _smaller(Image.fromarray(np.asarray(region)), sweep.side_px)
    return len(sweep.places)


def through_cucim_batches(sweep: Sweep) -> int:
    """cuCIM's own batches with 2 workers, read only."""
    from cucim import CuImage

    slide = CuImage(str(sweep.path))
    batches = slide.read_region(
        list(sweep.places),
        (sweep.read_px, sweep.read_px),
        sweep.level,
        num_workers=2,
        batch_size=16,
        prefetch_factor=4,
    )
    return sum(len(np.asarray(batch)) for batch in batches)


def through_medkd(sweep: Sweep, threads: int = 1) -> int:
    """medkd: the native JPEG tiles where there are any."""
    reader = medkd_reader(sweep)
    tiles = reader.read_tiles(sweep.places, sweep.side_px, sweep.wanted_mpp, threads=threads)
    count = sum(isinstance(tile, np.ndarray) for tile in tiles)
    reader.close()
    assert count == len(sweep.places)
    return count


def decoding_alone(sweep: Sweep, level: JpegLevel) -> int:
    """simplejpeg decodes every native tile of level 0 that the sweep needs, once, as small as its
    decoder can make it, and nothing else is done.
    """
    width, height = level.tile_width_px, level.tile_height_px
    needed = {
        (row, column)
        for x, y in sweep.places
        for row in range(y // height, (y + sweep.read_px - 1) // height + 1)
        for column in range(x // width, (x + sweep.read_px - 1) // width + 1)
    }
    # As medkd: what is a few per cent too coarse will do.
    times = next(r for r in REDUCTIONS if r <= 1.03 * sweep.read_px / sweep.side_px)
    descriptor = os.open(sweep.path, os.O_RDONLY)
    streams = [read_tile_bytes(descriptor, level, *at) for at in sorted(needed)]
    os.close(descriptor)
    for data in streams:
        simplejpeg.decode_jpeg(
            whole_stream(level, data),
            "RGB",
            min_height=height // times,
            min_width=width // times,
            min_factor=times,
        )
    return len(sweep.places)


def ways_of(sweep: Sweep) -> dict[str, Callable[[], int]]:
    """Every way that is possible here, by its name. Each returns how many tiles it read."""
    fewer = sweep.fewer()
    ways: dict[str, Callable[[], int]] = {
        "openslide": lambda: through_openslide(fewer),
        "medkd": lambda: through_medkd(sweep),
        "medkd_2_threads": lambda: through_medkd(sweep, threads=2),
    }
    level = native_level(sweep)
    if level is not None and sweep.level == 0:
        ways["decoding_alone"] = lambda: decoding_alone(sweep, level)
    if _cucim_reads(sweep):
        ways["cucim"] = lambda: through_cucim(fewer)
        ways["cucim_batched_2"] = lambda: through_cucim_batches(sweep)
    return ways


def _smaller(image: Image.Image, side_px: int) -> np.ndarray:
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))


def _cucim_reads(sweep: Sweep) -> bool:
    if importlib.util.find_spec("cucim") is None:
        return False
    try:
        through_cucim(replace(sweep, places=sweep.places[:1]))
    except Exception as error:
        print(f"cuCIM cannot read {sweep.path.name}: {error}")
        return False
    return True
