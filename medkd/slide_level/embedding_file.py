"""The embeddings that ``medkd predict --embeddings`` keeps, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.errors import StageError

_REMEDY = "Run 'medkd predict --embeddings' again."


class EmbeddingFile:
    """Embeddings of all tiles of a run, float16 on the disk.

    Args:
        folder: ``<run>/embeddings``, see docs/files.md.
        students: whose embeddings are wanted.

    Attributes:
        tiles: a row for each embedding, with ``slide_id``, ``patient_id`` and ``role``.
        arrays: of each student, float16 rows x D, mapped.

    Raises:
        StageError: a file is missing or cannot be read, or they do not belong together.
    """

    def __init__(self, folder: Path, students: Sequence[str]) -> None:
        table = folder / "tiles.parquet"
        if not table.exists():
            raise StageError(
                "there are no embeddings, which a learned pooling works on",
                where=folder,
                remedy="Run 'medkd predict --embeddings', or set slide_level.pooling and "
                "slide_level.compare_poolings to poolings of probabilities.",
            )
        try:
            self.tiles = pd.read_parquet(table, columns=["slide_id", "patient_id", "role"])
            self.arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in students
            }
        except (OSError, ValueError) as error:
            raise StageError(
                f"cannot be read: {str(error)[:200]}", where=folder, remedy=_REMEDY
            ) from error
        for name, array in self.arrays.items():
            if array.ndim != 2 or len(array) != len(self.tiles):
                raise StageError(
                    f"has the shape {' x '.join(map(str, array.shape))} for {len(self.tiles)} "
                    "tiles",
                    where=folder / f"{name}.npy",
                    remedy=_REMEDY,
                )
        self._folder = folder
        self._rows: Mapping[str, np.ndarray] = self.tiles.groupby("slide_id").indices

    def of_slide(self, slide_id: str, tiles: int) -> dict[str, np.ndarray]:
        """Each student's embeddings of one slide, float32 tiles x D.

        Args:
            slide_id: of the slide.
            tiles: how many it must have.

        Raises:
            StageError: it has others.
        """
        rows = self._rows.get(slide_id, np.empty(0, np.int64))
        if len(rows) != tiles:
            raise StageError(
                f"has embeddings of {len(rows)} tiles of slide '{slide_id}', and predictions of "
                f"{tiles}",
                where=self._folder,
                remedy=_REMEDY,
            )
        return {name: array[rows].astype(np.float32) for name, array in self.arrays.items()}
