"""Whole data sets of small images as one array: no file to open and nothing to decode in training.

60,000 images of 32 px are 184 MB, read at the speed of the disk, and need not fit in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkd import __version__
from medkd.errors import StageError
from medkd.files import atomic_path, make_folder, write_json
from medkd.importers.problems import LayoutError, Problem

IMAGES_NAME = "images.npy"
TABLE_NAME = "images.parquet"
RECORD_NAME = "images.json"

ROLES = ("train", "validation", "test")

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ImagePart:
    """Some images of one role.

    Attributes:
        images: uint8, N x height x width x 3, RGB.
        labels: numbers of the classes, N.
        role: ``train``, ``validation`` or ``test``.
    """

    images: np.ndarray
    labels: np.ndarray
    role: str


@dataclass(frozen=True)
class ImageArray:
    """A data set of small images.

    Attributes:
        images: uint8, N x height x width x 3, RGB; mapped from the disk.
        labels: int64, N: numbers of ``classes``.
        roles: N words, ``train``, ``validation`` or ``test``.
        classes: their names, by number.
    """

    images: np.ndarray
    labels: np.ndarray
    roles: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ArraySummary:
    """What was written. ``counts``: role to the number of images of each class, by name."""

    counts: Mapping[str, Mapping[str, int]]
    height_px: int
    width_px: int
    problems: tuple[Problem, ...]


def write_image_array(
    parts: Iterable[ImagePart],
    shape: tuple[int, int, int],
    out: Path,
    *,
    kind: str,
    classes: Sequence[str],
    where: object,
    problems: Sequence[Problem] = (),
) -> ArraySummary:
    """Write images.npy, images.parquet (label, class, role) and images.json to ``out``.

    Args:
        parts: the images; one part is held in memory at a time.
        shape: how many images there are in all, their height and their width, px.
        out: folder to write to.
        kind: the importer.
        classes: names by number.
        where: the data set, for messages.
        problems: images that were left out.

    Raises:
        LayoutError: a label is no number of a class, or ``parts`` hold other images than ``shape``
            says.
        OutputError: no permission, or no space.
    """
    count, height_px, width_px = shape
    make_folder(out)
    # An array whose table is of an earlier import would be labelled wrongly.
    (out / RECORD_NAME).unlink(missing_ok=True)
    labels, roles, at = [], [], 0
    with atomic_path(out / IMAGES_NAME) as temporary:
        array = np.lib.format.open_memmap(
            temporary, "w+", np.uint8, (count, height_px, width_px, 3)
        )
        for part in parts:
            end = at + len(part.images)
            if part.images.shape[1:] != array.shape[1:] or end > count:
                raise LayoutError(
                    f"its {part.role} images are not {height_px} x {width_px} px in 3 colours",
                    where=where,
                    remedy="Fetch the file again.",
                )
            if part.labels.min(initial=0) < 0 or part.labels.max(initial=0) >= len(classes):
                raise LayoutError(
                    f"has a label {part.labels.max()} and {len(classes)} classes",
                    where=where,
                    remedy="Fetch the file again.",
                )
            array[at:end] = part.images
            labels.append(np.asarray(part.labels, np.int64))
            roles += [part.role] * len(part.images)
            at = end
        if at != count:
            raise LayoutError(
                f"holds {at:,} images, not {count:,}", where=where, remedy="Fetch it again."
            )
        array.flush()
        del array
    table = pd.DataFrame({"label": np.concatenate(labels), "role": roles})
    table.insert(1, "class", np.asarray(classes, object)[table["label"]])
    with atomic_path(out / TABLE_NAME) as temporary:
        table.to_parquet(temporary, index=False)
    record = {
        "schema_version": _SCHEMA_VERSION,
        "kind": kind,
        "images": count,
        "classes": list(classes),
        "software": f"medkd {__version__}",
    }
    write_json(out / RECORD_NAME, record)
    counts = {
        role: Counter(table.loc[table["role"] == role, "class"])
        for role in ROLES
        if role in set(roles)
    }
    return ArraySummary(counts, height_px, width_px, tuple(problems))


def read_image_array(folder: Path) -> ImageArray:
    """Read what :func:`write_image_array` wrote; the images stay on the disk.

    Raises:
        StageError: it is not there, or its files do not belong together.
    """
    remedy = "Import the data set first: medkd import cifar or medmnist."
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / TABLE_NAME)
        images = np.load(folder / IMAGES_NAME, mmap_mode="r", allow_pickle=False)
        classes = tuple(record["classes"])
    except FileNotFoundError as error:
        raise StageError(
            "no array of images is there yet", where=error.filename or folder, remedy=remedy
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"is no array of images: {error}", where=folder, remedy=remedy) from error
    if not len(table) == len(images) == record["images"]:
        raise StageError(
            f"holds {len(images)} images and {len(table)} labels", where=folder, remedy=remedy
        )
    return ImageArray(
        images, table["label"].to_numpy(np.int64), table["role"].to_numpy(object), classes
    )
