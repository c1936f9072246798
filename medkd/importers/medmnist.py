"""MedMNIST: one ``.npz`` with images and labels of three roles (Yang et al., Sci Data 2023)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medkd.importers.image_array import ArraySummary, ImagePart, write_image_array
from medkd.importers.problems import LayoutError

KIND = "medmnist"

_ROLES = {"train": "train", "val": "validation", "test": "test"}

_FETCH_AGAIN = "Fetch the file again."


def import_medmnist(path: Path, out: Path, *, classes: Sequence[str] = ()) -> ArraySummary:
    """Write the array of a MedMNIST data set to ``out``; grey images get three equal colours.

    Args:
        path: such as ``pathmnist.npz`` or ``pathmnist_224.npz``.
        out: folder to write to.
        classes: their names, which the file does not hold; its numbers where not given.

    Raises:
        LayoutError: the file is none of MedMNIST's, its images are volumes or have several labels
            each, or it has another number of classes than ``classes``.
        OutputError: no permission, or no space.
    """
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no .npz file")  # numpy would advise to unpickle it
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: file[name] for name in file.files if name.endswith("_labels")}
            shapes = {role: _shape_of(path, f"{role}_images") for role in _ROLES}
            numbers = _numbers(arrays, path)
            largest = max(int(labels.max()) for labels in numbers.values())
            if classes and largest >= len(classes):
                raise LayoutError(
                    f"has {largest + 1} classes, and {len(classes)} are named",
                    where=path,
                    remedy="Name all of them with --classes, in the order of their numbers.",
                )
            names = list(classes) or [str(number) for number in range(largest + 1)]
            for role, shape in shapes.items():
                if shape[0] != len(numbers[role]):
                    raise LayoutError(
                        f"has {shape[0]} {role} images and {len(numbers[role])} labels",
                        where=path,
                        remedy=_FETCH_AGAIN,
                    )

            def parts() -> Iterator[ImagePart]:
                for role, name in _ROLES.items():
                    yield ImagePart(_in_colour(file[f"{role}_images"]), numbers[role], name)

            count = sum(shape[0] for shape in shapes.values())
            height_px, width_px = shapes["train"][1:3]
            return write_image_array(
                parts(), (count, height_px, width_px), out, kind=KIND, classes=names, where=path
            )
    except (FileNotFoundError, IsADirectoryError):
        raise LayoutError("no such file", where=path, remedy="Name the .npz file.") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LayoutError(
            f"is no data set of MedMNIST: {error}", where=path, remedy=_FETCH_AGAIN
        ) from None


def _shape_of(path: Path, name: str) -> tuple[int, ...]:
    """The shape of an array in the file, of which the header alone is read."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(member)
    in_colour = len(shape) == 4 and shape[3] == 3
    if dtype != np.uint8 or not (in_colour or len(shape) == 3):
        raise LayoutError(
            f"its {name} are {dtype} of shape {shape}, not images in grey or colour",
            where=path,
            remedy="Choose one of MedMNIST's sets in two dimensions.",
        )
    return tuple(int(size) for size in shape)


def _numbers(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    numbers = {}
    for role in _ROLES:
        labels = arrays[f"{role}_labels"]
        if labels.ndim == 2 and labels.shape[1] > 1:
            raise LayoutError(
                f"gives each image {labels.shape[1]} labels",
                where=path,
                remedy="Choose a set with one class for each image.",
            )
        numbers[role] = labels.reshape(-1).astype(np.int64)
    return numbers


def _in_colour(images: np.ndarray) -> np.ndarray:
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
