"""A configuration file with every key, its default and its meaning."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from medkd.config.experiment import Config
from medkd.config.train import NetworkConfig
from medkd.schema import Strict


def config_template() -> str:
    """A commented configuration file with every key at its default."""
    lines = [
        "# A medkd experiment. Every key may be left out; what stands here are the defaults.",
        "# Check it with 'medkd config check', override a key with '--set key.path=value'.",
        "",
    ]
    _describe(Config, "", lines)
    return "\n".join(lines).rstrip() + "\n"


def _describe(model: type[Strict], indent: str, lines: list[str]) -> None:
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, Strict) and not isinstance(default, NetworkConfig):
            lines.append("")
            lines.append(f"{indent}# {(type(default).__doc__ or '').splitlines()[0]}")
            lines.append(f"{indent}{name}:")
            _describe(type(default), indent + "  ", lines)
            continue
        if field.description:
            lines.extend(
                textwrap.wrap(
                    field.description,
                    96,
                    initial_indent=indent + "# ",
                    subsequent_indent=indent + "# ",
                )
            )
        value = None if default is PydanticUndefined else plain(default)
        if name == "students":
            lines.append(f"{indent}{name}:")
            lines.extend(f"{indent}  - {_flow(item)}" for item in value or [])
        else:
            lines.append(f"{indent}{name}: {_flow(value)}")


def plain(value: Any) -> Any:
    """A default in types that YAML has."""
    if isinstance(value, Strict):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()
