"""``predictions.parquet`` slide by slide, in bounded memory.

A first pass over the identifiers finds where in the file each slide's rows are; a second reads
coordinates and probabilities. The file is read in parts of about a million rows, and no more parts
are kept decoded than one slide needs. It may hold one slide after another or one network after
another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.errors import StageError

_IDENTIFIERS = ("slide_id", "network", "patient_id", "role")
_VALUES = ("x", "y", "probability")
# Row groups are read together up to this many rows: a small one costs as much as a thousand rows.
_PART_ROWS = 1_000_000
_AGAIN = "Run 'medkd predict' again."


@dataclass(frozen=True)
class SlideTiles:
    """All predictions of one slide.

    Attributes:
        slide_id, patient_id, role: of the slide.
        networks: names, in alphabetical order.
        probabilities: float32, (networks, tiles), tiles ordered by y, then x.
    """

    slide_id: str
    patient_id: str
    role: str
    networks: tuple[str, ...]
    probabilities: np.ndarray


@dataclass
class _Slide:
    patient_id: str
    role: str
    # Of each network: part, first row and the row behind the last, in the part's order.
    pieces: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)


class PredictionFile:
    """A file of predictions, opened and checked.

    Checked when it is opened: the columns; that no identifier is missing; that a slide has one
    patient and one role and all networks; that the rows of a slide and network lie together, in
    one part or in neighbouring ones, of which only the first and the last hold other slides.
    Checked while slides are read: that probabilities are ones, that no tile comes twice, and that
    all networks have the same tiles.

    Args:
        path: of the file.

    Raises:
        StageError: one of these does not hold, or the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            names = pq.read_schema(path).names
            lacking = {*_IDENTIFIERS, *_VALUES}.difference(names)
            if lacking:
                raise self._fault(f"lacks the column '{min(lacking)}'")
            self._file = pq.ParquetFile(path, read_dictionary=list(_IDENTIFIERS))
        except (OSError, pa.ArrowException) as error:
            raise self._fault(f"cannot be read: {str(error)[:200]}") from error
        if not self.rows:
            raise self._fault("has no rows")
        self._codes: dict[str, dict[str, int]] = {name: {} for name in _IDENTIFIERS}
        self._slides: dict[int, _Slide] = {}
        self._parts = _parts(self._file.metadata)
        # Parts in which slides and networks are mixed, and how many slides each part has.
        self._mixed: set[int] = set()
        self._slides_of_part: list[int] = []
        for part in range(len(self._parts)):
            self._index(part)
        self._slide_ids = list(self._codes["slide_id"])
        self._network_names = list(self._codes["network"])
        self._check_together()
        for code, slide in self._slides.items():
            for network, name in enumerate(self._network_names):
                if network not in slide.pieces:
                    raise self._fault(
                        f"slide '{self._slide_ids[code]}' has no predictions of '{name}'"
                    )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in alphabetical order."""
        return tuple(sorted(self._network_names))

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return int(self._file.metadata.num_rows)

    def slides_of_patients(self) -> dict[str, int]:
        """How many slides each patient has."""
        counts: dict[str, int] = {}
        for slide in self._slides.values():
            counts[slide.patient_id] = counts.get(slide.patient_id, 0) + 1
        return counts

    def slides(self) -> Iterator[SlideTiles]:
        """Each slide, in the order in which the file begins them.

        Raises:
            StageError: a probability is none, a tile comes twice, or networks have different
                tiles.
        """
        read: OrderedDict[int, np.ndarray] = OrderedDict()
        keep = max(len(_parts_of(slide)) for slide in self._slides.values())
        order = np.argsort(self._network_names, kind="stable")
        for code, slide in self._slides.items():
            for part in _parts_of(slide):
                if part in read:
                    read.move_to_end(part)
                else:
                    while len(read) >= keep:
                        read.popitem(last=False)
                    read[part] = self._read_values(part)
            rows = [
                np.concatenate([read[part][a:b] for part, a, b in slide.pieces[network]])
                for network in order
            ]
            yield SlideTiles(
                self._slide_ids[code],
                slide.patient_id,
                slide.role,
                self.networks,
                self._aligned(self._slide_ids[code], rows),
            )

    def patients(self) -> Iterator[list[SlideTiles]]:
        """All slides of each patient, as soon as the last of them is read.

        A slide waits for the others of its patient in memory.

        Raises:
            StageError: as for :meth:`slides`.
        """
        remaining = self.slides_of_patients()
        begun: dict[str, dict[str, list[SlideTiles]]] = {}
        for slide in self.slides():
            of_roles = begun.setdefault(slide.patient_id, {})
            of_roles.setdefault(slide.role, []).append(slide)
            remaining[slide.patient_id] -= 1
            if not remaining[slide.patient_id]:
                yield from begun.pop(slide.patient_id).values()

    def _check_together(self) -> None:
        """Rows of a slide may begin and end in shared parts; those between are its own."""
        for code, slide in self._slides.items():
            for network, pieces in slide.pieces.items():
                parts = [piece[0] for piece in pieces]
                between = [part for part in parts[1:-1] if self._slides_of_part[part] > 1]
                if between or parts[-1] - parts[0] >= len(parts):
                    raise self._fault(
                        f"the rows of slide '{self._slide_ids[code]}' and network "
                        f"'{self._network_names[network]}' lie scattered over row groups "
                        f"{self._parts[parts[0]][0]} to {self._parts[parts[-1]][-1]}",
                        remedy="Sort the file by slide_id, or run 'medkd predict' again.",
                    )

    def _index(self, part: int) -> None:
        codes, keys = self._keys(part)
        starts = _run_starts(keys)
        if len(np.unique(keys[starts])) < len(starts):
            self._mixed.add(part)
            order = np.argsort(keys, kind="stable")
            codes, keys = {name: column[order] for name, column in codes.items()}, keys[order]
            starts = _run_starts(keys)
        self._slides_of_part.append(len(np.unique(codes["slide_id"][starts])))
        names = {name: list(self._codes[name]) for name in _IDENTIFIERS}
        ends = [*starts[1:].tolist(), len(keys)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            slide_code, network = int(codes["slide_id"][start]), int(codes["network"][start])
            slide = self._slides.setdefault(
                slide_code,
                _Slide(
                    names["patient_id"][int(codes["patient_id"][start])],
                    names["role"][int(codes["role"][start])],
                ),
            )
            slide_id = names["slide_id"][slide_code]
            for name, known in (("patient_id", slide.patient_id), ("role", slide.role)):
                other = codes[name][start:end]
                if (other != self._codes[name][known]).any():
                    what = "patient" if name == "patient_id" else "role"
                    raise self._fault(f"slide '{slide_id}' has more than one {what}")
            pieces = slide.pieces.setdefault(network, [])
            pieces.append((part, start, end))

    def _keys(self, part: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Codes of each identifier, and one number for slide and network together, (rows,)."""
        table = self._read(part, _IDENTIFIERS)
        codes = {}
        for name in _IDENTIFIERS:
            column = table[name].combine_chunks()
            if not pa.types.is_dictionary(column.type):
                column = column.dictionary_encode()
            known = self._codes[name]
            # A dictionary of the file may hold values that no row of this part has.
            used = np.unique(column.indices.to_numpy())
            values = column.dictionary.take(pa.array(used)).to_pylist()
            translation = np.zeros(len(column.dictionary), np.int64)
            translation[used] = [known.setdefault(str(value), len(known)) for value in values]
            codes[name] = translation[column.indices.to_numpy()]
        return codes, (codes["slide_id"] << 20) + codes["network"]

    def _read_values(self, part: int) -> np.ndarray:
        """Coordinates as one number and probabilities of a part, structured, (rows,)."""
        table = self._read(part, _VALUES)
        x, y = (table[name].to_numpy().astype(np.int64) for name in ("x", "y"))
        rows = np.empty(len(x), [("tile", np.int64), ("probability", np.float32)])
        # Rows of tiles from the top, each from the left.
        rows["tile"] = (y << 32) + x
        rows["probability"] = table["probability"].to_numpy()
        if not ((rows["probability"] >= 0) & (rows["probability"] <= 1)).all():
            raise self._fault("holds a probability that is not a number between 0 and 1")
        if part in self._mixed:
            return rows[np.argsort(self._keys(part)[1], kind="stable")]
        return rows

    def _read(self, part: int, columns: tuple[str, ...]) -> pa.Table:
        try:
            table = self._file.read_row_groups(self._parts[part], list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._fault(f"cannot be read: {str(error)[:200]}") from error
        for name in columns:
            if table[name].null_count:
                raise self._fault(f"has rows without a value in '{name}'")
        return table

    def _aligned(self, slide_id: str, rows: list[np.ndarray]) -> np.ndarray:
        """Probabilities of all networks, (networks, tiles), from rows in any order."""
        ordered = [
            part if (np.diff(part["tile"]) > 0).all() else np.sort(part, order="tile")
            for part in rows
        ]
        if (np.diff(ordered[0]["tile"]) == 0).any():
            raise self._fault(f"slide '{slide_id}' has a tile twice")
        for name, part in zip(self.networks[1:], ordered[1:], strict=True):
            if not np.array_equal(part["tile"], ordered[0]["tile"]):
                raise self._fault(
                    f"networks '{self.networks[0]}' and '{name}' have different tiles of slide "
                    f"'{slide_id}'"
                )
        return np.stack([part["probability"] for part in ordered])

    def _fault(self, what: str, remedy: str = _AGAIN) -> StageError:
        return StageError(what, where=self._path, remedy=remedy)


def _parts(metadata: pq.FileMetaData) -> list[list[int]]:
    """Row groups that are read together."""
    parts: list[list[int]] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        more = metadata.row_group(group).num_rows
        if not parts or rows + more > _PART_ROWS:
            parts.append([])
            rows = 0
        parts[-1].append(group)
        rows += more
    return parts


def _parts_of(slide: _Slide) -> list[int]:
    return sorted({piece[0] for pieces in slide.pieces.values() for piece in pieces})


def _run_starts(keys: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(keys, prepend=-1))
