"""MONAI transforms that normalise a tile's stains, in array and dictionary form."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends

from medkd.datasets.stain import PUBLISHED_MACENKO, StainReference, normalise


class StainNormalise(Transform):
    """Give tiles the colours of a reference; see :func:`medkd.datasets.stain.normalise`.

    Nothing is random, so that MONAI's cached datasets keep what it gives.

    Args:
        reference: its type decides the method, Macenko's or Reinhard's. From
            :func:`medkd.datasets.stain_reference.fit_training_reference`, or one's own.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 -- as MONAI declares it

    def __init__(self, reference: StainReference = PUBLISHED_MACENKO) -> None:
        self.reference = reference

    def __call__(self, img: Any) -> np.ndarray:
        """Normalise 3 x H x W, RGB, 0..255: uint8 to uint8, float to float32."""
        return normalise(np.asarray(img), self.reference)


class StainNormalised(MapTransform):
    """Dictionary form of :class:`StainNormalise`."""

    backend = StainNormalise.backend

    def __init__(
        self,
        keys: KeysCollection,
        reference: StainReference = PUBLISHED_MACENKO,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = StainNormalise(reference)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise every key's image by itself."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key])
        return item
