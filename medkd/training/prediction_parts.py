"""Predictions of a run, kept slide by slide until all are there, so that none is made twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.files import (
    atomic_path,
    make_folder,
    output_errors,
    remove_stale_temporaries,
    sha256_of_json,
    write_json,
)
from medkd.slide_level.feature_file import FEATURE_FILE, feature_row
from medkd.slide_level.slide_features import SlideFeatures
from medkd.training.data import slide_ranges

FILE = "predictions.parquet"
EMBEDDINGS = "embeddings"

_TEXT = pa.string()
_SCHEMA = pa.schema(
    [
        ("slide_id", _TEXT),
        ("patient_id", _TEXT),
        ("role", _TEXT),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("network", _TEXT),
        ("probability", pa.float32()),
    ]
)


class PredictionParts:
    """What is predicted of a run so far.

    A part is written when its slide is done, whole or not at all. Parts of other networks, tiles
    or settings than those of ``made_of`` are removed.

    Args:
        run_folder: of the run.
        tiles: of all slides, those of one slide together, with ``slide_id``, ``patient_id``,
            ``role``, ``x`` and ``y``.
        made_of: all that decides what is predicted, in JSON's types.

    Attributes:
        done: slides whose part is there.
    """

    def __init__(self, run_folder: Path, tiles: pd.DataFrame, made_of: Mapping[str, Any]) -> None:
        self._run_folder = run_folder
        self._folder = run_folder / "predictions.parts"
        self._tiles = tiles
        self._key = sha256_of_json(dict(made_of))
        self._rows = slide_ranges(tiles)
        self.slide_ids = list(self._rows)
        if _read_key(self._folder / "key.json") != self._key:
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.rmtree(run_folder / EMBEDDINGS, ignore_errors=True)
            make_folder(self._folder)
            write_json(self._folder / "key.json", {"made_of": self._key})
        remove_stale_temporaries(self._folder)
        self.done = {slide for slide in self.slide_ids if self._part(slide).exists()}

    def rows(self, slide_id: str) -> tuple[int, int]:
        """Place of a slide's first tile in the table, and behind its last."""
        return self._rows[slide_id]

    def embeddings(self, sizes: Mapping[str, int]) -> dict[str, np.memmap]:
        """A file for each network, float16, tiles of the table x its size; opened to write.

        Those of an interrupted run are gone on with.
        """
        folder = make_folder(self._run_folder / EMBEDDINGS)
        opened = {}
        for network, size in sizes.items():
            path, shape = folder / f"{network}.npy", (len(self._tiles), size)
            with output_errors(path):
                if not path.exists():
                    _make_array(path, shape)
                    self.done.clear()
                opened[network] = np.lib.format.open_memmap(path, "r+")
        return opened

    def write(
        self, slide_id: str, probabilities: Mapping[str, np.ndarray], features: SlideFeatures
    ) -> None:
        """Keep one slide's probabilities, float32 (tiles,) of each network, and what it is like."""
        first, behind = self.rows(slide_id)
        tiles = self._tiles.iloc[first:behind]
        slide = tiles.iloc[0]
        row = feature_row(slide_id, slide["patient_id"], slide["role"], features)
        with atomic_path(self._features(slide_id)) as path:
            pq.write_table(row, path)
        networks = list(probabilities)
        columns: dict[str, Any] = {
            name: np.tile(tiles[name].to_numpy(), len(networks))
            for name in ("slide_id", "patient_id", "role", "x", "y")
        }
        columns["network"] = np.repeat(networks, len(tiles))
        columns["probability"] = np.concatenate([probabilities[name] for name in networks])
        table = pa.table(columns)
        with atomic_path(self._part(slide_id)) as path:
            pq.write_table(table.cast(_SCHEMA), path)
        self.done.add(slide_id)

    def assemble(self) -> Path:
        """Put all parts together, a row group for each slide, and remove them."""
        path = self._run_folder / FILE
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
            for slide_id in self.slide_ids:
                writer.write_table(pq.read_table(self._part(slide_id)).cast(_SCHEMA))
        rows = [pq.read_table(self._features(slide_id)) for slide_id in self.slide_ids]
        with atomic_path(self._run_folder / FEATURE_FILE) as temporary:
            pq.write_table(pa.concat_tables(rows), temporary)
        folder = self._run_folder / EMBEDDINGS
        if folder.is_dir():
            with atomic_path(folder / "tiles.parquet") as temporary:
                columns = self._tiles[["slide_id", "patient_id", "role", "x", "y"]]
                columns.to_parquet(temporary, index=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        return path

    def _part(self, slide_id: str) -> Path:
        return self._folder / f"{slide_id}.parquet"

    def _features(self, slide_id: str) -> Path:
        return self._folder / "features" / f"{slide_id}.parquet"


def _make_array(path: Path, shape: tuple[int, int]) -> None:
    """A file of float16 with all of its space on the disk, or none.

    A file with holes would meet a full disk hours later, and as a signal that ends the process.
    """
    try:
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
        if sys.platform == "linux":
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _read_key(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["made_of"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
