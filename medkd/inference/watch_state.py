"""What a watch knows of its slides, in one SQLite file that outlives every process.

One process writes it. A change is a transaction that is on the disk before it counts, so a kill at
any moment leaves the slide as it was before or after. The journal is SQLite's default, not the
write-ahead log: that one needs memory shared between processes, which network drives do not have.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from medkd.errors import OutputError, StageError

_SCHEMA_VERSION = 1


class Status(StrEnum):
    """Where a slide is on its way."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class WatchedSlide:
    """A slide that arrived whole.

    Attributes:
        key: where it lies below the watched folder; of a DICOM slide its folder and series.
        slide_id: names its folder of results.
        signature: of the names, sizes and times of its files: whether to look at them again.
        fingerprint: of their content: whether they are another slide.
        status: see :class:`Status`.
        queued: when it joined the queue, seconds since 1970; the first is called first.
        changed: when its status changed, seconds since 1970.
        crashes: processes that died, or hung, over it.
        interruptions: times that the watch itself was killed over it.
        call: what came of it; empty where nothing did.
        reason: why it failed, is in quarantine, or has to wait again.
    """

    key: str
    slide_id: str
    signature: str
    fingerprint: str
    status: Status
    queued: float
    changed: float
    crashes: int = 0
    interruptions: int = 0
    call: str = ""
    reason: str = ""


_COLUMNS = tuple(field.name for field in fields(WatchedSlide))


class WatchState:
    """The slides by key, as they are on the disk. A context manager.

    Raises:
        OutputError: the file cannot be written.
        StageError: it is damaged, or of another medkd.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _SCHEMA_VERSION):
                raise StageError(
                    f"is of another version of medkd ({version}; this one is {_SCHEMA_VERSION})",
                    where=path,
                    remedy="Use the medkd that wrote it, or another output folder.",
                )
            self._database.execute("PRAGMA synchronous = EXTRA")
            columns = ", ".join(_COLUMNS[1:])
            self._database.execute(
                f"CREATE TABLE IF NOT EXISTS slides (key TEXT PRIMARY KEY, {columns})"
            )
            self._database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            rows = self._database.execute(f"SELECT {', '.join(_COLUMNS)} FROM slides").fetchall()
            found = [WatchedSlide(*row) for row in rows]
            # Of the database it is a plain word.
            found = [replace(slide, status=Status(slide.status)) for slide in found]
        self._slides = {slide.key: slide for slide in found}

    def __enter__(self) -> WatchState:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def slides(self) -> Mapping[str, WatchedSlide]:
        """Every slide that ever arrived, by its key."""
        return MappingProxyType(self._slides)

    def put(self, slide: WatchedSlide) -> WatchedSlide:
        """Keep ``slide`` in place of what was known under its key; on the disk on return."""
        marks = ", ".join("?" for _ in _COLUMNS)
        with self._errors():
            self._database.execute(
                f"INSERT OR REPLACE INTO slides ({', '.join(_COLUMNS)}) VALUES ({marks})",
                astuple(slide),
            )
        self._slides[slide.key] = slide
        return slide

    def remove(self, key: str) -> None:
        """Forget the slide ``key``."""
        with self._errors():
            self._database.execute("DELETE FROM slides WHERE key = ?", (key,))
        del self._slides[key]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"cannot be written: {error}",
                where=self._path,
                remedy="Look at the disk's space and permissions; what was finished is kept.",
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise StageError(
                f"is damaged: {error}",
                where=self._path,
                remedy="Move it away: the watch then begins anew, and does not call slides again "
                "whose results are in the folder.",
            ) from error


def printable(text: str) -> str:
    """``text`` as UTF-8 can hold it: names of files may be any bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
