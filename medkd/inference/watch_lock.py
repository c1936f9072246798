"""One process at a time in a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medkd.errors import OutputError, StageError
from medkd.files import output_errors


@contextmanager
def only_one(path: Path, *, wait_s: float, remedy: str) -> Iterator[None]:
    """Within, no other process is within; the system lets go of the lock when a process dies.

    Args:
        path: of the lock, a file that stays.
        wait_s: how long to wait for another process, seconds.
        remedy: what the user is told to do where another one has it.

    Raises:
        OutputError: the file cannot be written.
        StageError: another process has it still, or this system knows no such locks.
    """
    if sys.platform == "win32":
        raise StageError(
            "Windows has no locks of the kind that keeps two watches apart",
            where=path.parent,
            remedy="Run 'medkd watch' on Linux or macOS, or 'medkd infer --resume' by a timer.",
        )
    import fcntl

    with output_errors(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                holder = os.pread(file, 20, 0).decode("ascii", "replace").strip()
                raise StageError(
                    f"another watch has this folder (process {holder or 'unknown'})",
                    where=path.parent,
                    remedy=remedy,
                ) from None
            except OSError as error:
                raise OutputError(
                    f"the file system refuses locks: {error.strerror}",
                    where=path,
                    remedy="Choose an output folder on another disk.",
                ) from error
        with output_errors(path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
