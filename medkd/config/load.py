"""From a YAML file and assignments to a checked configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medkd.config.data import DataConfig
from medkd.config.detection import DetectionConfig
from medkd.config.experiment import Config
from medkd.config.template import plain
from medkd.config.train import TrainConfig
from medkd.errors import ConfigError
from medkd.schema import faults, set_in
from medkd.yaml_file import KeyPath, YamlDocument, parse_yaml, read_yaml

# Relative to where the command is given, not to the file.
_OPTIONAL_PATHS = (("tile", "annotations"), ("split", "file"), ("stain", "reference_image"))
# Whose default is a path, too.
_PATHS = (("data", "slides", DataConfig), ("detection", "boxes", DetectionConfig))
_PATH_KEYS = (
    "output",
    "data.slides",
    "detection.boxes",
    *(".".join(key) for key in _OPTIONAL_PATHS),
)


def load_config(path: Path | None, assignments: tuple[str, ...] = ()) -> Config:
    """Read a configuration file, apply ``key.path=value`` assignments, and check everything.

    Relative paths in the file are relative to the file; those in assignments to the working
    folder.

    Raises:
        ConfigError: one line for each fault, with file, line and key.
    """
    document = read_yaml(path) if path is not None else parse_yaml("", "defaults")
    if not isinstance(document.content, dict):
        raise ConfigError(
            "is not a mapping of keys to values",
            where=document.name,
            remedy="Begin from the output of 'medkd config init'.",
        )
    content = copy.deepcopy(document.content)
    if any(text.startswith("train.students.") for text in assignments):
        # An assignment into the list of students needs a list to lead into.
        default = TrainConfig.model_fields["students"].default
        content.setdefault("train", {}).setdefault("students", plain(default))
    folder = path.parent.resolve() if path is not None else Path.cwd()
    _anchor_paths(content, folder)
    assigned: dict[KeyPath, str] = {}
    for assignment in assignments:
        _assign(content, assignment, assigned)

    def where(key: tuple[str | int, ...]) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in assigned:
                return f"--set {assigned[key[:length]]}"
        for assigned_key, assignment in assigned.items():
            if assigned_key[: len(key)] == key:
                return f"--set {assignment}"
        return document.where(key)

    return validate_config(content, where)


def validate_config(content: dict[str, Any], where: Any) -> Config:
    """Check ``content`` against the schema; ``where`` gives the place of a key path."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        told = [
            ConfigError(what, where=place, remedy=remedy)
            for place, what, remedy in faults(error, Config, where)
        ]
        first = told[0]
        raise ConfigError(
            first.what, where=first.where, remedy=first.remedy, others=tuple(told[1:])
        ) from None


def read_resolved(document: YamlDocument) -> Config:
    """The configuration that a run wrote down (``runs/<name>/config.yaml``)."""
    return validate_config(document.content, document.where)


def _anchor_paths(content: dict[str, Any], folder: Path) -> None:
    if isinstance(content.get("output", ""), str):
        content["output"] = str(
            folder / content.get("output", Config.model_fields["output"].default)
        )
    for name, key, schema in _PATHS:
        section = content.setdefault(name, {})
        if isinstance(section, dict) and isinstance(section.get(key, ""), str):
            section[key] = str(folder / section.get(key, schema.model_fields[key].default))
    for name, key in _OPTIONAL_PATHS:
        section = content.get(name)
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = str(folder / section[key])
    train = content.get("train")
    if isinstance(train, dict):
        if str(train.get("method", "")).endswith((".yaml", ".yml")):
            train["method"] = str(folder / train["method"])
        students = train.get("students")
        for network in (train.get("teacher"), *(students if isinstance(students, list) else ())):
            if isinstance(network, dict) and isinstance(network.get("weights"), str):
                network["weights"] = str(folder / network["weights"])


def _assign(content: dict[str, Any], assignment: str, assigned: dict[KeyPath, str]) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            "is not key.path=value",
            where=f"--set {assignment}",
            remedy="Write it as in --set train.epochs=5.",
        )
    steps = key.strip().split(".")
    nothing = text.strip() in ("", "null", "~")  # a file that says this is an empty one
    value: Any = None if nothing else parse_yaml(text, f"--set {assignment}").content
    if key.strip() in _PATH_KEYS and isinstance(value, str):
        value = str(Path(value).expanduser().resolve())
    try:
        set_in(content, steps, value)
    except (ValueError, IndexError, AttributeError):
        raise ConfigError(
            f"'{key}' does not lead to a value",
            where=f"--set {assignment}",
            remedy="Compare the key with 'medkd config show'.",
        ) from None
    path: KeyPath = tuple(int(step) if step.isdigit() else step for step in steps)
    assigned[path] = assignment
