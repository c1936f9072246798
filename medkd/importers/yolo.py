"""Boxes in YOLO's format: a text file for each image, and a YAML file that names all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medkd.importers.box_table import Box, BoxedImage, BoxOptions, BoxSummary, write_boxes
from medkd.importers.images import IMAGE_ENDINGS
from medkd.importers.problems import LayoutError, Problem

KIND = "yolo"

_ROLES = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


def find_yolo(data: Path) -> tuple[list[BoxedImage], list[Problem], Path, list[str]]:
    """Every image of the folders that ``data`` names, with its boxes.

    The boxes of ``.../images/a.jpg`` are in ``.../labels/a.txt``, a line ``class x y width height``
    each, where x and y are the middle, all as fractions of the image. An image without such a file
    shows nothing of any class.

    Args:
        data: the YAML file: ``names``, the folders ``train``, ``val``, ``test``, perhaps ``path``.

    Returns:
        The images, a problem for each whose boxes cannot be read, the root and the classes.

    Raises:
        LayoutError: the YAML file is not like this, or names folders that are not there.
    """
    content = _read_yaml(data)
    named = content.get("names")
    names = dict(enumerate(named)) if isinstance(named, list) else named
    if not isinstance(names, dict) or not names:
        raise LayoutError(
            "names no classes", where=data, remedy="Give 'names' a list, such as [polyp]."
        )
    root = (data.parent / str(content.get("path") or ".")).resolve()
    found: list[BoxedImage] = []
    problems: list[Problem] = []
    folders = [(role, text) for key, role in _ROLES.items() if (text := content.get(key))]
    for role, text in folders:
        for part in text if isinstance(text, list) else [text]:
            folder = _folder(root, str(part), data)
            for path in sorted(folder.rglob("*")):
                if path.name.lower().endswith(IMAGE_ENDINGS):
                    read = _boxes(_label_file(path), names)
                    if isinstance(read, Problem):
                        problems.append(read)
                    else:
                        image = path.relative_to(root).as_posix()
                        boxes, labels = [box for box, _ in read], [label for _, label in read]
                        found.append(BoxedImage(image, boxes, labels, (1, 1), role=role))
    if not folders:
        raise LayoutError(
            "names no folder of images", where=data, remedy="Give it 'train', 'val' or 'test'."
        )
    return found, problems, root, [str(name) for name in names.values()]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise LayoutError(
            "no such file", where=path, remedy="Name the YAML file of the data set (data.yaml)."
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise LayoutError(f"is not YAML: {error}", where=path, remedy="Mend it.") from None
    if not isinstance(content, dict):
        raise LayoutError("is no YAML file of a data set", where=path, remedy="Name data.yaml.")
    return content


def _folder(root: Path, text: str, data: Path) -> Path:
    # Some exports write ../train/images for a folder that lies beside the YAML file.
    for folder in (root / text, root / text.removeprefix("../")):
        if folder.resolve().is_dir() and folder.resolve().is_relative_to(root):
            return folder.resolve()
    raise LayoutError(
        f"names '{text}', which is no folder below {root}",
        where=data,
        remedy="Mend the folders in it, or 'path'.",
    )


def _label_file(image: Path) -> Path:
    """``images`` nearest to the file becomes ``labels``."""
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _boxes(path: Path, names: dict[Any, Any]) -> list[tuple[Box, str]] | Problem:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        return Problem("wrong", str(path), "is not text", "Fetch the file again.")
    boxes: list[tuple[Box, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, *figures = line.split()
            x, y, width, height = map(float, figures)
            label = str(names[int(kind)])
        except (ValueError, KeyError):
            return Problem(
                "wrong",
                f"{path}:{number}",
                f"'{line.strip()[:60]}' is not class, x, y, width and height",
                "Mend it; the image is left out.",
            )
        boxes.append(((x - width / 2, y - height / 2, x + width / 2, y + height / 2), label))
    return boxes


def import_yolo(data: Path, out: Path, *, options: BoxOptions | None = None) -> BoxSummary:
    """Write boxes.parquet of the data set that the YAML file ``data`` names to ``out``.

    Raises:
        LayoutError: the layout is another one, or nothing can be used.
        OutputError: no permission, or no space.
    """
    found, problems, root, classes = find_yolo(data)
    return write_boxes(found, problems, root, out, classes, options or BoxOptions())
