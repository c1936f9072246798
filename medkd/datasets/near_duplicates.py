"""Tiles of one role that stand in another one too, turned, mirrored or encoded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medkd.datasets.perceptual_hash import (
    BANDS,
    BITS_OF_BAND,
    ORIENTATIONS,
    hash_distance,
    orientation_hashes,
)

# Hashes of the same tile, encoded at quality 30, made smaller or recoloured, differed in 4 bits at
# most on 1,500 real tiles.
MOST_BITS = 10
# Detail of two real tiles agreed by chance to 0.29 at most (3,000 pairs); of the same tile at
# quality 30, or at half its side, to 0.99 at least.
LEAST_AGREEMENT = 0.7

_DETAIL_PX = 64
_COARSE_PX = 8
_MOST_COMPARED = 16
_ENOUGH = 1000
_ROWS_AT_ONCE = 2**22

Grey = Callable[[int], np.ndarray]
"""Grey values (height x width) of the tile with this row number."""


@dataclass(frozen=True)
class Candidates:
    """Distinct hashes of two sides that are near each other.

    Attributes:
        one, other: the distinct hashes of either side, uint64.
        pairs: n x 2, indices into ``one`` and ``other``, the nearest first.
    """

    one: np.ndarray
    other: np.ndarray
    pairs: np.ndarray


def candidate_pairs(one: np.ndarray, other: np.ndarray) -> Candidates:
    """Find hashes that lie within 10 bits of each other in some orientation.

    A pair is found if one of the four bands of 16 bits is the same in both: always where 3 bits
    differ or fewer (pigeonhole), nearly always with more, and without comparing all with all.

    Args:
        one: hashes of one side, uint64.
        other: of the other side, which is turned.
    """
    one, other = np.unique(one), np.unique(other)
    found = [np.empty((0, 3), np.int64)]
    if len(one) and len(other):
        turned = orientation_hashes(other)
        for band in range(BANDS):
            found += _same_band(one, turned, np.uint64(band * BITS_OF_BAND))
    table = np.concatenate(found)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.ones(len(table), bool)
    first[1:] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    table = table[first]
    return Candidates(one, other, table[np.argsort(table[:, 2], kind="stable"), :2])


def _same_band(one: np.ndarray, turned: np.ndarray, shift: np.uint64) -> list[np.ndarray]:
    """Rows (index of one, index of other, distance) of the hashes that share a band."""
    mask = np.uint64(2**BITS_OF_BAND - 1)
    keys = (one >> shift) & mask
    order = np.argsort(keys, kind="stable")
    sizes = np.bincount(keys.astype(np.int64), minlength=2**BITS_OF_BAND)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    found = []
    for orientation in range(ORIENTATIONS):
        hashes = turned[:, orientation]
        wanted = ((hashes >> shift) & mask).astype(np.int64)
        ends = np.cumsum(sizes[wanted])
        begin = 0
        while begin < len(hashes):
            before = ends[begin - 1] if begin else 0
            end = max(int(np.searchsorted(ends, before + _ROWS_AT_ONCE, "right")), begin + 1)
            many = sizes[wanted[begin:end]]
            index_b = np.repeat(np.arange(begin, end), many)
            within = np.arange(len(index_b)) - np.repeat(np.cumsum(many) - many, many)
            index_a = order[starts[wanted[index_b]] + within]
            distance = hash_distance(one[index_a], hashes[index_b])
            near = distance <= MOST_BITS
            found.append(np.stack([index_a[near], index_b[near], distance[near]], axis=1))
            begin = end
    return found


@dataclass(frozen=True)
class Duplicates:
    """Tiles that were confirmed on their pixels.

    Attributes:
        pairs: row numbers of (a tile of one side, a tile of the other); each tile of the other side
            once.
        stopped: there were 1,000, and the rest was not looked at.
        not_compared: tiles of the other side that share a hash with more tiles than were compared,
            none of which was the same.
    """

    pairs: tuple[tuple[int, int], ...]
    stopped: bool
    not_compared: int


def confirmed_duplicates(
    hashes: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    grey: Grey,
    least_agreement: float = LEAST_AGREEMENT,
) -> Duplicates:
    """Find the tiles of ``other`` that are tiles of ``one``, and compare their pixels.

    Args:
        hashes: of all tiles, uint64.
        one, other: row numbers of the tiles of either side.
        grey: reads a tile.
        least_agreement: of the details of two tiles that are the same one.
    """
    near = candidate_pairs(hashes[one], hashes[other])
    rows_of = [_rows_by_hash(hashes, side, known)
               for side, known in ((one, near.one), (other, near.other))]  # fmt: skip
    compared: dict[int, int] = {}
    same: dict[int, int] = {}
    detail = _Details(grey)
    for index_one, index_other in near.pairs.tolist():
        for row in rows_of[1](index_other):
            for candidate in rows_of[0](index_one):
                if row in same or compared.get(row, 0) >= _MOST_COMPARED:
                    break
                compared[row] = compared.get(row, 0) + 1
                if agreement(detail.of(candidate), detail.of(row)) >= least_agreement:
                    same[row] = candidate
            if len(same) >= _ENOUGH:
                return Duplicates(_pairs(same), True, 0)
    full = sum(many >= _MOST_COMPARED and row not in same for row, many in compared.items())
    return Duplicates(_pairs(same), False, full)


def _pairs(same: dict[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((candidate, row) for row, candidate in same.items())


def _rows_by_hash(
    hashes: np.ndarray, rows: np.ndarray, known: np.ndarray
) -> Callable[[int], list[int]]:
    """Gives the row numbers that have the hash ``known[index]``."""
    numbers = np.searchsorted(known, hashes[rows])
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(len(known) + 1))

    def rows_of(index: int) -> list[int]:
        return rows[order[starts[index] : starts[index + 1]]].tolist()

    return rows_of


class _Details:
    """Details of the tiles that were read last."""

    def __init__(self, grey: Grey) -> None:
        self._grey, self._kept = grey, dict[int, np.ndarray]()

    def of(self, row: int) -> np.ndarray:
        if row not in self._kept:
            if len(self._kept) >= 4 * _MOST_COMPARED:
                del self._kept[next(iter(self._kept))]
            self._kept[row] = tile_detail(self._grey(row))
        return self._kept[row]


def tile_detail(grey: np.ndarray) -> np.ndarray:
    """What a tile shows beside its coarse shades: 64 x 64 float32, of length 1.

    Two tiles with tissue in the same corner have the same shades, yet not the same detail. Zero
    where there is no detail.
    """
    image = Image.fromarray(np.asarray(grey, np.uint8))
    small = np.asarray(
        image.resize((_DETAIL_PX, _DETAIL_PX), Image.Resampling.BILINEAR), np.float32
    )
    blocks = _DETAIL_PX // _COARSE_PX
    means = small.reshape(blocks, _COARSE_PX, blocks, _COARSE_PX).mean(axis=(1, 3))
    detail = small - np.kron(means, np.ones((_COARSE_PX, _COARSE_PX), np.float32))
    length = float(np.linalg.norm(detail))
    # Half a level: what rounding alone leaves.
    return detail / length if length > _DETAIL_PX / 2 else np.zeros_like(detail)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The best correlation of two details over the eight orientations; 0 where one has none."""
    turned = (np.rot90(side, turns) for side in (other, other.T) for turns in range(4))
    return max(float((one * side).sum()) for side in turned)
