"""Tiles to set the ranges of an int8 model, and others to measure what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.datasets.stain import StainReference, normalise
from medkd.errors import StageError
from medkd.inference.manifest import Preprocessing
from medkd.slides.store import TileStore, read_index
from medkd.slides.tiling import open_slide_for_tiling

# 1,280 tiles of 224 px are 190 MB.
_MOST_SLIDES = 20
_MOST_OF_A_SLIDE = 64
_LEAST = 32
_BATCH = 16


@dataclass(frozen=True)
class TileSets:
    """Tiles by slide, uint8 N x size_px x size_px x 3 of each; no tile is in both.

    Attributes:
        calibration: to set ranges with.
        measurement: to measure with: of other slides, where there are two or more.
    """

    calibration: dict[str, np.ndarray]
    measurement: dict[str, np.ndarray]


def tile_sets(source: Path, preprocessing: Preprocessing) -> TileSets:
    """Tiles of a tiles folder, or of a slide, as the students see them.

    Of a folder every other slide is for calibration, of a single slide every other tile. At most
    20 slides and 64 tiles of each are taken, spread evenly (of a single slide 128).

    Args:
        source: a folder that ``medkd tile`` wrote, or a slide.
        preprocessing: of the model.

    Raises:
        StageError: there are no tiles, too few, or they were cut in another way than the model's.
        SlideError: the slide cannot be used.
    """
    read = _of_folder if source.is_dir() else _of_slide
    slides = dict(read(source, preprocessing))
    if len(slides) > 1:
        names = list(slides)
        found = TileSets(
            {name: slides[name] for name in names[::2]},
            {name: slides[name] for name in names[1::2]},
        )
    else:
        found = TileSets(
            {name: tiles[::2] for name, tiles in slides.items()},
            {name: tiles[1::2] for name, tiles in slides.items()},
        )
    for part, what in ((found.calibration, "calibrate on"), (found.measurement, "measure with")):
        count = sum(map(len, part.values()))
        if count < _LEAST:
            raise StageError(
                f"gives {count} tiles to {what}; {_LEAST} are needed",
                where=source,
                remedy="Name a tiles folder of more slides, or a slide with more tissue.",
            )
    return found


def calibration_batches(tiles: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """All tiles of all slides, 16 at a time."""
    for of_slide in tiles.values():
        for first in range(0, len(of_slide), _BATCH):
            yield of_slide[first : first + _BATCH]


def _spread(count: int, most: int) -> np.ndarray:
    """Indices of at most ``most`` of ``count`` things, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _of_folder(folder: Path, preprocessing: Preprocessing) -> Iterator[tuple[str, np.ndarray]]:
    index = read_index(folder)
    tile = preprocessing.tile
    other = index[(index["mpp"] != tile.mpp) | (index["size_px"] != tile.size_px)]
    if len(other):
        mpp, size_px = other.iloc[0][["mpp", "size_px"]]
        raise StageError(
            f"holds tiles of {size_px:g} px at {mpp:g} um/px, and the model takes {tile.size_px} "
            f"px at {tile.mpp:g} um/px",
            where=folder,
            remedy="Name the tiles folder of the model's own experiment, or a slide.",
        )
    slides = sorted(index["slide_id"].unique())
    for number in _spread(len(slides), _MOST_SLIDES) if slides else ():
        rows = index[index["slide_id"] == slides[number]]
        places = rows[["x", "y"]].to_numpy()[_spread(len(rows), _MOST_OF_A_SLIDE)]
        with TileStore(folder / f"{slides[number]}.zip") as store:
            tiles = [store.read(int(x), int(y)) for x, y in places]
        yield slides[number], _as_seen(tiles, preprocessing.stain)


def _of_slide(path: Path, preprocessing: Preprocessing) -> Iterator[tuple[str, np.ndarray]]:
    most = 2 * _MOST_OF_A_SLIDE
    tiles: list[np.ndarray] = []
    used, step = 0, 1
    with open_slide_for_tiling(path, preprocessing.tile) as slide:
        for tile in slide.tiles():
            if tile.pixels is None:
                continue
            if used % step == 0:
                tiles.append(slide.learnt_pixels(tile))
            used += 1
            if len(tiles) > most:
                # How many there will be is not known: from here on half as many are kept.
                tiles, step = tiles[::2], 2 * step
    if tiles:
        yield path.stem, _as_seen(tiles, preprocessing.stain)


def _as_seen(tiles: Sequence[np.ndarray], stain: StainReference | None) -> np.ndarray:
    """Tiles in the colours of training."""
    if stain is None:
        return np.stack(tiles)
    seen = [normalise(np.moveaxis(tile, -1, 0), stain) for tile in tiles]
    return np.moveaxis(np.stack(seen), 1, -1)
