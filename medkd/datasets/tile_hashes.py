"""A hash of every tile of a store, kept beside it: only new tiles are read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import simplejpeg
from PIL import Image

from medkd.datasets.perceptual_hash import hash_tile
from medkd.errors import OutputError, StageError
from medkd.files import atomic_path
from medkd.progress import progress, warn
from medkd.slides.imported_tiles import read_image
from medkd.slides.slide_tiles import SlideTiles
from medkd.slides.store import TileStore

HASHES_NAME = "tile-hashes.parquet"

TilePlace = tuple[str, int, int]
"""(path, x, y) as :func:`medkd.datasets.patches.patch_items` gives it."""

# Hashes of another version are made anew.
_VERSION = 1
_LEAST_PX = 32
_TILES_OF_A_TASK = 1000
_MOST_THREADS = 16
_TOLD_FROM_TILES = 2000
_JPEG_BEGINS = b"\xff\xd8"
_KEY = ["file", "x", "y", "bytes", "mtime_ns"]


class GreyTiles:
    """Reads tiles in grey: of zips, slides (``.json``) and images. One for each thread."""

    def __init__(self) -> None:
        self._stores: dict[str, TileStore] = {}
        self._slides = SlideTiles()

    def read(self, place: TilePlace, *, least_px: int = 0) -> tuple[np.ndarray, bytes]:
        """A tile and what it was decoded from.

        Args:
            place: of the tile.
            least_px: a JPEG is decoded at reduced size, yet with sides of this or more, pixels;
                0 decodes it whole.

        Returns:
            uint8, height x width, and the bytes of the JPEG, or of the pixels where there is none.

        Raises:
            StageError: it cannot be read.
            SlideError: its slide cannot be opened.
        """
        path, x, y = place
        try:
            data = self._stored(path, x, y)
            if data is not None and data.startswith(_JPEG_BEGINS):
                grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=least_px, min_width=least_px)
                return grey[..., 0], data
            pixels = self._slides.read(Path(path), x, y) if data is None else read_image(Path(path))
        except (OSError, EOFError, ValueError) as error:
            raise StageError(
                f"the tile at ({x}, {y}) cannot be read: {error or type(error).__name__}",
                where=path,
                remedy="Look whether the disk or share is there; if the file itself is damaged, "
                "delete it and run 'medkd tile' again.",
            ) from error
        return np.asarray(Image.fromarray(pixels).convert("L")), pixels.tobytes()

    def _stored(self, path: str, x: int, y: int) -> bytes | None:
        """The file of a tile; None where it is cut from its slide."""
        if path.endswith(".json"):
            return None
        if not path.endswith(".zip"):
            return Path(path).read_bytes()
        if path not in self._stores:
            self._stores[path] = TileStore(path)
        return self._stores[path].read_bytes(x, y)

    def close(self) -> None:
        """Release the files."""
        self._slides.close()
        for store in self._stores.values():
            store.close()


def tile_hashes(places: Sequence[TilePlace], folder: Path) -> pd.DataFrame:
    """The hash of every tile, from ``folder/tile-hashes.parquet`` or made and kept there.

    Args:
        places: of the tiles.
        folder: of the tile store. Where it cannot be written to, hashes are not kept, with a
            warning.

    Returns:
        One row for each place: ``digest`` (of the stored bytes) and ``hash``, uint64, and
        ``contrast``, float32, see :func:`medkd.datasets.perceptual_hash.hash_tile`.

    Raises:
        StageError: a tile cannot be read.
        SlideError: a slide cannot be opened.
    """
    table = _keys(places, folder)
    kept = _kept(folder)
    joined = table.merge(kept, on=_KEY, how="left", indicator=True, validate="m:1")
    missing = np.flatnonzero(joined["_merge"] == "left_only")
    columns = ["digest", "hash", "contrast"]
    if not len(missing):
        return joined[columns].astype({"digest": "uint64", "hash": "uint64"})
    made = _hash_all([places[int(row)] for row in missing])
    found = table.iloc[missing].reset_index(drop=True).join(made).drop_duplicates(_KEY)
    # Slides that are not of this table keep theirs; of changed files the old ones go.
    others = kept[~kept["file"].isin(set(found["file"])) | _still(kept, table)]
    everything = pd.concat([others, found], ignore_index=True)
    try:
        with atomic_path(folder / HASHES_NAME) as temporary:
            everything.assign(version=np.int8(_VERSION)).to_parquet(temporary, index=False)
    except OutputError as error:
        warn(f"{error} Hashes of tiles are not kept, and are made again next time.")
    return table.merge(everything, on=_KEY, how="left", validate="m:1")[columns]


def _keys(places: Sequence[TilePlace], folder: Path) -> pd.DataFrame:
    """Which tile of which state of which file."""
    table = pd.DataFrame(places, columns=["path", "x", "y"])
    stamps = {}
    for path in table["path"].unique():
        try:
            found = Path(path).stat()
        except OSError as error:
            raise StageError(
                f"cannot be read: {error.strerror}",
                where=path,
                remedy="Run 'medkd tile' or 'medkd import' again.",
            ) from None
        stamps[path] = (os.path.relpath(path, folder), found.st_size, found.st_mtime_ns)
    of_file = pd.DataFrame(
        [(path, *stamp) for path, stamp in stamps.items()],
        columns=["path", "file", "bytes", "mtime_ns"],
    )
    return table.merge(of_file, on="path", how="left")[_KEY]


def _kept(folder: Path) -> pd.DataFrame:
    empty = {"file": "str", "x": "int64", "y": "int64", "bytes": "int64", "mtime_ns": "int64",
             "digest": "uint64", "hash": "uint64", "contrast": "float32"}  # fmt: skip
    try:
        table = pd.read_parquet(folder / HASHES_NAME)
        if (table["version"] == _VERSION).all():
            return table[list(empty)].astype(empty)
    except (OSError, ValueError, KeyError):
        # Absent, damaged, or of another version: what it held is made again from the tiles.
        pass
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in empty.items()})


def _still(kept: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Which rows of ``kept`` are of files that are as they were."""
    now = pd.MultiIndex.from_frame(table[["file", "bytes", "mtime_ns"]].drop_duplicates())
    return pd.MultiIndex.from_frame(kept[["file", "bytes", "mtime_ns"]]).isin(now)


def _hash_all(places: Sequence[TilePlace]) -> pd.DataFrame:
    tasks = []
    # Tiles of one zip or slide together, so that it is opened once.
    for _, group in groupby(places, key=_opened_once):
        members = list(group)
        tasks += [
            members[begin : begin + _TILES_OF_A_TASK]
            for begin in range(0, len(members), _TILES_OF_A_TASK)
        ]
    parts = []
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        if len(places) < _TOLD_FROM_TILES:
            parts = list(pool.map(_hash_some, tasks))
        else:
            with progress("hashing", len(places)) as advance:
                for part in pool.map(_hash_some, tasks):
                    parts.append(part)
                    advance(len(part))
    return pd.concat(parts, ignore_index=True)


def _opened_once(place: TilePlace) -> str:
    path = place[0]
    return path if path.endswith((".zip", ".json")) else ""


def _hash_some(places: Sequence[TilePlace]) -> pd.DataFrame:
    tiles = GreyTiles()
    digests = np.empty(len(places), np.uint64)
    hashes = np.empty(len(places), np.uint64)
    contrasts = np.empty(len(places), np.float32)
    try:
        for row, place in enumerate(places):
            grey, data = tiles.read(place, least_px=_LEAST_PX)
            digest = hashlib.blake2b(data, digest_size=8).digest()
            digests[row] = int.from_bytes(digest, "little")
            hashes[row], contrasts[row] = hash_tile(grey)
    finally:
        tiles.close()
    return pd.DataFrame({"digest": digests, "hash": hashes, "contrast": contrasts})
