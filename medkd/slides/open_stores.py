"""Tiles read straight from where the index says that they lie in their zips."""

from __future__ import annotations

import os
import struct
import zlib
from collections import OrderedDict
from io import FileIO
from threading import Lock
from typing import NamedTuple

from medkd.errors import StageError

# A store's directory of 10,000 tiles takes 38 ms and many megabytes to read, in each process. The
# index says where a tile lies, so that a bare file is enough, and few need to be open.
_OPEN_STORES = 64

# The head of a zip's entry: section 4.3.7 of the ZIP specification (APPNOTE.TXT 6.3).
_HEAD = struct.Struct("<4s2xHH4xIIIHH")
_SIGNATURE = b"PK\x03\x04"
_HAS_DESCRIPTOR = 0x08
_STORED = 0


class TileRange(NamedTuple):
    """Where a tile lies in its zip: the begin of its entry and the length of its JPEG, bytes."""

    offset_bytes: int
    length_bytes: int


class OpenStores:
    """Reads tiles by their ranges; keeps the files open that were read last.

    It can be pickled and forked: each process opens files of its own. Threads may share it.

    Args:
        limit: how many files stay open, at least 1.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(self, limit: int = _OPEN_STORES) -> None:
        if limit < 1:
            raise ValueError(f"'limit' must be at least 1, not {limit}")
        self._limit = limit
        self._begin()

    def __reduce__(self) -> tuple[object, ...]:
        return OpenStores, (self._limit,)

    def read_bytes(self, path: str, x: int, y: int, place: TileRange) -> bytes:
        """The JPEG of the tile at (x, y) of the store at ``path``.

        Raises:
            StageError: there is no such store, it holds something else at that place, so that the
                index was written for another file, or it is cut short or damaged.
            OSError: the disk or share fails.
        """
        name = f"{x}_{y}.jpg".encode()
        head_bytes = _HEAD.size + len(name)
        entry = self._read(path, place.offset_bytes, head_bytes + place.length_bytes)
        if len(entry) < head_bytes + place.length_bytes:
            raise _damaged(path, f"ends before the tile at ({x}, {y}) does")
        signature, flags, method, crc, _, length, name_bytes, extra_bytes = _HEAD.unpack_from(entry)
        if (
            signature != _SIGNATURE
            or method != _STORED
            or flags & _HAS_DESCRIPTOR
            or length != place.length_bytes
            or name_bytes != len(name)
            or entry[_HEAD.size : head_bytes] != name
        ):
            raise _other_store(path, x, y)
        jpeg = entry[head_bytes:]
        if extra_bytes:
            start = place.offset_bytes + head_bytes + extra_bytes
            jpeg = self._read(path, start, place.length_bytes)
        if zlib.crc32(jpeg) != crc:
            raise _damaged(path, f"is damaged at ({x}, {y}): its checksum does not fit")
        return jpeg

    def close(self) -> None:
        """Close all of them."""
        self._leave_inherited()
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def __len__(self) -> int:
        """How many files this process has open."""
        return len(self._files) if self._pid == os.getpid() else 0

    def _read(self, path: str, start: int, count: int) -> bytes:
        self._leave_inherited()
        with self._lock:
            file = self._open(path)
            file.seek(start)
            data = file.read(count)
            # A share may give less than was asked for; the file's end gives nothing.
            while len(data) < count and (more := file.read(count - len(data))):
                data += more
        return data

    def _open(self, path: str) -> FileIO:
        if path not in self._files:
            try:
                self._files[path] = FileIO(path)
            except FileNotFoundError:
                raise StageError(
                    "no such tile store", where=path, remedy="Run 'medkd tile' again."
                ) from None
        self._files.move_to_end(path)
        while len(self._files) > self._limit:
            self._files.popitem(last=False)[1].close()
        return self._files[path]

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._files: OrderedDict[str, FileIO] = OrderedDict()

    def _leave_inherited(self) -> None:
        # A forked process shares the position in each file with its parent. Closing does not move
        # it: these files have no buffer.
        if self._pid != os.getpid():
            self._begin()


def _damaged(path: str, what: str) -> StageError:
    return StageError(what, where=path, remedy="Delete the file and run 'medkd tile' again.")


def _other_store(path: str, x: int, y: int) -> StageError:
    return StageError(
        f"is not the store that the index was written for: the tile at ({x}, {y}) is elsewhere",
        where=path,
        remedy="Run 'medkd tile' again: it renews the index and cuts no finished slide again.",
    )
