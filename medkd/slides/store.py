"""The tile store: one zip of JPEGs (or of bare places) for each slide, and the index over all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from medkd.errors import StageError
from medkd.files import atomic_path
from medkd.progress import warn

if TYPE_CHECKING:
    import pandas as pd  # infer takes the encoding alone, and starts faster without it

INDEX_NAME = "index.parquet"
INDEX_COLUMNS = {
    "slide_id": "string",
    "patient_id": "string",
    "x": "int32",
    "y": "int32",
    "mpp": "float64",
    "size_px": "int32",
    "tissue_fraction": "float32",
    "focus": "float32",
}
RANGE_COLUMNS = {"offset_bytes": "int64", "length_bytes": "int32"}
"""Further columns: where a tile's entry begins in its zip, and how long its JPEG is."""

_JPEG = ".jpg"

_TILE_COLUMNS = ["x", "y", "tissue_fraction", "focus"]

_TILE_FIRST = "Run 'medkd tile' first."

# The earliest date a zip can hold: the same slide gives the same bytes on any day.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def encode_tile(pixels: np.ndarray, quality: int) -> bytes:
    """Encode a tile (uint8, height x width x 3, RGB) as JPEG; the same pixels, the same bytes.

    Colour is kept at full resolution (4:4:4): stains are told apart by colour. On tiles of two
    real slides quality 90 at 4:4:4 takes the bytes of quality 95 at 4:2:0 with half its error
    (mean 2.2 against 4.1 of 255 levels).
    """
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def decode_tile(data: bytes) -> np.ndarray:
    """Decode a stored tile to uint8, height x width x 3, RGB."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


@dataclass(frozen=True)
class StoredTile:
    """What the store says of one tile. ``x``, ``y``: top left corner, level-0 pixels."""

    x: int
    y: int
    tissue_fraction: float
    focus: float


class TileStoreWriter:
    """Adds encoded tiles to a store; made by :func:`writing_store`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, tile: StoredTile, jpeg: bytes | None) -> None:
        """Store one tile, or just its place; its figures go into the entry's comment."""
        ending = _JPEG if jpeg is not None else ""
        entry = zipfile.ZipInfo(f"{tile.x}_{tile.y}{ending}", _ZIP_DATE)
        entry.comment = (
            f"tissue_fraction={tile.tissue_fraction:.4f} focus={tile.focus:.5f}".encode()
        )
        # The permissions and system of the machine would otherwise be written too.
        entry.create_system = 3
        entry.external_attr = 0o644 << 16
        self._archive.writestr(entry, jpeg or b"", zipfile.ZIP_STORED)


@contextmanager
def writing_store(path: Path) -> Iterator[TileStoreWriter]:
    """Write the store at ``path``, whole or not at all.

    Raises:
        OutputError: no permission, or no space.
    """
    with atomic_path(path) as temporary:
        # The zip is closed by hand: after a full disk its closing fails a second time, and
        # that error must not hide the first.
        archive = zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED)
        try:
            yield TileStoreWriter(archive)
        except BaseException:
            if archive.fp is not None:
                archive.fp.close()
                archive.fp = None
            raise
        archive.close()


class TileStore:
    """Reads tiles of one store.

    The file is opened at the first read, and again in every process that reads, so that a store
    can be handed to loader workers of any start method.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        self._pid = 0

    def tiles(self) -> list[StoredTile]:
        """Every tile, in the order of the file; no image is read."""
        return [_stored_tile(entry) for entry in self._open().infolist()]

    def table(self) -> pd.DataFrame:
        """Every tile as a row of the index, without what is the same for the whole slide.

        Raises:
            StageError: there is no such store, it is damaged, or another tool compressed it.
        """
        import pandas as pd

        entries = self._open().infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise self._unusable("was written by another tool: its tiles are compressed")
        table = pd.DataFrame(map(_stored_tile, entries), columns=_TILE_COLUMNS)
        table["offset_bytes"] = [entry.header_offset for entry in entries]
        table["length_bytes"] = [entry.file_size for entry in entries]
        return table

    def read(self, x: int, y: int) -> np.ndarray:
        """The tile at (x, y): uint8, height x width x 3, RGB.

        Raises:
            StageError: there is no such tile or store, or the store is damaged.
        """
        return decode_tile(self.read_bytes(x, y))

    def read_bytes(self, x: int, y: int) -> bytes:
        """The JPEG of the tile at (x, y); raises as :meth:`read`."""
        try:
            return self._open().read(f"{x}_{y}{_JPEG}")
        except KeyError:
            raise self.lacks(x, y) from None
        except zipfile.BadZipFile as error:
            raise self._unusable(f"is damaged at ({x}, {y}): {error}") from error

    def lacks(self, x: int, y: int) -> StageError:
        """The error that there is no tile at (x, y)."""
        return self._unusable(f"has no tile at ({x}, {y})")

    def close(self) -> None:
        """Release the file."""
        if self._archive is not None and self._pid == os.getpid():
            self._archive.close()
        self._archive = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_archive": None, "_pid": 0}

    def __enter__(self) -> TileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> zipfile.ZipFile:
        # A forked process shares its parent's file position: each needs a file of its own.
        if self._archive is None or self._pid != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except FileNotFoundError:
                raise self._unusable("no such tile store") from None
            except (zipfile.BadZipFile, IsADirectoryError) as error:
                raise self._unusable(f"is not a tile store: {error}") from error
            self._pid = os.getpid()
        return self._archive

    def _unusable(self, what: str) -> StageError:
        return StageError(
            what, where=self.path, remedy="Delete the file and run 'medkd tile' again."
        )


def write_index(folder: Path, slides: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Write ``index.parquet``: one row for each tile of ``slides``, and return it.

    Args:
        folder: of the stores.
        slides: the JSON records of the slides that belong in it. Other stores in the folder,
            left by an earlier table, stay out.

    Raises:
        OutputError: no permission, or no space.
        StageError: a slide's store is missing or damaged.
    """
    import pandas as pd

    parts = []
    for record in slides:
        with TileStore(folder / f"{record['slide_id']}.zip") as store:
            part = store.table()
        part["slide_id"] = record["slide_id"]
        part["patient_id"] = record["patient_id"]
        part["mpp"] = record["parameters"]["mpp"]
        part["size_px"] = record["parameters"]["size_px"]
        parts.append(part)
    columns = INDEX_COLUMNS | RANGE_COLUMNS
    empty = pd.DataFrame(columns=list(columns))
    index = pd.concat(parts, ignore_index=True) if parts else empty
    index = index[list(columns)].astype(columns)
    with atomic_path(folder / INDEX_NAME) as temporary:
        index.to_parquet(temporary, index=False)
    return index


def read_index(folder: Path) -> pd.DataFrame:
    """The index of the tile stores in ``folder``: one row for each tile, :data:`INDEX_COLUMNS`.

    Imported tiles have further columns; those cut by the tile stage have :data:`RANGE_COLUMNS`,
    unless an earlier version wrote the index.

    Raises:
        StageError: there is none, or it is not one.
    """
    import pandas as pd

    path = folder / INDEX_NAME
    try:
        index = pd.read_parquet(path)
    except FileNotFoundError:
        raise StageError("no tiles are there yet", where=path, remedy=_TILE_FIRST) from None
    except (OSError, ValueError) as error:
        # pyarrow's own errors are among both.
        raise StageError(f"cannot be read: {error}", where=path, remedy=_TILE_FIRST) from error
    missing = [name for name in INDEX_COLUMNS if name not in index.columns]
    if missing:
        raise StageError(f"lacks the columns {', '.join(missing)}", where=path, remedy=_TILE_FIRST)
    return index


def with_ranges(tiles: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Rows of the index with :data:`RANGE_COLUMNS`.

    Where an index of an earlier version lacks them, they are looked up in the stores.

    Args:
        tiles: with ``slide_id``, ``x`` and ``y``.
        folder: of the stores.

    Raises:
        StageError: a store is missing or damaged, or lacks a tile.
    """
    import pandas as pd

    if all(name in tiles.columns for name in RANGE_COLUMNS):
        return tiles
    slides = tiles["slide_id"].unique()
    warn(
        f"the tile index does not say where each tile lies; {len(slides)} stores are looked "
        "through. 'medkd tile' writes an index that does, and cuts no tile again."
    )
    stores = {slide: TileStore(folder / f"{slide}.zip") for slide in slides}
    parts = []
    for slide, store in stores.items():
        with store:
            part = store.table()[["x", "y", *RANGE_COLUMNS]]
        parts.append(part.assign(slide_id=slide))
    if not parts:
        return tiles.assign(**{name: pd.Series(dtype=kind) for name, kind in RANGE_COLUMNS.items()})
    key = ["slide_id", "x", "y"]
    found = tiles[key].merge(pd.concat(parts), on=key, how="left", validate="m:1")
    lacking = found[found["offset_bytes"].isna()]
    if len(lacking):
        slide, x, y = lacking[key].iloc[0]
        raise stores[slide].lacks(x, y)
    return tiles.assign(
        **{name: found[name].to_numpy(dtype=kind) for name, kind in RANGE_COLUMNS.items()}
    )


def read_tile_records(folder: Path, slide_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the tile stage wrote about each slide (``<slide_id>.json``).

    Raises:
        StageError: a slide has none.
    """
    records = {}
    for slide_id in slide_ids:
        path = folder / f"{slide_id}.json"
        try:
            records[slide_id] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise StageError("no such record of a slide", where=path, remedy=_TILE_FIRST) from None
    return records


def _stored_tile(entry: zipfile.ZipInfo) -> StoredTile:
    x, _, y = entry.filename.removesuffix(_JPEG).partition("_")
    figures = dict(part.split("=") for part in entry.comment.decode().split())
    return StoredTile(int(x), int(y), float(figures["tissue_fraction"]), float(figures["focus"]))
