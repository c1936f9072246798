"""Which tiles compare_methods.py takes: of a folder by class, or of an imported array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from comparison_run import Roles, Tiles, read_tiles
from PIL import Image

from medkd.errors import TableError
from medkd.files import sha256_of_file, sha256_of_json
from medkd.importers.image_array import IMAGES_NAME, RECORD_NAME, ImageArray, read_image_array

# CIFAR names no validation images, and 5,000 of its 50,000 for training are what most put aside.
VALIDATION_SHARE = 0.1


NO_PATIENTS = (
    "The split is of tiles: the folder names no patients, so neighbours of one patient may lie in "
    "two roles. A check that every method learns, no result about tissue."
)
OF_AN_ARRAY = (
    "The test images are those that were published as such. All are turned, mirrored and coloured "
    "as tiles are: compare the methods with each other, not with published figures."
)
FOLDER_SIZE_PX = 96


def read_roles(folder: Path, size_px: int | None, split_seed: int) -> tuple[Roles, str]:
    """The tiles of ``folder`` by role, and what must be said of their split.

    Args:
        folder: with a folder of images for each class, or of an imported array.
        size_px: side that they are resized to; None: an array's own, :data:`FOLDER_SIZE_PX`.
        split_seed: of the roles that the folder does not say.

    Raises:
        StageError: the array cannot be read.
        TableError: there are too few tiles, or an array is not fit, see :func:`read_array`.
    """
    if (folder / RECORD_NAME).is_file():
        return read_array(folder, size_px, split_seed), OF_AN_ARRAY
    return read_tiles(
        folder, FOLDER_SIZE_PX if size_px is None else size_px, split_seed
    ), NO_PATIENTS


def read_array(folder: Path, size_px: int | None, split_seed: int) -> Roles:
    """Read an imported array with the roles that it was published with.

    Args:
        folder: what the importer wrote to.
        size_px: side that images are resized to; None: their own.
        split_seed: of the validation images where none were published: :data:`VALIDATION_SHARE` of
            the training images of each class.

    Raises:
        StageError: the array cannot be read.
        TableError: no test images were published, a class lacks images, or images are not square.
    """
    array = read_image_array(folder)
    height_px, width_px = array.images.shape[1:3]
    if size_px is None and height_px != width_px:
        raise TableError(
            f"its images are {width_px} x {height_px} px",
            where=folder,
            remedy="Give --size-px, the side of the squares that they become.",
        )
    roles = array.roles.copy()
    if not (roles == "validation").any():
        roles[_validation(array, split_seed)] = "validation"
    for role in ("train", "validation", "test"):
        counts = np.bincount(array.labels[roles == role], minlength=len(array.classes))
        if not counts.all():
            raise TableError(
                f"class {array.classes[counts.argmin()]} has no {role} image",
                where=folder,
                remedy="Import a data set that was published with test images, and whose classes "
                "all have images for training.",
            )
    train, validation, test = (
        _tiles(array, np.flatnonzero(roles == role), size_px or width_px)
        for role in ("train", "validation", "test")
    )
    content = [list(array.classes), array.labels.tolist(), roles.tolist()]
    digest = sha256_of_json([*content, sha256_of_file(folder / IMAGES_NAME)])
    return Roles(array.classes, train, validation, test, digest)


def _validation(array: ImageArray, seed: int) -> np.ndarray:
    """Which training images validate; as large a share of every class."""
    order = np.random.default_rng(seed)
    chosen = []
    for number in range(len(array.classes)):
        own = np.flatnonzero((array.labels == number) & (array.roles == "train"))
        chosen.append(order.permutation(own)[: round(VALIDATION_SHARE * len(own))])
    return np.concatenate(chosen)


def _tiles(array: ImageArray, rows: np.ndarray, size_px: int) -> Tiles:
    images = torch.empty(len(rows), 3, size_px, size_px, dtype=torch.uint8)
    for place, row in enumerate(rows):
        pixels = array.images[row]
        if pixels.shape[:2] != (size_px, size_px):
            # BOX is the mean over the area that a pixel covers.
            small = Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BOX)
            pixels = np.asarray(small)
        images[place] = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return Tiles(images, torch.from_numpy(array.labels[rows]))
