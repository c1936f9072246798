"""MONAI dictionary transforms of images and their boxes.

MONAI's own detection transforms take a box's axes in the order of the image's, which is rows
before columns in an image of 3 x H x W; boxes here have x before y. Between two
:class:`SwapBoxAxesd` they fit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.detection.transforms.box_ops import resize_boxes, swapaxes_boxes
from monai.apps.detection.transforms.dictionary import RandFlipBoxd, RandRotateBox90d
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, OneOf, ToTensord, Transform
from torch.nn.functional import interpolate

from medkd.config import AugmentConfig
from medkd.datasets.augmentation import monai_transforms
from medkd.datasets.boxes import BoxItems, clipped_boxes
from medkd.datasets.patches import PatchDataset
from medkd.errors import ConfigError, StageError
from medkd.slides.imported_tiles import read_image


class LoadBoxedImaged(MapTransform):
    """Read an image, RGB, uint8 3 x H x W, and cut its boxes to it.

    Args:
        keys: of the image's path.
        box_key: of its boxes, x1, y1, x2, y2, pixels.
        size_key: of the width and height that the boxes speak of; an item may lack it.
    """

    def __init__(
        self, keys: KeysCollection = "image", box_key: str = "boxes", size_key: str = "size_px"
    ) -> None:
        super().__init__(keys)
        self._box_key, self._size_key = box_key, size_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key's image.

        Raises:
            StageError: it cannot be read, or has another size than its boxes speak of; a box is not
                finite, has no area, or lies outside.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            path = str(item[key])
            try:
                pixels = read_image(Path(path))
            except StageError as error:
                raise StageError(
                    error.what,
                    where=path,
                    remedy="If the images were moved, import them again from where they are; "
                    "'medkd import' with --decode leaves out what cannot be decoded.",
                ) from error
            height, width = pixels.shape[:2]
            told = tuple(int(side) for side in item.get(self._size_key, (width, height)))
            if told != (width, height):
                raise StageError(
                    f"is {width} x {height} px, and its boxes speak of {told[0]} x {told[1]} px",
                    where=path,
                    remedy="Import the data set again.",
                )
            item[key] = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            item[self._box_key] = clipped_boxes(item[self._box_key], (width, height), path)
        return item


def resized_px(
    image_px: tuple[int, int], size_px: int, *, keep_aspect: bool = True
) -> tuple[int, int]:
    """Width and height that an image has inside the square it is resized to.

    Args:
        image_px: its width and height.
        size_px: side of the square.
        keep_aspect: see :class:`ResizeBoxedImaged`.
    """
    width, height = image_px
    across, down = (max(image_px),) * 2 if keep_aspect else image_px
    return max(1, round(width * size_px / across)), max(1, round(height * size_px / down))


class ResizeBoxedImaged(MapTransform):
    """Resize images to a square, and their boxes with them.

    Bilinear, each pixel weighted over the area that it comes from, so that nothing aliases where an
    image becomes smaller.

    Args:
        keys: of the image, 3 x H x W; its dtype is kept.
        size_px: side of the square.
        box_key: of its boxes, x1, y1, x2, y2, pixels.
        keep_aspect: the longer side fills the square, and the rest, to the right or below, is
            black. Otherwise each axis is scaled by itself.

    Raises:
        ConfigError: a side below 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size_px: int,
        box_key: str = "boxes",
        *,
        keep_aspect: bool = True,
    ) -> None:
        super().__init__(keys)
        if size_px < 1:
            raise ConfigError(
                f"images are to be resized to {size_px} px",
                where="size_px",
                remedy="Give 1 or more.",
            )
        self._size_px, self._box_key, self._keep_aspect = size_px, box_key, keep_aspect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize every key's image, and the boxes."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = np.asarray(item[key])
            height, width = image.shape[1:]
            wide, high = resized_px((width, height), self._size_px, keep_aspect=self._keep_aspect)
            resized = interpolate(
                torch.from_numpy(image)[None], (high, wide), mode="bilinear", antialias=True
            )[0].numpy()
            square = np.zeros((len(image), self._size_px, self._size_px), image.dtype)
            square[:, :high, :wide] = resized
            item[key] = square
            boxes = resize_boxes(item[self._box_key], (width, height), (wide, high))
            # A product may end a rounding beyond the rim.
            item[self._box_key] = np.clip(boxes, 0, np.array([wide, high] * 2, np.float32))
        return item


class SwapBoxAxesd(MapTransform):
    """Swap x and y of boxes, N x 4: MONAI's detection transforms want rows before columns."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Swap them for every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = swapaxes_boxes(item[key], 0, 1)
        return item


def with_boxes(transforms: Sequence[Transform], box_key: str = "boxes") -> list[Transform]:
    """MONAI's detection transforms so that they take boxes with x before y."""
    swap = SwapBoxAxesd(box_key)
    return [swap, *transforms, swap]


def box_transforms(
    size_px: int | None = None,
    *,
    keep_aspect: bool = True,
    augment: AugmentConfig | None = None,
) -> Compose:
    """From an item of :class:`medkd.datasets.boxes.BoxItems` to tensors.

    ``image`` 3 x H x W, ``boxes`` float32 N x 4 (x1, y1, x2, y2, pixels of this image), ``labels``
    int64 N.

    Args:
        size_px: resize to a square of this side; None: as the image is.
        keep_aspect: see :class:`ResizeBoxedImaged`.
        augment: mirror, turn and colour at random, to float32 in [0, 1]; None: uint8. What
            ``cutout`` covers keeps its box.

    Raises:
        ConfigError: a side below 1; an augmentation that would leave the boxes behind.
    """
    resized = [] if size_px is None else [_resize(size_px, keep_aspect)]
    random = [] if augment is None else _augmentation(augment)
    to_tensor = ToTensord(("image", "boxes", "labels"), track_meta=False)
    return Compose([LoadBoxedImaged(), *resized, *random, to_tensor])


def box_dataset(
    items: BoxItems,
    *,
    size_px: int,
    seed: int,
    keep_aspect: bool = True,
    augment: AugmentConfig | None = None,
    cache_mb: float = 0,
) -> PatchDataset:
    """Images of one size with boxes, whose augmentation is a function of (seed, epoch, index).

    Args:
        items: as :func:`medkd.datasets.boxes.box_items` gives them.
        size_px: side of the square that images are resized to.
        seed: of the experiment.
        keep_aspect: see :class:`ResizeBoxedImaged`.
        augment: see :func:`box_transforms`.
        cache_mb: memory for resized images, megabytes; others are read each time.

    Raises:
        ConfigError: as :func:`box_transforms`.
        StageError: an image cannot be read; so for an item.
    """
    transform = box_transforms(size_px, keep_aspect=keep_aspect, augment=augment)
    return PatchDataset(items, transform, cache_mb=cache_mb, tile_bytes=3 * size_px**2, seed=seed)


def _resize(size_px: int, keep_aspect: bool) -> Transform:
    return ResizeBoxedImaged("image", size_px, keep_aspect=keep_aspect)


def _augmentation(settings: AugmentConfig) -> list[Transform]:
    if settings.affine_p > 0:
        raise ConfigError(
            "an affine transform would leave the boxes behind",
            where="affine_p",
            remedy="Set it to 0; flip_p and turn_p move boxes, too.",
        )
    keys = ("image", "boxes", "image")
    # One axis of the two, as for tiles.
    flip = OneOf([RandFlipBoxd(*keys, prob=settings.flip_p, spatial_axis=axis) for axis in (0, 1)])
    turn = RandRotateBox90d(*keys, prob=settings.turn_p, max_k=3)
    colour = settings.model_copy(update={"flip_p": 0.0, "turn_p": 0.0})
    return [*with_boxes([flip, turn]), *monai_transforms(colour)]
