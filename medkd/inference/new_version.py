"""A new version of a model package in a folder of its own; the old one is only read."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.errors import ModelPackageError, OutputError
from medkd.files import make_folder, output_errors, sha256_of_json
from medkd.inference.package import CARD, ModelPackage, load_package, write_package

_UNFINISHED = ".unfinished"
_SLUG_LETTERS = 40
_DIGEST_DIGITS = 8


def check_new_folder(out: Path, old: Path) -> None:
    """Refuse a folder that a new version cannot be written to.

    Raises:
        OutputError: there is something at ``out`` already, or it lies in the package ``old``.
    """
    if out.exists() or out.is_symlink():
        raise _is_there(out)
    if out.resolve().is_relative_to(old.resolve()):
        raise OutputError(
            f"lies in the model package {old}, which is left as it is",
            where=out,
            remedy="Name a folder outside of it.",
        )


def _is_there(out: Path) -> OutputError:
    return OutputError(
        "is there already, and no version of a model is written over",
        where=out,
        remedy="Name a folder that does not exist yet.",
    )


def version_name(old_version: str, words: str, content: Any) -> str:
    """The old version, what the new one is for, and 8 digits of the SHA-256 of what is new in it.

    Build metadata as semantic versioning has it: ``1`` becomes ``1+st-mary.3f2a91c0``, and that
    ``1+st-mary.3f2a91c0.gt450.90b1d5e2``.

    Args:
        old_version: of the package that the new one is made from.
        words: what the new version is for.
        content: what is new, in JSON's types; another content gives another name.
    """
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LETTERS].strip("-")
    digest = sha256_of_json(content)[:_DIGEST_DIGITS]
    return f"{old_version}{'.' if '+' in old_version else '+'}{slug}{'.' if slug else ''}{digest}"


def write_new_version(old: ModelPackage, out: Path, changes: Mapping[str, Any]) -> ModelPackage:
    """Write the package ``old`` with other keys in its manifest; every file is kept byte for byte.

    Args:
        old: left as it is.
        out: whole when it is there; must not be.
        changes: keys of the manifest and their new values, in JSON's types.

    Returns:
        The new package, each file checked.

    Raises:
        OutputError: ``out`` is there already, or cannot be written.
        ModelPackageError: a file of ``old`` changed while it was read.
    """
    check_new_folder(out, old.folder)
    content = {**old.manifest.model_dump(mode="json"), **changes}
    hashes = content.pop("files")
    names = [name for name in hashes if name != CARD]
    with folder_in_place(out) as folder:
        write_package(folder, content, {name: (old.folder / name).read_bytes() for name in names})
        package = load_package(folder)
        for name in names:
            if package.manifest.files[name] != hashes[name]:
                raise ModelPackageError(
                    f"'{name}' changed while it was read",
                    where=old.folder,
                    remedy="Get the package anew from where it was made.",
                )
    return replace(package, folder=out)


@contextmanager
def folder_in_place(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out``, and move it there when the block ends well."""
    make_folder(out.parent)
    _remove_unfinished(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}{_UNFINISHED}")
    try:
        yield temporary
        with output_errors(out):
            try:
                temporary.rename(out)
            except OSError as error:
                # Another process was faster; what it wrote is refused to be written over.
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise _is_there(out) from error
                raise
            _flush(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Let the name of what was moved into ``folder`` outlast a power cut, where that can be had."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_unfinished(out: Path) -> None:
    """Remove what a process that was killed left of an earlier try."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(\d+){re.escape(_UNFINISHED)}")
    for path in out.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(path)
        except PermissionError:
            continue
