"""The published MSI and MSS tiles of TCGA's colorectal cancers, doi:10.5281/zenodo.2530835."""

from __future__ import annotations

import re
from pathlib import Path

from medkd.importers.images import image_names, subfolders
from medkd.importers.problems import LayoutError, Problem
from medkd.importers.tcga import find_slide_barcode
from medkd.importers.tile_set import FoundTile, TileSetOptions, TileSetSummary, write_tile_set

KIND = "tcga-tiles"

PUBLISHED_MPP = 0.5
"""Micrometres per pixel of the 224 px tiles, as the record of the data set says."""

_LAYOUT = "CRC_DX_{TRAIN,TEST}_{MSIMUT,MSS}"
_FOLDER = re.compile(r"^CRC_DX_(?P<role>TRAIN|TEST)_(?P<class>MSIMUT|MSS)$")
_LABEL = {"MSIMUT": "MSI", "MSS": "MSS"}


def find_tcga_tiles(root: Path) -> tuple[list[FoundTile], list[Problem]]:
    """Every tile below ``root``, which holds the unpacked folders of the data set.

    The folder says label (MSIMUT, hypermutated tumours included, is MSI) and role, the name of an
    image its slide: ``blk-AAAAHDQPWYWF-TCGA-AA-3516-01Z-00-DX1.png``.

    Returns:
        The tiles, and a problem for each image without a barcode.

    Raises:
        LayoutError: ``root`` holds none of the folders, or not both classes.
    """
    tiles: list[FoundTile] = []
    problems: list[Problem] = []
    folders = [(path, match) for path in subfolders(root) if (match := _FOLDER.match(path.name))]
    if {match["class"] for _, match in folders} != set(_LABEL):
        names = ", ".join(path.name for path in subfolders(root)[:6]) or "nothing"
        raise LayoutError(
            f"holds no folders {_LAYOUT} of both classes (but {names})",
            where=root,
            remedy="Unpack the archives of the data set side by side, and name the folder above.",
        )
    for path, match in folders:
        label, role = _LABEL[match["class"]], match["role"].lower()
        for name in image_names(path):
            found = find_slide_barcode(name)
            image = f"{path.name}/{name}"
            if found is None:
                problems.append(
                    Problem(
                        "no_barcode",
                        str(root / image),
                        "has no TCGA slide barcode in its name",
                        "Give it the name it was published under.",
                    )
                )
            else:
                tiles.append(FoundTile(image, *found, label, role))
    return tiles, problems


def import_tcga_tiles(
    root: Path,
    out: Path,
    *,
    mpp: float = PUBLISHED_MPP,
    copy: bool = False,
    decode: bool = False,
    validation: float = 0.2,
    seed: int = 0,
) -> TileSetSummary:
    """Write the tables of the tile set in ``root`` to ``out``; the published test set stays one.

    Raises:
        LayoutError: the folders are not there, or nothing in them can be used.
        OutputError: no permission, or no space.
    """
    tiles, problems = find_tcga_tiles(root)
    options = TileSetOptions(
        KIND, mpp, "MSI", copy=copy, decode=decode, validation=validation, seed=seed
    )
    return write_tile_set(tiles, problems, root, out, options)
