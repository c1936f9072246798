"""YAML read strictly: duplicated keys are refused, and every key knows its line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medkd.errors import ConfigError, MedkdError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the numbers and the truths of YAML 1.2."""

    # In YAML 1.1 'on', 'off', 'yes' and 'no' are truths too, and so would be a key 'on'.
    yaml_implicit_resolvers = {  # noqa: RUF012  (so it is in PyYAML)
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)

# PyYAML takes 1e-3 for text, because YAML 1.1 wants a dot and a sign in a number with an exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class YamlDocument:
    """A parsed YAML file.

    Attributes:
        name: the file's name, for messages.
        content: what it says, in plain Python values.
        lines: for each key path, the line (from 1) it stands on.
    """

    name: str
    content: Any
    lines: dict[KeyPath, int]

    def where(self, key: Iterable[str | int]) -> str:
        """``file:line`` of ``key``, or of the nearest enclosing key that stands in the file."""
        path = tuple(key)
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines[path]}" if path else self.name


def parse_yaml(text: str, name: str, error: type[MedkdError] = ConfigError) -> YamlDocument:
    """Parse ``text``.

    Raises:
        error: it is not YAML, or a key stands twice; the message names file, line and key.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else 1
        raise error(
            f"not valid YAML: {fault.problem or fault.context or 'cannot be read'}",
            where=f"{name}:{line}",
            remedy="Mend the line, or compare with the output of 'medkd config init'.",
        ) from None
    except yaml.YAMLError as fault:
        raise error(
            f"not valid YAML: {fault}", where=name, remedy="Save the file as UTF-8 text."
        ) from None
    lines: dict[KeyPath, int] = {}
    if node is not None:
        _walk(node, (), name, lines, error)
    content = yaml.load(text, Loader=_Loader) if node is not None else {}
    return YamlDocument(name, {} if content is None else content, lines)


def read_yaml(path: Path, error: type[MedkdError] = ConfigError) -> YamlDocument:
    """Read and parse the file at ``path``; see :func:`parse_yaml`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(
            "no such file",
            where=path,
            remedy="Check the path, or write one with 'medkd config init'.",
        ) from None
    except IsADirectoryError:
        raise error("is a folder, not a file", where=path, remedy="Name the YAML file.") from None
    except UnicodeDecodeError:
        raise error("is not UTF-8 text", where=path, remedy="Save the file as UTF-8.") from None
    except PermissionError:
        raise error(
            "no permission to read", where=path, remedy="Change the file's permissions."
        ) from None
    return parse_yaml(text, str(path), error)


def _walk(
    node: yaml.Node, path: KeyPath, name: str, lines: dict[KeyPath, int], error: type[MedkdError]
) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                dotted = ".".join(map(str, (*path, key)))
                raise error(
                    f"the key '{dotted}' stands twice (first on line {seen[key]})",
                    where=f"{name}:{line}",
                    remedy="Keep one of the two.",
                )
            seen[key] = line
            lines[(*path, key)] = line
            _walk(value_node, (*path, key), name, lines, error)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _walk(item, (*path, index), name, lines, error)
