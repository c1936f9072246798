"""Tiles that were imported as image files: their record, and how one is read."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from medkd.config import TileConfig
from medkd.errors import StageError
from medkd.files import write_json
from medkd.progress import warn
from medkd.slides.store import INDEX_NAME, read_index, read_tile_records

RECORD_NAME = "import.json"
IMAGE_COLUMN = "image"
"""Column of ``index.parquet`` with the path of each tile's image, relative to the root."""

_SCHEMA_VERSION = 1
_IMPORT_AGAIN = "Run 'medkd import' again."

WITHOUT_TAG = "Save it as they mean it, without the tag, and import again."
"""What to do about :func:`turned_by_exif`."""


@dataclass(frozen=True)
class ImportedTiles:
    """What an importer says of all tiles of an index.

    Attributes:
        kind: the importer, such as ``tcga-tiles``.
        root: folder that the images' paths are relative to.
        size_px: of every tile, which is square.
        mpp: micrometres per pixel of every tile; None where nobody knows.
        has_places: ``x`` and ``y`` of the index are level-0 pixels. Otherwise ``x`` numbers the
            tiles of a slide and ``y`` is -1.
        published_split: the data set says who tests, and ``splits.parquet`` keeps to it.
    """

    kind: str
    root: Path
    size_px: int
    mpp: float | None
    has_places: bool
    published_split: bool = False


def write_import_record(folder: Path, tiles: ImportedTiles, details: dict[str, Any]) -> None:
    """Write ``import.json`` beside the index in ``folder``.

    A root inside ``folder`` is written relative to it, so that both can be moved together.

    Raises:
        OutputError: no permission, or no space.
    """
    inside = tiles.root.is_relative_to(folder)
    root = tiles.root.relative_to(folder) if inside else tiles.root.absolute()
    content = {
        "schema_version": _SCHEMA_VERSION,
        "kind": tiles.kind,
        "root": root.as_posix(),
        "size_px": tiles.size_px,
        "mpp": tiles.mpp,
        "has_places": tiles.has_places,
        "published_split": tiles.published_split,
        **details,
    }
    write_json(folder / RECORD_NAME, content)


def read_import_record(folder: Path) -> ImportedTiles | None:
    """What the importer wrote; None where the tiles in ``folder`` were not imported.

    Raises:
        StageError: it cannot be read, or is of another version.
    """
    path = folder / RECORD_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']}")
        return ImportedTiles(
            kind=content["kind"],
            root=folder / content["root"],
            size_px=content["size_px"],
            mpp=content["mpp"],
            has_places=content["has_places"],
            published_split=content["published_split"],
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"is no record of an import: {error}", where=path, remedy=_IMPORT_AGAIN
        ) from None


def slide_records(
    folder: Path, slide_ids: Sequence[str], parameters: TileConfig
) -> dict[str, dict[str, Any]]:
    """What is known of each slide, whether its tiles were cut by the tile stage or imported.

    Of imported tiles ``tissue_area_mm2`` is the area of a slide's tiles, as nobody measured its
    tissue. Where their resolution is not known, that of ``parameters`` stands for it, with a
    warning.

    Args:
        folder: of the index.
        slide_ids: of the slides.
        parameters: the section ``tile`` of the configuration.

    Returns:
        The records of the tile stage, or such with the keys ``parameters``, ``slide``
        (``synthetic``) and ``tissue_area_mm2``.

    Raises:
        StageError: a slide has no record or no tiles, or the imported tiles have another size or
            resolution than ``parameters`` says.
    """
    imported = read_import_record(folder)
    if imported is None:
        return read_tile_records(folder, slide_ids)
    for key, wanted, found in (
        ("size_px", parameters.size_px, imported.size_px),
        ("mpp", parameters.mpp, imported.mpp),
    ):
        if found is not None and abs(wanted - found) > 1e-9:
            raise StageError(
                f"the imported tiles have {key} {found:g}, and tile.{key} is {wanted:g}",
                where=folder / RECORD_NAME,
                remedy=f"Set tile.{key} to {found:g}.",
            )
    if imported.mpp is None:
        warn(
            f"nobody knows the resolution of the imported tiles; tile.mpp {parameters.mpp:g} um/px "
            "is taken for it."
        )
    tiles = read_index(folder)["slide_id"].value_counts()
    missing = [slide_id for slide_id in slide_ids if slide_id not in tiles]
    if missing:
        raise StageError(
            f"holds no tile of slide '{missing[0]}'",
            where=folder / INDEX_NAME,
            remedy=_IMPORT_AGAIN,
        )
    tile_mm = parameters.size_px * parameters.mpp / 1000
    return {
        slide_id: {
            "parameters": parameters.recorded(),
            "slide": {"synthetic": False},
            "tissue_area_mm2": int(tiles[slide_id]) * tile_mm**2,
        }
        for slide_id in slide_ids
    }


def refuse_imported(folder: Path) -> None:
    """Raise a StageError where the tiles in ``folder`` were imported: there is nothing to tile."""
    imported = read_import_record(folder)
    if imported is not None:
        raise StageError(
            f"these tiles were imported ('medkd import {imported.kind}'), not cut from slides",
            where=folder,
            remedy="Go on with 'medkd split' or 'medkd train', or set 'output' to another folder.",
        )


def turned_by_exif(image: Image.Image) -> str:
    """In words, that EXIF data turn or mirror an image with boxes; empty where they do not.

    Ask before the pixels are loaded: Pillow turns a TIFF then, and forgets that it did.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Viewers pass over numbers that mean nothing, and so does medkd infer.
    if orientation not in range(2, 9):
        return ""
    return (
        f"turned by EXIF (orientation {orientation}): whether its boxes mean the stored or the "
        "upright image is not known"
    )


def read_image(path: Path, *, turned: bool = True) -> np.ndarray:
    """The image at ``path``: uint8, height x width x 3, RGB.

    Args:
        path: of the image.
        turned: take an image that EXIF data turn, as its pixels lie in the file.

    Raises:
        StageError: there is no such image, it cannot be decoded, or it is turned and must not be.
    """
    try:
        with Image.open(path) as image:
            if not turned and (fault := turned_by_exif(image)):
                raise StageError(fault, where=path, remedy=WITHOUT_TAG)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StageError(
            "no such image",
            where=path,
            remedy=f"If the tile set was moved, mend 'root' in {RECORD_NAME}; otherwise run "
            "'medkd import' again.",
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        # Pillow tells of a damaged PNG by a SyntaxError.
        raise StageError(
            f"cannot be decoded: {error}",
            where=path,
            remedy="Run 'medkd import' again with --decode, which leaves such files out.",
        ) from error
