"""Methods in words: the tables that ``medkd methods`` prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medkd.distill.graph import Graph, Link, Node
from medkd.distill.method import Method
from medkd.distill.schema import LEARNING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# A pipe has no width of its own.
_WIDTH_OF_A_PIPE = 100

COMBINED = {
    "mean logits": "mean of the logits{of}",
    "mean probabilities": "mean of the probabilities{of}",
    "gate": "logits{of}, weighed by a learned gate",
    "attention": "logits{of}, weighed by learned attention",
    "concatenated features": "one classifier on all pooled features{of}",
}
"""What an ensemble's ``by`` says, in words."""


def console() -> Console:
    """A console as wide as the terminal; in a pipe, 100 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_PIPE)


def methods_table(methods: Iterable[Method]) -> Table:
    """Name, what it does and source of each method."""
    table = _table("Methods")
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("what it does", ratio=1)
    table.add_column("source", max_width=27)
    for method in methods:
        _add(table, method.name, method.spec.description, method.spec.source)
    return table


def nodes_table(graph: Graph, students: int) -> Table:
    """Every node of an expanded method."""
    table = _table(f"Nodes with {_count(students)}")
    table.add_column("node", no_wrap=True, style="bold")
    table.add_column("kind")
    table.add_column("trained by")
    table.add_column("CE", justify="right")
    table.add_column("what it is", ratio=1)
    for node in graph.nodes:
        weight = _number(node.supervised or None)
        _add(table, node.name, _kind(node), _trained_by(node, graph), weight, _what(node, graph))
    return table


def links_table(graph: Graph, students: int) -> Table:
    """Every link of an expanded method; columns in which nothing would stand are left out."""
    columns = {
        "learner": [link.learner for link in graph.links],
        "learns from": [_learns_from(link) for link in graph.links],
        "loss": [_loss(link) for link in graph.links],
        "on": [_on(link) for link in graph.links],
        "T": [_number(link.temperature) for link in graph.links],
        "weight": [_number(link.weight) for link in graph.links],
        "ramp": [str(link.ramp or "") for link in graph.links],
    }
    table = _table(f"Links with {_count(students)}")
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        table.add_column(
            name,
            justify="right" if name in ("T", "weight") else "left",
            no_wrap=name == "learner",
            style="bold" if name == "learner" else "",
            ratio=1 if name == "learns from" else None,
        )
    for cells in zip(*shown.values(), strict=True):
        _add(table, *cells)
    return table


def what_ships(graph: Graph) -> str:
    """A sentence on the nodes that ship."""
    names = ", ".join(graph.deployed)
    if graph.chosen_by_validation:
        return f"Ships: the one of {names} that does best on validation data."
    if len(graph.deployed) == 1:
        return f"Ships: {names}."
    return f"Ships: the mean probability of {names}."


def shared_words(stages: str | int) -> str:
    """How many early stages networks have in common, in words."""
    if stages in ("all but last", -1):
        return "all stages but the last"
    if stages == 0:
        return "the stem"
    return f"the stem and {stages} stage{'s' if stages != 1 else ''}"


def late_words(from_stage: int) -> str:
    """The part of a network from a stage to its end, in words."""
    if from_stage == -1:
        return "last stage and head"
    if from_stage < 0:
        return f"last {-from_stage} stages and head"
    return f"stages from {from_stage} on and head"


def _kind(node: Node) -> str:
    if node.is_network:
        return "frozen network" if node.frozen else "network"
    return node.role


def _trained_by(node: Node, graph: Graph) -> str:
    if node.frozen:
        return "labels, beforehand"
    if node.role == "mean":
        return f"no one, follows {node.sources[0]}"
    if node.role == "ensemble" and node.by not in LEARNING:
        return "no one"
    by = ["labels"] if node.supervised else []
    if any(link.learner == node.name for link in graph.links):
        by.append("links")
    taught = [link.learner for link in graph.links if not link.detach and node.name in link.targets]
    if taught:
        by.append(f"its link to {_listed(taught)}")
    return _listed(by)


def _what(node: Node, graph: Graph) -> str:
    words = []
    if node.role == "teacher":
        words.append("train.teacher")
    elif node.role == "student":
        words.append(f"train.students[{node.index}]")
    elif node.role == "mean":
        start = ", warm start" if node.warm_start else ""
        words.append(f"running mean of {node.sources[0]}'s weights, decay {node.decay:g}{start}")
    elif node.role == "bridge":
        source = node.sources[0]
        words.append(f"fresh {late_words(node.from_stage)}, fed by {source}'s early stages")
    else:
        words.append(COMBINED[node.by or ""].format(of=f" of {_listed(node.sources)}"))
    if node.trunk is not None and node.shared_stages is not None:
        others = [n.name for n in graph.nodes if n.trunk == node.trunk and n.name != node.name]
        if others:
            words.append(f"shares {shared_words(node.shared_stages)} with {_listed(others)}")
    if graph.views > 1 and node.role != "ensemble":
        words.append(f"sees view {node.view}")
    return "; ".join(words)


def _learns_from(link: Link) -> str:
    alone = len(link.targets) == 1
    words = _listed(link.targets) + ("" if alone else " (mean loss)")
    return words if link.detach else f"{words} (not detached)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _loss(link: Link) -> str:
    more = [f"{key} {value:g}" for key, value in link.settings.items() if key != "temperature"]
    return f"{link.loss} ({', '.join(more)})" if more else link.loss


def _on(link: Link) -> str:
    if link.target_place == link.learner_place:
        return link.learner_place
    return f"{link.target_place} to {link.learner_place}"


def _count(students: int) -> str:
    return "one student" if students == 1 else f"{students} students"


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold")


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    # As text: rich would take 'train.students[0]' for markup.
    table.add_row(*(Text(cell) for cell in cells))
