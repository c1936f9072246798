"""MONAI transforms that compress a tile as JPEG and open it again, in array and dictionary form.

Slides of one laboratory are often compressed more strongly than those of another, and a network can
learn to tell them apart by that.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from monai.config import KeysCollection

from medkd.datasets.random_image import RandImage, RandImaged


def compress_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress with colour at half resolution (4:2:0), as most scanners do, and decode.

    Args:
        image: 3 x H x W, RGB, 0..255; rounded to whole levels before.
        quality: of JPEG, 1 to 100.

    Returns:
        float32 3 x H x W, whole levels.
    """
    levels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(levels.transpose(1, 2, 0)),
        quality=quality,
        colorspace="RGB",
        colorsubsampling="420",
        fastdct=False,
    )
    decoded = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    return np.ascontiguousarray(decoded.transpose(2, 0, 1), np.float32)


class RandJpeg(RandImage):
    """Compress as JPEG at random.

    Args:
        prob: of doing so.
        quality: least and largest; both may be drawn.
    """

    def __init__(self, prob: float = 0.1, quality: tuple[int, int] = (40, 95)) -> None:
        super().__init__(prob)
        self._interval = quality

    def _draw(self) -> None:
        least, largest = self._interval
        self.quality = int(self.R.randint(least, largest + 1))

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return compress_jpeg(image, self.quality)


class RandJpegd(RandImaged):
    """Dictionary form of :class:`RandJpeg`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        quality: tuple[int, int] = (40, 95),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandJpeg(prob, quality), allow_missing_keys)
