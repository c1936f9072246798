"""Tile sets with a folder for each class."""

from __future__ import annotations

import re
from pathlib import Path

from medkd.importers.images import image_names, subfolders
from medkd.importers.names import matched, safe_id
from medkd.importers.problems import LayoutError, Problem
from medkd.importers.tile_set import FoundTile, TileSetOptions, TileSetSummary, write_tile_set

KIND = "class-folders"


def find_class_folders(
    root: Path, *, patient: re.Pattern[str] | None, slide: re.Pattern[str] | None = None
) -> tuple[list[FoundTile], list[Problem]]:
    """Every image in the folders of ``root``; a folder's name is the label.

    Args:
        root: holds a folder for each class.
        patient: finds the patient in an image's name (its first group, or all it matches). None:
            nobody knows the patients, and each image counts as one.
        slide: finds the slide likewise. None: all tiles of a patient make one slide.

    Returns:
        The tiles, and a problem for each image whose patient or slide cannot be told.

    Raises:
        LayoutError: there are not at least two folders with images.
    """
    tiles: list[FoundTile] = []
    problems: list[Problem] = []
    for folder in subfolders(root):
        for name in image_names(folder):
            image = f"{folder.name}/{name}"
            stem = Path(name).stem
            who = f"{folder.name}_{stem}" if patient is None else matched(patient, name)
            what = who if slide is None else matched(slide, name)
            if who and what:
                tiles.append(FoundTile(image, safe_id(what), who, folder.name))
            else:
                option, pattern = ("--slide", slide) if who else ("--patient", patient)
                problems.append(
                    Problem(
                        "no_slide" if who else "no_patient",
                        str(root / image),
                        f"{option} '{pattern.pattern if pattern else ''}' finds nothing in its "
                        "name",
                        "Change the pattern, or the name.",
                    )
                )
    if len({Path(found.image).parent for found in tiles} | _folders(problems)) < 2:
        raise LayoutError(
            "does not hold two or more folders with images",
            where=root,
            remedy="Name the folder that has a folder for each class.",
        )
    return tiles, problems


def _folders(problems: list[Problem]) -> set[Path]:
    return {Path(Path(problem.where).parent.name) for problem in problems}


def import_class_folders(
    root: Path,
    out: Path,
    *,
    patient: re.Pattern[str] | None,
    slide: re.Pattern[str] | None = None,
    positive: str | None = None,
    mpp: float | None = None,
    copy: bool = False,
    decode: bool = False,
) -> TileSetSummary:
    """Write the tables of the tile set in ``root`` to ``out``.

    Args:
        root, patient, slide: as :func:`find_class_folders` takes them.
        out: folder to write to.
        positive: the class that a slide's probability speaks of; None: the last by name.
        mpp: micrometres per pixel of the tiles, where known.
        copy: copy the images, too.
        decode: read every pixel of every image once.

    Raises:
        LayoutError: the layout is another one, there is no such class, or nothing can be used.
        OutputError: no permission, or no space.
    """
    tiles, problems = find_class_folders(root, patient=patient, slide=slide)
    classes = sorted({found.label for found in tiles})
    if positive is not None and positive not in classes:
        raise LayoutError(
            f"has no class '{positive}'", where=root, remedy=f"Use one of {', '.join(classes)}."
        )
    chosen = positive or (classes[-1] if classes else "")
    options = TileSetOptions(KIND, mpp, chosen, copy=copy, decode=decode)
    return write_tile_set(tiles, problems, root, out, options)
