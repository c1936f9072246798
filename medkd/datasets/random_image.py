"""What MONAI's conventions ask of a random transform of images, in array and dictionary form."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends


class RandImage(RandomizableTransform):
    """Array form. A subclass says in ``_draw`` what is random, and in ``_apply`` what it does."""

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 -- as MONAI declares it

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to act and how, for an image of the size of ``data``.

        As much is drawn where nothing is done, so that a stream stays in step.
        """
        super().randomize(None)
        self._size = () if data is None else tuple(data.shape[1:])
        self._draw()

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """Change ``img`` with the given probability; ``randomize=False`` repeats the last draw."""
        if randomize:
            self.randomize(img)
        if not self._do_transform:
            return img
        return self._apply(np.asarray(img, np.float32))

    def _draw(self) -> None:
        raise NotImplementedError

    def _apply(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _around(self, centre: float, reach: float, size: int | None = None) -> Any:
        return self.R.uniform(centre - reach, centre + reach, size)


class RandImaged(RandomizableTransform, MapTransform):
    """Dictionary form: one draw of ``transform`` for all keys.

    The array form holds the only random state: a seed gives the same in both forms.
    """

    backend = RandImage.backend

    def __init__(
        self, keys: KeysCollection, transform: RandImage, allow_missing_keys: bool
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, transform.prob)
        self.transform = transform

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandImaged:
        """Seed the array form."""
        self.transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any | None = None) -> None:
        """Draw for an image of the size of ``data``."""
        self.transform.randomize(data)
        self._do_transform = self.transform._do_transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change every key's image in the same way."""
        item = dict(data)
        present = list(self.key_iterator(item))
        if present:
            self.randomize(item[present[0]])
        for key in present:
            item[key] = self.transform(item[key], randomize=False)
        return item
