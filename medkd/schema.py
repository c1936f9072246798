"""What every strict schema of the project shares: the base model and how its faults are told."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and does not turn one type into another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def faults(
    error: ValidationError, model: type[BaseModel], where: Callable[[tuple[str | int, ...]], str]
) -> list[tuple[str, str, str]]:
    """Tell each fault of a :class:`pydantic.ValidationError` as ``(where, what, remedy)``.

    Args:
        error: what pydantic raised.
        model: the model that was validated; its field names serve the suggestions.
        where: gives ``file:line`` for a key path.
    """
    told = []
    found = error.errors(include_url=False)
    paths = [tuple(fault["loc"]) for fault in found]
    for fault, path in zip(found, paths, strict=True):
        if any(other[: len(path)] == path and len(other) > len(path) for other in paths):
            continue  # A list is 'too short' only because an item of it is at fault.
        dotted = ".".join(map(str, path))
        place = where(path)
        if fault["type"] == "extra_forbidden":
            known = _known_keys(model, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known here: {', '.join(known)}."
            told.append((place, f"unknown key '{dotted}'", hint))
        elif fault["type"] == "missing":
            told.append((place, f"the key '{dotted}' is missing", "Add it."))
        else:
            message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            given = fault.get("input")
            shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool) else ""
            subject = f"'{dotted}'{shown}: " if dotted else ""
            told.append((place, f"{subject}{_lower_first(message)}", "Change the value."))
    return told


def hint(name: str, known: Iterable[str]) -> str:
    """What a name that is not among ``known`` may have meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names)}."


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    current: Any = model
    for key in path:
        fields = getattr(current, "model_fields", None)
        if fields is None or key not in fields:
            # Inside a list or a mapping: go by the item's type.
            current = _item_type(current)
            continue
        current = fields[key].annotation
    current = _model_in(current)
    return sorted(current.model_fields) if current is not None else []


def _item_type(annotation: Any) -> Any:
    arguments = getattr(annotation, "__args__", ())
    return (
        arguments[-1] if arguments and arguments[-1] is not Ellipsis else (arguments or (None,))[0]
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def set_in(content: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``content[path[0]][path[1]]...`` to ``value``, making mappings on the way.

    A numeric step indexes a list.
    """
    current: Any = content
    for step in path[:-1]:
        if isinstance(current, list):
            current = current[int(step)]
            continue
        if not isinstance(current.get(step), Mapping | list):
            current[step] = {}
        current = current[step]
    if isinstance(current, list):
        current[int(path[-1])] = value
    else:
        current[path[-1]] = value
