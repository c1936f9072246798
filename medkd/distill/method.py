"""Methods: read from YAML, and checked as far as that goes without a number of students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from torch import nn

from medkd.distill.schema import LEARNING, MethodSpec
from medkd.errors import MethodError
from medkd.schema import faults, hint
from medkd.yaml_file import YamlDocument, parse_yaml, read_yaml


@dataclass(frozen=True)
class Method:
    """A checked method and the text it was read from."""

    name: str
    text: str
    spec: MethodSpec
    document: YamlDocument

    def refuse(self, key: tuple[str | int, ...], what: str, remedy: str) -> NoReturn:
        """Raise a :class:`MethodError` that names the line of ``key``."""
        raise MethodError(what, where=self.document.where(key), remedy=remedy)


def method_names() -> tuple[str, ...]:
    """Names of the methods that come with medkd."""
    folder = resources.files("medkd.distill") / "methods"
    return tuple(sorted(Path(str(f)).stem for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_method(name: str) -> Method:
    """Load a method by its name, or from a YAML file if ``name`` ends in .yaml or .yml.

    Raises:
        MethodError: no such method, or a fault in the file, with the line to mend.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        document = read_yaml(path, MethodError)
        return _checked(path.stem, path.read_text(encoding="utf-8-sig"), document)
    if name not in method_names():
        raise MethodError(
            f"unknown method '{name}'",
            where="train.method",
            remedy=f"{hint(name, method_names())} Or name a .yaml file.",
        )
    text = (resources.files("medkd.distill") / "methods" / f"{name}.yaml").read_text("utf-8")
    return parse_method(text, name)


def parse_method(text: str, name: str) -> Method:
    """Check a method given as YAML text; see :func:`load_method`."""
    return _checked(name, text, parse_yaml(text, f"{name}.yaml", MethodError))


def _checked(name: str, text: str, document: YamlDocument) -> Method:
    try:
        spec = MethodSpec.model_validate(document.content)
    except ValidationError as error:
        place, what, remedy = faults(error, MethodSpec, document.where)[0]
        raise MethodError(what, where=place, remedy=remedy) from None
    method = Method(name, text, spec, document)
    _check_names(method)
    _check_sources(method)
    _check_learners(method)
    _check_deployed(method)
    return method


def _check_names(method: Method) -> None:
    spec = method.spec
    for name in spec.nodes:
        # In every table 'ensemble' is what ships.
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name) or name == "ensemble":
            method.refuse(
                ("nodes", name), f"'{name}' cannot be a node's name", "Choose another word."
            )
        owner, _, number = name.rpartition("_")
        if owner in spec.nodes and number.isdigit() and is_set(owner, spec):
            method.refuse(
                ("nodes", name),
                f"'{name}' is a member of the set '{owner}' already",
                "Choose another word.",
            )
    for network in ("teacher", "students"):
        named = [name for name, node in spec.nodes.items() if node.network == network]
        if len(named) > 1:
            method.refuse(
                ("nodes", named[1]),
                f"two nodes take the network '{network}'",
                "Give each network one node.",
            )
    for key, name in _named(spec):
        if set_of(name, spec) is None:
            method.refuse(key, f"unknown node '{name}'", hint(name, spec.nodes))
    for name in spec.views:
        if spec.nodes[set_of(name, spec) or name].network is None:
            method.refuse(
                ("views",), f"'{name}' takes no images of its own", "Name networks alone."
            )


def _named(spec: MethodSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every place where a file names a node, and the name."""
    for node, node_spec in spec.nodes.items():
        for source in node_spec.sources:
            yield ("nodes", node), source
    for index, link in enumerate(spec.links):
        yield ("links", index, "from"), link.source
        yield ("links", index, "to"), link.learner
    for name in spec.views:
        yield ("views",), name
    assert spec.deploy.node is not None
    yield ("deploy",), spec.deploy.node


def set_of(name: str, spec: MethodSpec) -> str | None:
    """The node or set that ``name`` is, or is a member of; None if there is none."""
    if name in spec.nodes:
        return name
    owner, _, number = name.rpartition("_")
    known = owner in spec.nodes and number.isdigit() and is_set(owner, spec)
    return owner if known else None


def is_set(name: str, spec: MethodSpec) -> bool:
    """Whether the node stands for one node for each of several others."""
    node = spec.nodes[name]
    if node.network is not None:
        return node.network == "students"
    if node.mean_of is not None:
        return node.mean_of in spec.nodes and is_set(node.mean_of, spec)
    return node.without == "own" or node.by == "attention"


def _names_set(name: str, spec: MethodSpec) -> bool:
    """Whether the name is a whole set's, not that of a single node or of a member."""
    return name in spec.nodes and is_set(name, spec)


def _check_sources(method: Method) -> None:
    spec = method.spec
    for name, node in spec.nodes.items():
        key = ("nodes", name)
        seen, waiting = {name}, list(node.sources)
        while waiting:
            source = set_of(waiting.pop(), spec)
            if source == name:
                method.refuse(key, f"the node '{name}' is made of itself", "Break the circle.")
            if source is not None and source not in seen:
                seen.add(source)
                waiting += spec.nodes[source].sources
        kinds = [spec.nodes[set_of(source, spec) or source] for source in node.sources]
        if node.mean_of is not None and (kinds[0].network is None or not kinds[0].learns):
            method.refuse(
                key, f"'{node.mean_of}' has no weights to average", "Name a trained network."
            )
        if node.bridge_of is not None and kinds[0].network not in ("teacher", "student"):
            method.refuse(
                key, f"'{node.bridge_of}' is no single network", "Build the bridge of a network."
            )
        if node.share_with is not None and kinds[0].share is None:
            method.refuse(
                key, f"'{node.share_with}' shares no stages", "Give it 'share: all but last'."
            )
        if node.ensemble_of is not None:
            if node.by in LEARNING and any(kind.kind != "network" for kind in kinds):
                method.refuse(key, f"'{node.by}' needs networks", "Name networks alone.")
            one_set = len(node.ensemble_of) == 1 and _names_set(node.ensemble_of[0], spec)
            if node.by == "attention" and not one_set:
                method.refuse(key, "'attention' needs one set", "Name one set.")
            if node.without and not one_set:
                method.refuse(key, "'without: own' needs one set", "Name one set.")
            if node.by == "gate" and any(
                kind.share is None and kind.share_with is None for kind in kinds
            ):
                method.refuse(
                    key,
                    "a gate looks at stages that its networks share, and they share none",
                    "Give the set 'share: all but last', or combine by another rule.",
                )


def _check_learners(method: Method) -> None:
    spec = method.spec
    for index, link in enumerate(spec.links):
        learner = set_of(link.learner, spec) or link.learner
        key = ("links", index, "to")
        if not spec.nodes[learner].learns:
            method.refuse(
                key,
                f"'{link.learner}' has nothing that could learn",
                "Let the link end in a network that is trained.",
            )
        sets = _names_set(link.source, spec) and _names_set(link.learner, spec)
        if link.pairs != "all" and not sets:
            method.refuse(
                ("links", index, "pairs"),
                f"'pairs: {link.pairs}' compares numbers in two sets, and this link joins others",
                "Leave it out, or name a set at both ends.",
            )
        if link.source == link.learner and not _names_set(link.learner, spec):
            method.refuse(
                ("links", index),
                f"a link from '{link.source}' to itself",
                "Only a set can be linked with itself: all pairs of its members.",
            )
    for name, node in spec.nodes.items():
        taught = any(set_of(link.learner, spec) == name for link in spec.links)
        can_learn = node.kind in ("network", "bridge_of") and node.learns
        if can_learn and node.supervised_weight == 0 and not taught:
            method.refuse(
                ("nodes", name),
                f"the node '{name}' learns from nothing",
                "Give it a supervised weight above 0, or a link that ends in it.",
            )
    plain = all(
        node.kind == "network" and node.share is None and node.share_with is None
        for node in spec.nodes.values()
    )
    if spec.update == "alternating" and not (plain and all(link.detach for link in spec.links)):
        method.refuse(
            ("update",),
            "networks can only be updated in turn where they have nothing in common",
            "Use 'update: simultaneous', or leave out means, ensembles, bridges, shared stages and "
            "'detach: false'.",
        )


def _check_deployed(method: Method) -> None:
    spec = method.spec
    deploy = spec.deploy
    assert deploy.node is not None
    owner = set_of(deploy.node, spec) or deploy.node
    key = ("deploy", deploy.rule)
    if _needs_teacher(owner, spec):
        method.refuse(key, "a teacher cannot ship", "Deploy students.")
    if deploy.rule == "one" and owner == deploy.node and is_set(owner, spec):
        method.refuse(
            key, f"'{owner}' is a set, not one node", f"Name one member, such as '{owner}_0'."
        )


def _needs_teacher(name: str, spec: MethodSpec) -> bool:
    node = spec.nodes[name]
    sources = (set_of(source, spec) or source for source in node.sources)
    return node.network == "teacher" or any(_needs_teacher(source, spec) for source in sources)
