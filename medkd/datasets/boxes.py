"""Images with boxes as items for detection, by role, and how they become batches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from monai.utils.enums import TraceKeys

from medkd.datasets.box_members import marks, members
from medkd.datasets.patients import Patient
from medkd.datasets.split_file import read_role_table
from medkd.datasets.split_schemes import ROLES
from medkd.errors import ConfigError, StageError
from medkd.importers.box_table import BoxTable


@dataclass(frozen=True, eq=False)
class BoxItems(Sequence[dict[Hashable, Any]]):
    """Items of images with boxes, each made when it is asked for.

    An item is ``{"image": path, "boxes": float32 N x 4, "labels": int64 N, "name": str,
    "size_px": int32 2}``. A box is x1, y1, x2, y2 in pixels of the image, the right and lower edge
    outside it: x2 - x1 is its width. An image that shows nothing has boxes of shape 0 x 4.
    ``name`` is the path below ``root``, ``size_px`` the width and height of the file.

    Attributes:
        root: of the images.
        names: paths below ``root``.
        sizes_px: width and height, int32, images x 2.
        starts: place of each image's first box, int64.
        counts: how many boxes each image has, int64.
        boxes: of all images, float32, boxes x 4.
        labels: numbers of ``classes``, int64, boxes.
        classes: by number.
    """

    root: Path
    names: pa.Array
    sizes_px: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> dict[Hashable, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> BoxItems: ...
    def __getitem__(self, index: int | slice) -> dict[Hashable, Any] | BoxItems:
        """One item, or the items of a slice."""
        if isinstance(index, slice):
            names = self.names.take(pa.array(np.arange(len(self))[index]))
            columns = {key: getattr(self, key)[index] for key in ("sizes_px", "starts", "counts")}
            return replace(self, names=names, **columns)
        first = int(self.starts[index])
        own = slice(first, first + int(self.counts[index]))
        name = self.names[int(index)].as_py()
        return {
            "image": str(self.root / name),
            "boxes": self.boxes[own].copy(),
            "labels": self.labels[own].copy(),
            "name": name,
            "size_px": self.sizes_px[index].copy(),
        }


def box_items(
    table: BoxTable,
    *,
    role: str | None = None,
    roles: Path | None = None,
    fold: int = 0,
    classes: Sequence[str] | None = None,
) -> BoxItems:
    """One item for each image of a table that ``medkd import kvasir``, ``coco`` or ``yolo`` wrote.

    Args:
        table: as :func:`medkd.importers.box_table.read_boxes` gives it.
        role: ``train``, ``validation`` or ``test``; None: all images.
        roles: a table of ``patient_id``, ``role`` and, where there are several, ``fold``, such as
            splits.parquet, of the members that :func:`medkd.datasets.box_members.members` names:
            where nobody knows the patient, ``sequence:<sequence_id>`` stands for it, or the path
            of the image below the root. None: the column ``role`` of the table, which YOLO's
            folders fill.
        fold: of ``roles``.
        classes: give the number of each label; None: those of the table.

    Raises:
        ConfigError: another word for a role.
        StageError: a box is not finite, has no area or lies outside its image; a label is no class;
            no image has the role, an image has none, or a patient or sequence has two.
        TableError: ``roles`` cannot be used.
    """
    images = table.images
    if role is not None:
        if role not in ROLES:
            raise ConfigError(
                f"'{role}' is no role", where="role", remedy=f"Use {', '.join(ROLES)}."
            )
        of_image = _from_table(table) if roles is None else _from_file(images, roles, fold)
        images = images[of_image == role]
        if not len(images):
            raise StageError(
                f"no image has the role {role}",
                where=roles or table.root,
                remedy="Give some images this role, or choose another one.",
            )
    known = tuple(classes) if classes is not None else table.classes
    sizes_px = images[["width_px", "height_px"]].to_numpy(np.int32)
    boxes = [
        clipped_boxes(given, (int(width), int(height)), str(table.root / name))
        for name, given, (width, height) in zip(
            images["image"], images["boxes"], sizes_px, strict=True
        )
    ]
    counts = np.array([len(of_image) for of_image in boxes], np.int64)
    return BoxItems(
        root=table.root,
        names=pa.array(images["image"], pa.string()),
        sizes_px=sizes_px,
        starts=np.cumsum(counts) - counts,
        counts=counts,
        boxes=np.concatenate([np.empty((0, 4), np.float32), *boxes]),
        labels=_numbers(images, counts, known, table.root),
        classes=known,
    )


def clipped_boxes(boxes: Any, size_px: tuple[int, int], image: str) -> np.ndarray:
    """Boxes cut to their image: float32 N x 4, x1, y1, x2, y2, pixels.

    Args:
        boxes: N x 4; none may be an empty list.
        size_px: width and height of the image.
        image: its path, for messages.

    Raises:
        StageError: a box is not finite, has no area, or lies outside the image.
    """
    given = np.asarray(boxes, np.float32)
    given = given.reshape(0, 4) if not given.size else given
    if given.ndim != 2 or given.shape[1] != 4:
        raise StageError(
            f"its boxes have the shape {' x '.join(map(str, given.shape))}",
            where=image,
            remedy="Give x1, y1, x2 and y2 of each box.",
        )
    cut = np.clip(given, 0, np.array([*size_px, *size_px], np.float32))
    finite = np.all(np.isfinite(given), axis=1)
    filled = np.all(given[:, :2] < given[:, 2:], axis=1)
    inside = np.all(cut[:, :2] < cut[:, 2:], axis=1)
    wrong = np.flatnonzero(~(finite & filled & inside))
    if len(wrong):
        first = int(wrong[0])
        what = (
            "is not finite"
            if not finite[first]
            else "has no area"
            if not filled[first]
            else f"lies outside the image of {size_px[0]} x {size_px[1]} px"
        )
        shown = ", ".join(f"{value:g}" for value in given[first])
        raise StageError(
            f"box {first + 1} of {len(given)}, ({shown}), {what}",
            where=image,
            remedy="Mend it where it was drawn and import the data set again, or drop the image.",
        )
    return cut


def collate_boxes(items: Sequence[Mapping[Hashable, Any]]) -> dict[str, Any]:
    """Put images of one size into a batch.

    Returns:
        ``image``, B x 3 x H x W, and every other key as a list of B: ``boxes``, each N x 4,
        ``labels``, each N.

    Raises:
        StageError: two images have two sizes.
    """
    images = [torch.as_tensor(item["image"]) for item in items]
    sizes = sorted({(image.shape[-1], image.shape[-2]) for image in images})
    if len(sizes) > 1:
        two = " and ".join(f"{width} x {height} px" for width, height in sizes[:2])
        raise StageError(
            f"images of a batch are {two}",
            where="image",
            remedy="Resize them: give box_transforms a size_px.",
        )
    # MONAI's transforms leave traces in an item, which are no data.
    keys = [key for key in items[0] if not str(key).endswith(TraceKeys.KEY_SUFFIX)]
    lists = {str(key): [item[key] for item in items] for key in keys if key != "image"}
    return {"image": torch.stack(images), **lists}


def _numbers(
    images: pd.DataFrame, counts: np.ndarray, classes: tuple[str, ...], root: Path
) -> np.ndarray:
    """Number of each box's class, int64."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = []
    for image, labels, count in zip(images["image"], images["labels"], counts, strict=True):
        if len(labels) != count:
            raise StageError(
                f"has {count} boxes and {len(labels)} labels",
                where=root / image,
                remedy="Import the data set again.",
            )
        for label in labels:
            if label not in numbers:
                raise StageError(
                    f"a box has the label '{label}', which is no class",
                    where=root / image,
                    remedy=f"Use {', '.join(classes)}, or name it among the classes.",
                )
            found.append(numbers[label])
    return np.array(found, np.int64)


def _from_file(images: pd.DataFrame, path: Path, fold: int) -> np.ndarray:
    """Role of each image, by a table of roles."""
    names = members(images)
    table = read_role_table(path, [Patient(name, "") for name in sorted(set(names))])
    folds = int(table["fold"].max()) + 1
    if not 0 <= fold < folds:
        raise StageError(
            f"has no fold {fold}, only {'fold 0' if folds == 1 else f'0 to {folds - 1}'}",
            where=path,
            remedy="Choose one of these.",
        )
    of_fold = table[table["fold"] == fold].set_index("patient_id")["role"]
    return of_fold.loc[names].to_numpy(object)


def _from_table(table: BoxTable) -> np.ndarray:
    """Role of each image, as the data set says it."""
    images = table.images
    lacking = int(images["role"].isna().sum())
    if lacking:
        raise StageError(
            f"{lacking} of {len(images)} images have no role",
            where=table.root,
            remedy="Give a table of roles with the columns patient_id and role; where nobody knows "
            "the patients, the path of an image below the root stands for the patient.",
        )
    shared = marks(images)
    of_mark = images["role"].loc[shared.index].groupby(shared.to_numpy()).unique()
    twice = of_mark[of_mark.map(len) > 1]
    if len(twice):
        raise StageError(
            f"{len(twice)} patients or sequences have images in two roles, such as "
            f"'{twice.index[0]}': {' and '.join(sorted(twice.iloc[0], key=ROLES.index))}",
            where=table.root,
            remedy="Give a table of roles in which each has one.",
        )
    return images["role"].to_numpy(object)
