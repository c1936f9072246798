"""CIFAR-10 and CIFAR-100, in the binary form of their authors or as a parquet of encoded images.

The binary form (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009): for each
image one byte of label (CIFAR-100: coarse, then fine) and 3 x 32 x 32 bytes: red, green, blue, row
by row.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medkd.importers.image_array import ArraySummary, ImagePart, write_image_array
from medkd.importers.problems import LayoutError, Problem
from medkd.progress import progress

KIND = "cifar"

_SIDE_PX = 32
_PIXELS = 3 * _SIDE_PX * _SIDE_PX

# So many encoded images are decoded at once.
_AT_ONCE = 2000

_ROLE = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class _Binary:
    """Which files a data set has. ``label_byte``: counts, of ``label_bytes`` before each image."""

    files: dict[str, tuple[str, ...]]
    class_names: str
    label_bytes: int
    label_byte: int
    classes: int


_TEN = _Binary(
    {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)},
    "batches.meta.txt",
    1,
    0,
    10,
)
_HUNDRED = _Binary(
    {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", 2, 1, 100
)


def import_cifar(path: Path, out: Path) -> ArraySummary:
    """Write the array of CIFAR-10 or CIFAR-100 to ``out``.

    Args:
        path: the folder with the ``.bin`` files, or a ``.parquet`` with the columns image (encoded,
            or the structure with ``bytes`` that hubs use), label and split.
        out: folder to write to.

    Raises:
        LayoutError: it is neither, or a file is cut off.
        OutputError: no permission, or no space.
    """
    if path.suffix == ".parquet":
        return _import_parquet(path, out)
    for layout in (_TEN, _HUNDRED):
        if (path / layout.class_names).is_file():
            return _import_binary(path, layout, out)
    python = next((p for p in ("batches.meta", "meta") if (path / p).is_file()), None)
    if python is not None:
        raise LayoutError(
            "is CIFAR's form for Python: pickles, which can run any code",
            where=path,
            remedy="Fetch the binary form (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz).",
        )
    raise LayoutError(
        f"holds neither {_TEN.class_names} nor {_HUNDRED.class_names}",
        where=path,
        remedy="Unpack the binary form of CIFAR and name its folder, or name a .parquet file.",
    )


def _import_binary(folder: Path, layout: _Binary, out: Path) -> ArraySummary:
    names = (folder / layout.class_names).read_text(encoding="utf-8").split()
    if len(names) != layout.classes:
        raise LayoutError(
            f"names {len(names)} classes, not {layout.classes}",
            where=folder / layout.class_names,
            remedy="Fetch the data set again.",
        )
    record = layout.label_bytes + _PIXELS
    count = 0
    for name in (name for files in layout.files.values() for name in files):
        path = folder / name
        size = path.stat().st_size if path.is_file() else -1
        if size <= 0 or size % record:
            raise LayoutError(
                "is not there" if size < 0 else f"is cut off: {size} bytes, {record} for an image",
                where=path,
                remedy="Fetch the data set again.",
            )
        count += size // record

    def parts() -> Iterator[ImagePart]:
        for role, files in layout.files.items():
            for name in files:
                rows = np.fromfile(folder / name, np.uint8).reshape(-1, record)
                pixels = rows[:, layout.label_bytes :].reshape(-1, 3, _SIDE_PX, _SIDE_PX)
                yield ImagePart(pixels.transpose(0, 2, 3, 1), rows[:, layout.label_byte], role)

    return write_image_array(
        parts(), (count, _SIDE_PX, _SIDE_PX), out, kind=KIND, classes=names, where=folder
    )


def _import_parquet(path: Path, out: Path) -> ArraySummary:
    table = _read_parquet(path)
    labels = table["label"].to_numpy()
    roles = table["split"].to_pylist()
    unknown = set(roles) - set(_ROLE)
    if unknown:
        raise LayoutError(
            f"has a split '{min(map(str, unknown))}'",
            where=path,
            remedy=f"Use {', '.join(_ROLE)}.",
        )
    said = (table.schema.metadata or {}).get(b"classes")
    names = said.decode().split(",") if said else [str(n) for n in range(int(labels.max()) + 1)]
    encoded = table["image"]
    images: list[np.ndarray] = []
    problems: list[Problem] = []
    kept = []
    with progress("decoding", len(encoded)) as advance:
        for start in range(0, len(encoded), _AT_ONCE):
            part = encoded.slice(start, _AT_ONCE).to_pylist()
            for at, cell in enumerate(part, start):
                image = _decoded(cell)
                if isinstance(image, str):
                    where = f"{path}, row {at}"
                    problems.append(Problem("unreadable", where, image, "Fetch the file again."))
                else:
                    images.append(image)
                    kept.append(at)
            advance(len(part))
    if not images:
        raise LayoutError("holds no image that can be read", where=path, remedy="Fetch it again.")
    height_px, width_px, _ = images[0].shape
    for at, image in zip(kept, images, strict=True):
        if image.shape != images[0].shape:
            raise LayoutError(
                f"its image {at} is {image.shape[1]} x {image.shape[0]} px, the first one "
                f"{width_px} x {height_px} px",
                where=path,
                remedy="Bring all images to one size first.",
            )
    stacked, of_kept = np.stack(images), labels[kept]
    role_of = np.array([_ROLE[roles[at]] for at in kept])
    parts = (
        ImagePart(stacked[role_of == role], of_kept[role_of == role], role)
        for role in dict.fromkeys(_ROLE.values())
        if (role_of == role).any()
    )
    return write_image_array(
        parts,
        (len(stacked), height_px, width_px),
        out,
        kind=KIND,
        classes=names,
        where=path,
        problems=problems,
    )


def _read_parquet(path: Path) -> pa.Table:
    wanted = ("image", "label", "split")
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise LayoutError("no such file", where=path, remedy="Name the file.") from None
    except (OSError, ValueError) as error:
        raise LayoutError(
            f"is not parquet: {error}", where=path, remedy="Fetch the file again."
        ) from None
    missing = [name for name in wanted if name not in table.column_names]
    if missing or not len(table):
        raise LayoutError(
            f"lacks {', '.join(missing) or 'rows'}",
            where=path,
            remedy=f"It needs the columns {', '.join(wanted)}.",
        )
    return table


def _decoded(cell: Any) -> np.ndarray | str:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content:
        return "is empty"
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        return f"is no image that can be read: {error}"
