"""Boxes in the format of COCO's instances (cocodataset.org, "Data format")."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from medkd.importers.box_table import Box, BoxedImage, BoxOptions, BoxSummary, write_boxes
from medkd.importers.json_file import read_json_object
from medkd.importers.problems import LayoutError, Problem

KIND = "coco"


def find_coco(
    annotations: Path, images_folder: Path
) -> tuple[list[BoxedImage], list[Problem], list[str]]:
    """Every image that ``annotations`` lists, with its boxes.

    An image without a box shows nothing of any class. COCO's crowds (``iscrowd``) are boxes around
    many things at once: images with one are left out.

    Returns:
        The images, a problem for each that is left out, and the names of the classes.

    Raises:
        LayoutError: the file is not in this format.
    """
    content = read_json_object(annotations)
    problems: list[Problem] = []
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        of_image: dict[Any, list[tuple[Box, str]]] = defaultdict(list)
        crowded = set()
        for entry in content["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            box = (x, y, x + width, y + height)
            of_image[entry["image_id"]].append((box, names[entry["category_id"]]))
            if entry.get("iscrowd"):
                crowded.add(entry["image_id"])
        found = []
        for entry in content["images"]:
            name, frame = str(entry["file_name"]), (int(entry["width"]), int(entry["height"]))
            where = str(images_folder / name)
            boxed = of_image.pop(entry["id"], [])
            if entry["id"] in crowded:
                problems.append(
                    Problem(
                        "crowd", where, "has a box around a crowd", "Box its members one by one."
                    )
                )
            elif not (images_folder / name).is_file():
                problems.append(Problem("no_file", where, "no such image", "Fetch it."))
            else:
                boxes, labels = [box for box, _ in boxed], [label for _, label in boxed]
                found.append(BoxedImage(name, boxes, labels, frame, exact=True))
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"is not in COCO's format: {error!r}",
            where=annotations,
            remedy="It needs 'images', 'annotations' with 'bbox', and 'categories'.",
        ) from None
    if of_image:
        raise LayoutError(
            f"has boxes of image {min(map(str, of_image))}, which it does not list",
            where=annotations,
            remedy="List the image, or remove its boxes.",
        )
    return found, problems, sorted(names.values())


def import_coco(
    annotations: Path, images_folder: Path, out: Path, *, options: BoxOptions | None = None
) -> BoxSummary:
    """Write boxes.parquet of the images in ``annotations`` to ``out``.

    Raises:
        LayoutError: the file is not in this format, or nothing can be used.
        OutputError: no permission, or no space.
    """
    found, problems, classes = find_coco(annotations, images_folder)
    return write_boxes(found, problems, images_folder, out, classes, options or BoxOptions())
