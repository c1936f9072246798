"""Kvasir-SEG: polyps with masks and a file of boxes (Jha et al., arXiv 1911.07069)."""

from __future__ import annotations

from pathlib import Path

from medkd.importers.box_table import BoxedImage, BoxOptions, BoxSummary, write_boxes
from medkd.importers.images import image_names
from medkd.importers.json_file import read_json_object
from medkd.importers.problems import LayoutError, Problem

KIND = "kvasir"

# As published, and as it was meant.
_BOX_FILES = ("kavsir_bboxes.json", "kvasir_bboxes.json")


def find_kvasir(root: Path, negatives: Path | None) -> tuple[list[BoxedImage], list[Problem]]:
    """Every image of Kvasir-SEG, and of a folder of frames without a polyp.

    The boxes speak of the original images; those of copies in another size are scaled, width and
    height each by its own factor.

    Returns:
        The images, and a problem for each that has no boxes, or boxes without an image.

    Raises:
        LayoutError: ``images`` or the file of boxes is not there, or not as published.
    """
    path = next((root / name for name in _BOX_FILES if (root / name).is_file()), None)
    if path is None or not (root / "images").is_dir():
        raise LayoutError(
            f"holds no folder 'images' beside a {_BOX_FILES[0]}",
            where=root,
            remedy="Name the folder of Kvasir-SEG as it was unpacked.",
        )
    content = read_json_object(path)
    names = {Path(name).stem: name for name in image_names(root / "images")}
    masks = set(image_names(root / "masks")) if (root / "masks").is_dir() else set()
    found, problems = [], []
    for stem, entry in content.items():
        try:
            frame = (float(entry["width"]), float(entry["height"]))
            boxes = [
                (float(b["xmin"]), float(b["ymin"]), float(b["xmax"]), float(b["ymax"]))
                for b in entry["bbox"]
            ]
            labels = [str(b["label"]) for b in entry["bbox"]]
        except (KeyError, TypeError, ValueError) as error:
            raise LayoutError(
                f"'{stem}' is not an image with width, height and bbox: {error!r}",
                where=path,
                remedy="Fetch the file again.",
            ) from None
        if stem not in names:
            problems.append(
                Problem(
                    "no_file", str(root / "images" / stem), "has boxes but no image", "Fetch it."
                )
            )
            continue
        name = names.pop(stem)
        mask = f"masks/{name}" if name in masks else None
        found.append(BoxedImage(f"images/{name}", boxes, labels, frame, mask=mask))
    for name in names.values():
        problems.append(
            Problem(
                "no_boxes",
                str(root / "images" / name),
                f"is not in {path.name}",
                "Add its boxes, or remove it; without them it would teach that nothing is there.",
            )
        )
    if negatives is not None:
        found += [
            BoxedImage(str((negatives / name).absolute()), (), (), (1, 1))
            for name in image_names(negatives)
        ]
    return found, problems


def import_kvasir(
    root: Path, out: Path, *, negatives: Path | None = None, options: BoxOptions | None = None
) -> BoxSummary:
    """Write boxes.parquet of the data set in ``root`` to ``out``.

    Args:
        root: as it was unpacked.
        out: folder to write to.
        negatives: a folder of frames without a polyp.
        options: how.

    Raises:
        LayoutError: the layout is another one, or nothing can be used.
        OutputError: no permission, or no space.
    """
    found, problems = find_kvasir(root, negatives)
    classes = sorted({label for item in found for label in item.labels})
    return write_boxes(found, problems, root, out, classes, options or BoxOptions())
