"""Files that are either whole or absent, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medkd.errors import OutputError

_TEMPORARY = re.compile(r"^\..+\.(?P<pid>\d+)\.medkd-tmp$")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                "no space left on the disk",
                where=path,
                remedy="Free some space, or choose another output folder, and start again; "
                "what was finished is kept.",
            ) from error
        if error.errno == errno.EFBIG:
            raise OutputError(
                "the file grew larger than this account or this disk allows",
                where=path,
                remedy="Raise the limit (ulimit -f), or choose another output folder.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                "no permission to write",
                where=path,
                remedy="Choose another output folder, or change the permissions of this one.",
            ) from error
        if error.errno == errno.EISDIR:
            raise OutputError(
                "a folder stands where a file is needed",
                where=path,
                remedy="Remove or rename that folder, or choose another output folder.",
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise OutputError(
                "a file stands where a folder is needed",
                where=path,
                remedy="Remove that file, or choose another output folder.",
            ) from error
        raise


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents, and return it.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(path))
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place when the block ends well.

    If the block raises, the temporary file is removed and ``path`` is as it was.

    Raises:
        OutputError: no permission, or no space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.medkd-tmp")
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as written:
                # A file that was renamed but not flushed can be empty after a power cut.
                os.fsync(written.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON. Not-a-number is refused: no JSON reader takes it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files in ``folder`` whose writer no longer lives (it was killed)."""
    for path in folder.glob(".*.medkd-tmp"):
        match = _TEMPORARY.match(path.name)
        if match is None:
            continue
        try:
            os.kill(int(match["pid"]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:
            continue


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of the file at ``path``, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of ``content`` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
