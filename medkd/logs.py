"""Logs for machines: a JSON object on each line."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkd.files import make_folder, output_errors

_LARGEST_BYTES = 10_000_000
_EARLIER_FILES = 5


def log_event(log: logging.Logger, event: str, **fields: object) -> None:
    """Log ``event``, a name such as ``slide_called``, with fields that JSON knows."""
    log.info(event, extra={"fields": fields})


class JsonLine(logging.Formatter):
    """``{"time": ISO 8601 in UTC, "level", "event", ...}``; fields of :func:`log_event` follow."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, ASCII only: no name of a file can end it or hide in it."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _Handler(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        # A full disk must not end the work, nor fill the error stream with tracebacks.
        error = sys.exc_info()[1]
        print(f"{self.baseFilename}: cannot be written: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def json_log(path: Path) -> Iterator[None]:
    """Append what medkd logs to ``path``; at 10 MB it becomes ``path.1``, and five are kept.

    Raises:
        OutputError: it cannot be written.
    """
    make_folder(path.parent)
    with output_errors(path):
        _end_last_line(path)
        handler = _Handler(
            path, maxBytes=_LARGEST_BYTES, backupCount=_EARLIER_FILES, encoding="utf-8"
        )
    handler.setFormatter(JsonLine())
    log = logging.getLogger("medkd")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


def _end_last_line(path: Path) -> None:
    """After a power cut the last line may lack its end; the next one must not go on in it."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
