"""Tiles that were imported as image files: their record, and how one is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from medkd.errors import StageError
from medkd.files import write_json

RECORD_NAME = "import.json"
IMAGE_COLUMN = "image"
"""Column of ``index.parquet`` with the path of each tile's image, relative to the root."""

_SCHEMA_VERSION = 1
_IMPORT_AGAIN = "Run 'medkd import' again."


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
    """

    kind: str
    root: Path
    size_px: int
    mpp: float | None
    has_places: bool


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
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"is no record of an import: {error}", where=path, remedy=_IMPORT_AGAIN
        ) from None


def read_image(path: Path) -> np.ndarray:
    """The image at ``path``: uint8, height x width x 3, RGB.

    Raises:
        StageError: there is no such image, or it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StageError(
            "no such image",
            where=path,
            remedy=f"If the tile set was moved, mend 'root' in {RECORD_NAME}; otherwise run "
            "'medkd import' again.",
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        # Pillow tells of a damaged PNG by a SyntaxError.
        raise StageError(f"cannot be decoded: {error}", where=path, remedy=_IMPORT_AGAIN) from error
