"""What MLflow is still to be told, kept in a file until it took it.

A line of JSON for each entry, and a line naming the entries that were taken. Lines are only added,
so a process that is killed loses at most the line it was writing; the next one skips that line.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medkd.files import atomic_path, output_errors
from medkd.progress import warn

OUTBOX_FILE = "mlflow-outbox.jsonl"

Kind = Literal["metrics", "params", "file", "status"]


@dataclass(frozen=True)
class Entry:
    """One thing that a run is to be told.

    Attributes:
        number: its place in the outbox.
        run_id: of the MLflow run.
        kind: what it is.
        content: ``metrics``: their ``values`` as text by name, and their ``step``; ``params``: text
            by name; ``file``: its ``path`` and the artefact ``folder``; ``status``: the ``status``.
        time_ms: when it was made, milliseconds since 1970.
    """

    number: int
    run_id: str
    kind: Kind
    content: Mapping[str, Any]
    time_ms: int


class Outbox:
    """The entries that wait in a file, oldest first. Threads may share it; processes may not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._is_closed = False
        self._waiting, self._last = _read(path)
        if path.exists():
            self._rewrite()

    def add(self, run_id: str, kind: Kind, content: Mapping[str, Any]) -> None:
        """Write an entry to the file.

        Raises:
            OutputError: the disk is full.
        """
        with self._lock:
            entry = Entry(self._last + 1, run_id, kind, dict(content), int(time.time() * 1000))
            self._append(asdict(entry))
            self._last = entry.number
            self._waiting[entry.number] = entry

    def settle(self, entries: Iterable[Entry]) -> None:
        """Note that these need not be sent any more."""
        numbers = [entry.number for entry in entries]
        with self._lock:
            if self._is_closed:
                return
            for number in numbers:
                self._waiting.pop(number, None)
            if self._waiting:
                self._append({"settled": numbers})
            else:
                self.path.unlink(missing_ok=True)

    def waiting(self, *, but: Collection[int] = (), most: int | None = None) -> list[Entry]:
        """The first entries, ``most`` of them at most, without those of the numbers ``but``."""
        found: list[Entry] = []
        with self._lock:
            for number, entry in self._waiting.items():
                if number not in but:
                    found.append(entry)
                if len(found) == most:
                    break
        return found

    def close(self) -> None:
        """Leave the file as it is: a request still under way must not change it any more."""
        with self._lock:
            self._is_closed = True

    def _append(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, allow_nan=False).encode("utf-8") + b"\n"
        with output_errors(self.path), self.path.open("ab") as file:
            before = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                # Half a line would spoil the next one too.
                file.truncate(before)
                raise

    def _rewrite(self) -> None:
        if not self._waiting:
            self.path.unlink()
            return
        lines = [json.dumps(asdict(entry), allow_nan=False) for entry in self._waiting.values()]
        with atomic_path(self.path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path) -> tuple[dict[int, Entry], int]:
    """The entries that wait, by number, and the highest number that was ever given."""
    waiting: dict[int, Entry] = {}
    last = broken = 0
    if not path.exists():
        return waiting, last
    lines = path.read_bytes().split(b"\n")
    # What follows the last line break was cut short.
    for line in lines[:-1]:
        try:
            content = json.loads(line)
            if "settled" in content:
                for number in content["settled"]:
                    waiting.pop(number, None)
                continue
            entry = Entry(**content)
        except (ValueError, TypeError):
            broken += 1
            continue
        waiting[entry.number] = entry
        last = max(last, entry.number)
    if broken:
        warn(f"{path}: {broken} lines cannot be read; MLflow will not get what they held")
    return waiting, last


def count_metrics(entries: Iterable[Entry]) -> int:
    """How many metrics these entries hold."""
    return sum(len(entry.content["values"]) for entry in entries if entry.kind == "metrics")
