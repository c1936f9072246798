"""MONAI dictionary transforms that bring a stored tile to a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    MapTransform,
    RandAxisFlipd,
    RandomizableTransform,
    RandRotate90d,
    ScaleIntensityRanged,
    ToTensord,
)

from medkd.slides.slide_tiles import SlideTiles
from medkd.slides.store import TileStore


class LoadStoredTiled(MapTransform):
    """Read tiles from zip stores, or from the slides themselves where a store has places only.

    An item ``{"image": (path, x, y), ...}`` becomes ``{"image": uint8 3 x H x W, ...}``, RGB. The
    path is that of the zip, or of the slide's record (``.json``). A worker process opens each file
    by itself.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self._stores: dict[str, TileStore] = {}
        self._slides = SlideTiles()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key's tile."""
        item = dict(data)
        for key in self.key_iterator(item):
            path, x, y = item[key]
            tile = self._read(path, x, y)
            item[key] = np.ascontiguousarray(tile.transpose(2, 0, 1))
        return item

    def _read(self, path: str, x: int, y: int) -> np.ndarray:
        if path.endswith(".json"):
            return self._slides.read(Path(path), x, y)
        if path not in self._stores:
            self._stores[path] = TileStore(path)
        return self._stores[path].read(x, y)


class RandColourJitterd(RandomizableTransform, MapTransform):
    """Scale and shift the brightness of each colour channel, as stain and scanner do.

    Works on uint8 or float images in 0..255, 3 x H x W; gives float32. Each channel is multiplied
    by a factor from 1 ± ``scale`` and shifted by up to ``shift`` levels.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 1.0, scale: float = 0.1, shift: float = 12.0
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self._scale, self._shift = scale, shift
        self._factors = np.ones(3, np.float32)
        self._shifts = np.zeros(3, np.float32)

    def randomize(self, data: Any | None = None) -> None:
        """Draw the factors and shifts of the three channels."""
        super().randomize(data)
        self._factors = self.R.uniform(1 - self._scale, 1 + self._scale, 3).astype(np.float32)
        self._shifts = self.R.uniform(-self._shift, self._shift, 3).astype(np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Jitter every key's image in the same way."""
        item = dict(data)
        self.randomize()
        if not self._do_transform:
            return item
        for key in self.key_iterator(item):
            image = np.asarray(item[key], np.float32)
            jittered = image * self._factors[:, None, None] + self._shifts[:, None, None]
            item[key] = np.clip(jittered, 0, 255, out=jittered)
        return item


def tile_transforms(*, augment: bool) -> Compose:
    """From an item of the store to a float32 tensor 3 x H x W in [0, 1].

    Args:
        augment: mirror, turn by quarters and jitter the colours at random. Histology has no up
            and no left, so every turn and mirror image is as likely as any other.
    """
    keys = "image"
    random = [
        RandAxisFlipd(keys, prob=0.5),
        RandRotate90d(keys, prob=0.75, max_k=3),
        RandColourJitterd(keys),
    ]
    return Compose(
        [
            LoadStoredTiled(keys),
            *(random if augment else []),
            ScaleIntensityRanged(keys, a_min=0, a_max=255, b_min=0, b_max=1),
            ToTensord(keys, track_meta=False),
        ]
    )
