"""What a drawing of a method shows: a card for each node or set, and the arrows between them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from medkd.distill.describe import COMBINED, late_words, shared_words
from medkd.distill.method import is_set, set_of
from medkd.distill.schema import LinkSpec, MethodSpec, NodeSpec

_WIDEST_LINE = 34  # letters
NOT_DETACHED = "not detached"


@dataclass(frozen=True)
class Card:
    """What a box shows.

    Attributes:
        name: of the node or set.
        kind: network, frozen, mean, ensemble or bridge.
        is_set: it stands for one node for each student.
        lines: in words, what it is.
        supervised: weight of its loss by the labels.
        ships: what of it ships, in words; empty if nothing.
        one_ships: of a set, only one member ships.
    """

    name: str
    kind: str
    is_set: bool
    lines: tuple[str, ...]
    supervised: float
    ships: str
    one_ships: bool


@dataclass(frozen=True)
class Arrow:
    """A link, or (without ``label``) what a node is made of."""

    source: str
    target: str
    label: tuple[str, ...] = ()
    detach: bool = True

    @property
    def is_link(self) -> bool:
        """Whether it is a link."""
        return bool(self.label)


def card_of(name: str, spec: MethodSpec) -> Card:
    """The card of a node or set."""
    node = spec.nodes[name]
    lines = [
        line for text in _words(name, node, spec) for line in textwrap.wrap(text, _WIDEST_LINE)
    ]
    kind = "frozen" if node.frozen else node.kind.removesuffix("_of")
    weight = node.supervised_weight
    ships, several = _ships(name, spec), is_set(name, spec)
    one_ships = several and spec.deploy.rule != "ensemble"
    return Card(name, kind, several, tuple(lines), weight, ships, one_ships)


def _words(name: str, node: NodeSpec, spec: MethodSpec) -> list[str]:
    if node.frozen:
        words = ["frozen network, trained before"]
    elif node.network is not None:
        words = ["networks" if is_set(name, spec) else "network"]
    elif node.mean_of is not None:
        words = [f"mean of weights, decay {node.decay:g}"]
    elif node.bridge_of is not None:
        words = [
            f"bridge: fresh {late_words(node.from_stage)}",
            f"fed by {node.bridge_of}'s early stages",
        ]
    else:
        combined = COMBINED[node.by or ""].format(of="")
        if node.without:
            combined = combined.replace("of the", "of the others'")
        each = ", one for each" if node.by == "attention" else ""
        words = [f"ensemble: {combined}{each}"]
    if node.share is not None:
        words.append(f"shared: {shared_words(node.share)}")
    if node.share_with is not None:
        words.append(f"shares stages with {node.share_with}")
    if any(set_of(view, spec) == name for view in spec.views):
        words.append("each its own view" if is_set(name, spec) else "its own view")
    return words


def _ships(name: str, spec: MethodSpec) -> str:
    deploy = spec.deploy
    if deploy.node is None or set_of(deploy.node, spec) != name:
        return ""
    if deploy.rule == "one":
        return "ships" if deploy.node == name else f"{deploy.node} ships"
    if deploy.rule == "best_of":
        return "the best one ships"
    return "ships: all, as their mean" if is_set(name, spec) else "ships"


def arrows_of(spec: MethodSpec) -> list[Arrow]:
    """What nodes are made of, then the links."""
    made = [
        Arrow(set_of(source, spec) or source, name)
        for name, node in spec.nodes.items()
        for source in node.sources
    ]
    links = [
        Arrow(
            set_of(link.source, spec) or link.source,
            set_of(link.learner, spec) or link.learner,
            _label(link, spec),
            link.detach,
        )
        for link in spec.links
    ]
    # Members of one set that an ensemble names are one line.
    return [*dict.fromkeys(made), *links]


def _label(link: LinkSpec, spec: MethodSpec) -> tuple[str, ...]:
    """The lines beside a link's arrow."""
    weight = f"{link.weight:g} × " if link.weight != 1 else ""
    settings = {"temperature": "T", "alpha": "α", "beta": "β"}
    numbers = [f"{settings[key]} = {value:g}" for key, value in link.settings.items()]
    lines = [", ".join([weight + link.loss, *numbers])]
    places = link.places
    if places[0] != places[1]:
        lines.append(f"on {places[0]}, {places[1]}")
    elif places[0] != "logits":
        lines.append(f"on {places[0]}")
    ends = []
    if link.source not in spec.nodes:
        ends.append(f"from {link.source}")
    if link.learner not in spec.nodes:
        ends.append(f"to {link.learner}")
    if ends:
        lines.append(f"{' '.join(ends)} alone")
    if link.pairs == "own":
        lines.append("each from its own")
    elif link.pairs == "others":
        lines.append("all but its own")
    if link.ramp is not None:
        shape, _, length = str(link.ramp.parsed()).partition(", ")
        lines += [f"{shape} ramp,", length]
    if not link.detach:
        lines.append(NOT_DETACHED)
    return tuple(lines)
