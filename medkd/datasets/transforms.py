"""MONAI dictionary transforms that bring a stored tile to a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, ToTensord

from medkd.config import AugmentConfig
from medkd.datasets.augmentation import monai_transforms
from medkd.datasets.stain import StainReference
from medkd.datasets.stain_transforms import StainNormalised
from medkd.errors import StageError
from medkd.slides.imported_tiles import read_image
from medkd.slides.open_stores import OpenStores, TileRange
from medkd.slides.slide_tiles import SlideTiles
from medkd.slides.store import decode_tile


class LoadStoredTiled(MapTransform):
    """Read tiles from zip stores, from the slides where a store has places only, or from images.

    An item as :class:`medkd.datasets.patches.PatchItems` gives it becomes
    ``{"image": uint8 3 x H x W, ...}``, RGB. The path is that of the zip, of the slide's record
    (``.json``), or of an imported tile's image. A worker process opens each file by itself, and
    keeps few of them open.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self._stores = OpenStores()
        self._slides = SlideTiles()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key's tile.

        Raises:
            StageError: it cannot be read.
            SlideError: its slide cannot be opened.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            path, x, y, *place = item[key]
            try:
                tile = self._read(path, x, y, place)
            except (OSError, EOFError, ValueError) as error:
                # Of the disk or share, of a store cut short, of a JPEG that is none.
                raise StageError(
                    f"the tile at ({x}, {y}) cannot be read: {error or type(error).__name__}",
                    where=path,
                    remedy="Look whether the disk or share is there; if the file itself is "
                    "damaged, delete it and run 'medkd tile' again.",
                ) from error
            item[key] = np.ascontiguousarray(tile.transpose(2, 0, 1))
        return item

    def _read(self, path: str, x: int, y: int, place: list[int]) -> np.ndarray:
        if path.endswith(".json"):
            return self._slides.read(Path(path), x, y)
        if not path.endswith(".zip"):
            return read_image(Path(path))
        return decode_tile(self._stores.read_bytes(path, x, y, TileRange(*place)))


def tile_transforms(
    augment: AugmentConfig | None = None, stain: StainReference | None = None
) -> Compose:
    """From an item of the store to a tensor 3 x H x W, RGB.

    Args:
        augment: augment at random, to float32 in [0, 1]; None: uint8.
        stain: give each tile the colours of this reference first; None: as it is stored.
    """
    normalised = [StainNormalised("image", stain)] if stain is not None else []
    random = monai_transforms(augment) if augment is not None else []
    to_tensor = ToTensord("image", track_meta=False)
    return Compose([LoadStoredTiled("image"), *normalised, *random, to_tensor])
