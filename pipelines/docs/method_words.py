"""The words of a method's file and the losses that links can carry, from their own descriptions."""

from __future__ import annotations

import inspect
import re
from typing import Any

from medkd.distill.links import LOSSES, LinkLoss
from medkd.distill.schema import DeploySpec, EndsSpec, LinkSpec, MethodSpec, NodeSpec, RampSpec

_PARTS = (
    ("The file", MethodSpec),
    ("A node", NodeSpec),
    ("A link", LinkSpec),
    ("`on`, where the two sides differ", EndsSpec),
    ("`ramp`", RampSpec),
    ("`deploy`", DeploySpec),
)

# Keys that the schema leaves without a description, by model and key.
_MEANINGS = {
    ("MethodSpec", "description"): "What the method does, in one line.",
    ("MethodSpec", "nodes"): "What gives predictions, by name.",
    ("MethodSpec", "links"): "Who learns from whom.",
    ("MethodSpec", "deploy"): "What ships.",
    ("LinkSpec", "temperature"): "T of the loss, where it has one.",
    ("LinkSpec", "alpha"): "Of the losses `decoupled` and `dist`.",
    ("LinkSpec", "beta"): "Of the losses `decoupled` and `dist`.",
    ("EndsSpec", "from"): "What of the target is compared.",
    ("EndsSpec", "to"): "What of the learner is compared.",
    ("RampSpec", "linear"): "Until when, in a straight line.",
    ("RampSpec", "exponential"): "Until when, as exp(-5 (1 - t)²) with t from 0 to 1.",
    ("RampSpec", "cosine"): "Until when, as (1 - cos(πt)) / 2 with t from 0 to 1.",
}
_LENGTH = "`80 epochs`, `1000 steps`, or a share such as `80 of 300 epochs`"
_KINDS = {"logits": "logits", "map": "maps of a stage", "vector": "pooled features"}


def words_of_a_file() -> str:
    """A table for each part of a file: key, what it may be, what it is if absent, what it means."""
    parts = []
    for title, model in _PARTS:
        schema = model.model_json_schema()
        required = schema.get("required", [])
        lines = [f"**{title}.** {inspect.getdoc(model)}", ""]
        lines += ["| key | may be | default | |", "|---|---|---|---|"]
        for key, field in schema["properties"].items():
            default = "needed" if key in required else _default(field)
            cells = (f"`{key}`", _values(key, field, model.__name__), default)
            lines.append(f"| {' | '.join(cells)} | {_meaning(model.__name__, key, field)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def losses() -> str:
    """Each loss: what it compares, its settings, formula, description and source."""
    return "\n\n".join(_loss(name, loss) for name, loss in LOSSES.items())


def linked(text: str) -> str:
    """The text, its arXiv numbers as links."""
    return re.sub(
        r"(?:arXiv )?\b(\d{4}\.\d{4,5})\b",
        r"[arXiv \1](https://arxiv.org/abs/\1)",
        text,
        flags=re.A,
    )


def upright(formula: str) -> str:
    """A formula whose words are set upright, not as products of letters."""
    formula = formula.replace(r"both\ ways", "both ways")
    words = re.sub(r"(?<![\\A-Za-z])([A-Za-z]{2,}(?: [a-z]{2,})*)", r"\\mathrm{\1}", formula)
    return words.replace("both ways", r"both\ ways")


def _loss(name: str, loss: LinkLoss) -> str:
    settings = ", ".join(f"`{key}` {value:g}" for key, value in loss.settings.items())
    compares = " or ".join(_KINDS[kind] for kind in loss.compares)
    head = f"**`{name}`** compares {compares}" + (
        f"; {settings} unless told otherwise" * bool(settings)
    )
    told = inspect.getdoc(loss.compute) or ""
    told = re.split(r"\n\s*(?:Args|Returns):", told)[0].strip().replace("``", "`")
    return "\n\n".join(
        [
            f"{head}. Source: {linked(loss.source)}.",
            f"```math\n{upright(loss.formula)}\n```",
            linked(told.replace("\n\n", "\n")),
        ]
    )


def _meaning(model: str, key: str, field: dict[str, Any]) -> str:
    meaning = field.get("description") or _MEANINGS.get((model, key))
    if not meaning:
        raise ValueError(f"{model}.{key} has no description, and none stands in _MEANINGS")
    if key == "loss":
        return "What the comparison costs: a name of [the losses](#the-losses)."
    return str(meaning).replace("|", r"\|")


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default in (None, "", [], ()):
        return ""
    return (
        f"`{str(default).lower()}`"
        if isinstance(default, bool)
        else f"`{default:g}`"
        if (isinstance(default, float))
        else f"`{default}`"
    )


def _values(key: str, field: dict[str, Any], model: str) -> str:
    if model == "RampSpec":
        return _LENGTH
    if key in ("views", "ensemble_of"):
        return "a name, or a list of names"
    if key in ("description", "source"):
        return "text"
    options = [_value(option) for option in field.get("anyOf", [field])]
    return " or ".join(option for option in options if option)


def _value(option: dict[str, Any]) -> str:
    """What one option of a JSON schema allows, in words; nothing for null."""
    if "$ref" in option:
        part = option["$ref"].rpartition("/")[2]
        return {"EndsSpec": "`{from: ..., to: ...}`"}.get(part, "see below")
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if "const" in option:
        return f"`{option['const']}`"
    if "pattern" in option:
        return "`logits`, `pooled` or `stage N`"
    kind = option.get("type", "")
    if kind in ("number", "integer"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(option)
    words = {"boolean": "`true`, `false`", "string": "a name", "null": "", "array": "a list"}
    return {**words, "object": "names, each with a node"}[kind]


def _bounds(option: dict[str, Any]) -> str:
    bounds = ""
    if "minimum" in option:
        bounds += f", {option['minimum']:g} or more"
    if "exclusiveMinimum" in option:
        bounds += f" above {option['exclusiveMinimum']:g}"
    if "exclusiveMaximum" in option:
        bounds += f", below {option['exclusiveMaximum']:g}"
    return bounds
