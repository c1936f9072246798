"""Tiles of slides whose stores hold places only: read from the slides when they are wanted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from medkd.config import TileConfig
from medkd.errors import StageError
from medkd.slides.open_slides import OpenSlides
from medkd.slides.reader import RegionUnreadableError, SlideReader
from medkd.slides.readers import open_reader

# Tiles are drawn from all over a cohort: a slide's next one comes late, so many slides stay open,
# and each keeps few decoded pixels.
_OPEN_SLIDES = 64
_CACHE_BYTES = 4 * 2**20

_TILE_AGAIN = "Run 'medkd tile' again."


class SlideTiles:
    """Reads tiles as the tile stage read them, by the record that it wrote of each slide.

    It can be handed to loader workers of any start method; each opens the slides anew.
    """

    def __init__(self) -> None:
        self._slides = OpenSlides(_OPEN_SLIDES)
        self._parameters: dict[Path, TileConfig] = {}

    def read(self, record_path: Path, x: int, y: int) -> np.ndarray:
        """The tile at (x, y), level-0 pixels: uint8, height x width x 3, RGB.

        Args:
            record_path: ``<slide_id>.json`` of the tile stage.
            x, y: its top left corner.

        Raises:
            SlideError: the slide cannot be opened.
            StageError: there is no such record, the slide is no longer the one that was tiled, or
                the tile can no longer be read.
        """
        with self._slides.using(record_path, partial(self._open, record_path)) as slide:
            parameters = self._parameters[record_path]
            size_px = parameters.size_px
            try:
                return slide.read_region(x, y, size_px, size_px, parameters.mpp)
            except RegionUnreadableError as error:
                raise StageError(
                    f"the tile at ({x}, {y}), read before, can no longer be read: {error}",
                    where=slide.properties.path,
                    remedy=_TILE_AGAIN,
                ) from error

    def close(self) -> None:
        """Release the slides that this process has open."""
        self._slides.close()

    def _open(self, record_path: Path) -> SlideReader:
        try:
            record = json.loads(record_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise StageError(
                "no such record of a slide", where=record_path, remedy=_TILE_AGAIN
            ) from None
        self._parameters[record_path] = parameters = TileConfig.model_validate(record["parameters"])
        path = Path(record["slide"]["path"])
        slide = open_reader(
            path,
            parameters,
            slide_id=record["slide_id"],
            table_mpp=record["table_mpp"],
            cache_bytes=_CACHE_BYTES,
        )
        for name in ("fingerprint", "reader"):
            now, then = getattr(slide.properties, name), record["slide"][name]
            if now != then:
                slide.close()
                raise StageError(
                    f"the slide is not as it was tiled: its {name} was {then}, is {now}",
                    where=path,
                    remedy=_TILE_AGAIN,
                )
        return slide
