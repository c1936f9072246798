"""Tiles named by slide and place, ``SLIDE_(x,y).jpg``, in a folder for each slide or in one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from medkd.datasets.tables import SlideRow, read_slides
from medkd.importers.foreign_tables import find_column, read_foreign_table
from medkd.importers.images import IMAGE_ENDINGS
from medkd.importers.names import safe_id
from medkd.importers.problems import LayoutError, Problem
from medkd.importers.tile_set import FoundTile, TileSetOptions, TileSetSummary, write_tile_set

KIND = "tile-folders"

_NAME = re.compile(r"^(?P<slide>.+)_\((?P<x>\d+),\s*(?P<y>\d+)\)$")


def read_slides_of_any_class(path: Path) -> dict[str, SlideRow]:
    """The rows of a slides.csv by slide_id; whatever labels stand in it are its classes.

    Raises:
        TableError: it cannot be read, or something in it is wrong.
    """
    table = read_foreign_table(path)
    column = find_column(table, "label", (), what="labels", option="the header")
    classes = tuple({row.cells[column] for row in table.rows})
    return {row.slide_id: row for row in read_slides(path, classes)}


def find_tile_folders(
    root: Path, slides: Mapping[str, SlideRow]
) -> tuple[list[FoundTile], list[Problem], int]:
    """Every tile below ``root`` whose slide is one of ``slides``.

    A tile's slide is looked for by the name before its place, then by the folder that it lies in:
    tools write both, and tables name one of the two.

    Returns:
        The tiles; a problem for each image whose name holds no place or stands for a place that is
        taken; and the number of tiles of slides that are not in the table.

    Raises:
        LayoutError: there is no such folder, or no image in it is named like this.
    """
    if not root.is_dir():
        raise LayoutError("no such folder", where=root, remedy="Name the folder of the tiles.")
    tiles: list[FoundTile] = []
    problems: list[Problem] = []
    taken: dict[tuple[str, int, int], str] = {}
    unknown = 0
    for path in sorted(root.rglob("*")):
        if not path.name.lower().endswith(IMAGE_ENDINGS):
            continue
        image = path.relative_to(root).as_posix()
        match = _NAME.match(path.stem)
        if match is None:
            problems.append(
                Problem(
                    "no_place",
                    str(path),
                    "is not named SLIDE_(x,y)",
                    "Remove it, or give it its name.",
                )
            )
            continue
        row = slides.get(safe_id(match["slide"])) or slides.get(safe_id(path.parent.name))
        if row is None:
            unknown += 1
            continue
        x, y = int(match["x"]), int(match["y"])
        other = taken.setdefault((row.slide_id, x, y), image)
        if other != image:
            problems.append(
                Problem(
                    "two_tiles",
                    str(path),
                    f"has the place of {other}",
                    "Remove one of the two.",
                )
            )
            continue
        tiles.append(
            FoundTile(image, row.slide_id, row.patient_id, row.label, x=x, y=y, site=row.site)
        )
    if not tiles and not unknown:
        raise LayoutError(
            "holds no image named SLIDE_(x,y)",
            where=root,
            remedy="Name the folder that holds the tiles, or use 'medkd import class-folders'.",
        )
    return tiles, problems, unknown


def import_tile_folders(
    root: Path,
    slides: Mapping[str, SlideRow],
    out: Path,
    *,
    positive: str,
    mpp: float | None = None,
    copy: bool = False,
    decode: bool = False,
) -> tuple[TileSetSummary, int]:
    """Write the tables of the tiles below ``root`` to ``out``.

    Args:
        root: holds the tiles, in folders or not.
        slides: rows of a slides.csv by slide_id, for patients and labels.
        out: folder to write to.
        positive: the class that a slide's probability speaks of.
        mpp: micrometres per pixel of the tiles, where known.
        copy: copy the images, too.
        decode: read every pixel of every image once.

    Returns:
        What was written, and the number of tiles of slides that are not in the table.

    Raises:
        LayoutError: the layout is another one, or nothing can be used.
        OutputError: no permission, or no space.
    """
    tiles, problems, unknown = find_tile_folders(root, slides)
    if not tiles:
        raise LayoutError(
            f"all {unknown} tiles are of slides that are not in the table",
            where=root,
            remedy="Name the slides in the table as the tiles or their folders do.",
        )
    options = TileSetOptions(KIND, mpp, positive, has_places=True, copy=copy, decode=decode)
    return write_tile_set(tiles, problems, root, out, options), unknown
