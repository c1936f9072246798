"""Bags of tile embeddings, for attention over what a frozen network says of each tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medkd.datasets.bags import at_least_one, drawn_tiles
from medkd.datasets.patches import seed_of
from medkd.errors import StageError


class EmbeddingBags(Dataset[dict[str, Any]]):
    """Bags of embeddings: an item is ``{"embedding": float32 N x D, "label": int, "bag_id": str}``.

    What is drawn of a bag is a function of (seed, epoch, index); an index alone is of epoch 0.

    Args:
        embeddings: float32 or float16, tiles x D. Mapped from a file
            (``numpy.load(path, mmap_mode="r")``) they stay on the disk, and every process of a
            loader maps the file, of which nothing is sent.
        offsets: bags + 1: bag i has the tiles from ``offsets[i]`` up to ``offsets[i + 1]``.
        labels: number of each bag's class.
        bag_ids: of the slides or patients; None: the numbers of the bags.
        rows: which embedding each tile has, (tiles,); None: those of one bag lie together, one bag
            after another.
        places: of each tile, tiles x 2, level-0 pixels; an item then has its own, int32 N x 2.
        max_tiles: draw at most so many of a bag, anew in each epoch; None: all of them.
        seed: of the experiment.

    Raises:
        ConfigError: ``max_tiles`` is below 1.
        StageError: the arrays have other shapes or types, or do not belong together, or a bag is
            empty; for an item, an embedding is not finite.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        offsets: np.ndarray,
        labels: np.ndarray,
        *,
        bag_ids: Sequence[str] | None = None,
        rows: np.ndarray | None = None,
        places: np.ndarray | None = None,
        max_tiles: int | None = None,
        seed: int = 0,
    ) -> None:
        self._embeddings = embeddings
        self._offsets: np.ndarray = np.asarray(offsets, np.int64)
        self.labels: np.ndarray = np.asarray(labels, np.int64)
        names = [str(n) for n in range(len(self.labels))] if bag_ids is None else list(bag_ids)
        self.bag_ids = names
        self._rows = None if rows is None else np.asarray(rows, np.int64)
        self._places = None if places is None else np.asarray(places, np.int32)
        self._max = None if max_tiles is None else at_least_one(max_tiles)
        self._seed = seed
        self._check()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: int | tuple[int, int]) -> dict[str, Any]:
        """The bag of an index, or of (epoch, index)."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        index = range(len(self))[index]
        first, end = self._offsets[index : index + 2].tolist()
        tiles: slice | np.ndarray = slice(first, end)
        if self._max is not None:
            random = np.random.RandomState(seed_of(self._seed, epoch, index))
            tiles = first + drawn_tiles(end - first, self._max, random)
        rows = tiles if self._rows is None else self._rows[tiles]
        found = np.array(self._embeddings[rows], np.float32)
        if not np.isfinite(found).all():
            raise StageError(
                "an embedding is not finite",
                where=f"bag '{self.bag_ids[index]}'",
                remedy="Embed the tiles of this bag again.",
            )
        item = {
            "embedding": torch.from_numpy(found),
            "label": int(self.labels[index]),
            "bag_id": self.bag_ids[index],
        }
        if self._places is not None:
            item["places"] = torch.from_numpy(self._places[tiles].copy())
        return item

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_embeddings": _MappedRows.of(self._embeddings)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state["_embeddings"]
        opened = kept.open() if isinstance(kept, _MappedRows) else kept
        self.__dict__.update(state, _embeddings=opened)

    def _check(self) -> None:
        shape, kind = self._embeddings.shape, self._embeddings.dtype
        if len(shape) != 2 or kind not in (np.float32, np.float16):
            raise StageError(
                f"the embeddings are {kind} of shape {' x '.join(map(str, shape))}",
                where="embeddings",
                remedy="Give float32 or float16, a row for each tile.",
            )
        tiles, bags = shape[0], len(self.labels)
        if self._rows is not None:
            tiles = len(self._rows)
            if tiles and not 0 <= self._rows.min() <= self._rows.max() < shape[0]:
                raise StageError(
                    f"rows from {self._rows.min()} to {self._rows.max()} do not fit {shape[0]} "
                    "embeddings",
                    where="rows",
                    remedy="Give numbers of embeddings, counted from 0.",
                )
        ends = self._offsets[:1].tolist() + self._offsets[-1:].tolist()
        if len(self._offsets) != bags + 1 or ends != [0, tiles]:
            raise StageError(
                f"{len(self._offsets)} offsets from {ends[0] if ends else 'nothing'} to "
                f"{ends[1] if ends else 'nothing'} do not fit {bags} labels and {tiles} embeddings",
                where="offsets",
                remedy="Give one more than there are labels, from 0 to the number of embeddings.",
            )
        empty = np.flatnonzero(np.diff(self._offsets) < 1)
        if len(empty):
            raise StageError(
                f"{len(empty)} bags have no embedding (the first is number {empty[0]})",
                where="offsets",
                remedy="Leave these bags out; offsets must ascend.",
            )
        for what, count, wanted in (
            ("bag_ids", len(self.bag_ids), bags),
            ("places", tiles if self._places is None else len(self._places), tiles),
        ):
            if count != wanted:
                raise StageError(
                    f"there are {count} {what}, and {wanted} are needed",
                    where=what,
                    remedy="Give one for each bag, and one place for each embedding.",
                )


@dataclass(frozen=True)
class _MappedRows:
    """Where rows lie in a file, for processes that map it themselves."""

    path: str
    offset_bytes: int
    shape: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(rows: np.ndarray) -> _MappedRows | np.ndarray:
        """Of rows that can be mapped again; of others, the rows themselves."""
        if not isinstance(rows, np.memmap) or rows.filename is None or rows.mode == "c":
            return np.asarray(rows)
        if not rows.flags.c_contiguous:
            return np.asarray(rows)
        whole = rows
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        # A slice says where the whole array begins in the file, not where itself does.
        offset_bytes = int(whole.offset) + rows.ctypes.data - whole.ctypes.data
        return _MappedRows(str(rows.filename), offset_bytes, rows.shape, rows.dtype.str)

    def open(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset_bytes, self.shape)
