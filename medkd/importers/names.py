"""What file names say: patterns that the user gives, and identifiers made from names."""

from __future__ import annotations

import re

from medkd.errors import ConfigError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def compile_pattern(text: str, option: str) -> re.Pattern[str]:
    """A regular expression that the user gave with ``option``.

    Raises:
        ConfigError: it is not one.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"is not a regular expression: {error}",
            where=f"{option} '{text}'",
            remedy="Write one as Python's re module reads it, such as '^([^-]+)-'.",
        ) from None


def matched(pattern: re.Pattern[str], text: str) -> str:
    """What ``pattern`` finds in ``text``: its first group, or all of it; empty where nothing."""
    match = pattern.search(text)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def safe_id(name: str) -> str:
    """``name`` with everything that cannot stand in a slide_id replaced by an underscore.

    A slide_id names files, so it begins with a letter or digit and holds no separators.
    """
    cleaned = _UNSAFE.sub("_", name)
    return cleaned if cleaned[:1].isalnum() else f"s{cleaned}"
