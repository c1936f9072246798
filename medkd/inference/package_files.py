"""The files of a model package: a manifest that lists each with its SHA-256, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medkd.errors import ModelPackageError
from medkd.files import sha256_of_file, sha256_of_json
from medkd.schema import faults
from medkd.yaml_file import parse_yaml

MANIFEST = "model.json"
_ALLOWED_SUFFIXES = {".onnx", ".safetensors", ".md"}
_ANEW = "Get the package anew from where it was made."

Content = TypeVar("Content", bound=BaseModel)


def task_of(folder: Path) -> str | None:
    """The task that a package says it is for; None where it says none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    task = content.get("task") if isinstance(content, dict) else None
    return task if isinstance(task, str) else None


def read_manifest(
    folder: Path, schema: type[Content], version: int, task: str
) -> tuple[Content, str]:
    """What ``model.json`` says, and its SHA-256.

    Args:
        folder: of the package.
        schema: of the manifest.
        version: of the schema.
        task: of the package.

    Raises:
        ModelPackageError: it is absent, no JSON, of another task, or does not follow the schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelPackageError(
            "is not a model package (it has no model.json)",
            where=folder,
            remedy="Name the folder 'model' of a finished run; 'medkd train' and 'medkd "
            "aggregate' write it.",
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise ModelPackageError(
            f"cannot be read: {error.strerror}", where=path, remedy="Check its permissions."
        ) from None
    except ValueError as error:  # the errors of UTF-8 and of JSON alike
        raise ModelPackageError(f"is not valid JSON: {error}", where=path, remedy=_ANEW) from None
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != version:
        raise ModelPackageError(
            f"has the schema version {found}, and this medkd reads {version}",
            where=path,
            remedy="Use the medkd that wrote it, or train again with this one.",
        )
    if content.get("task", task) != task:
        raise ModelPackageError(
            f"is a package for {content['task']}, and one for {task} is needed here",
            where=folder,
            remedy="Name another model; 'medkd infer' takes both kinds.",
        )
    # JSON is YAML, and this reader knows each key's line.
    document = parse_yaml(text, str(path), ModelPackageError)
    try:
        return schema.model_validate(content), sha256_of_json(content)
    except ValidationError as error:
        place, what, _ = faults(error, schema, document.where)[0]
        raise ModelPackageError(
            what, where=place, remedy="The file was changed by hand; get the package anew."
        ) from None


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file, as a manifest lists them."""
    return {name: sha256_of_file(folder / name) for name in sorted(names)}


def check_files(folder: Path, files: Mapping[str, str], needed: Mapping[str, Any]) -> None:
    """Refuse a package that is not what was packaged.

    Args:
        folder: of the package.
        files: relative path to SHA-256 of every file but the manifest.
        needed: relative path of a file to whose it is: those that must be among ``files``.

    Raises:
        ModelPackageError: a file is missing, changed, added, outside of the package, or of a kind
            that a package does not hold.
    """
    for name, expected in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.suffix not in _ALLOWED_SUFFIXES:
            raise ModelPackageError(
                f"lists the file '{name}', which a package cannot hold", where=folder, remedy=_ANEW
            )
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ModelPackageError(f"lacks the file '{name}'", where=folder, remedy=_ANEW)
        if sha256_of_file(path) != expected:
            raise ModelPackageError(
                f"'{name}' is not the file that was packaged (its SHA-256 differs)",
                where=folder,
                remedy=_ANEW,
            )
    for name, whose in needed.items():
        if name not in files:
            raise ModelPackageError(
                f"'{name}' of {whose} has no SHA-256", where=folder, remedy=_ANEW
            )
    known = {folder / name for name in (*files, MANIFEST)}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in known and not path.name.endswith(".medkd-tmp"):
            raise ModelPackageError(
                f"holds the file '{path.relative_to(folder)}', which it does not list",
                where=folder,
                remedy="Remove it; a package holds nothing but its own files.",
            )
