"""Distillation graphs: nodes that predict, links that carry knowledge, read from YAML.

A method names sets of nodes; :func:`expand` turns it into single nodes and links for a given
number of students.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from medkd.errors import MethodError
from medkd.schema import Strict, faults
from medkd.yaml_file import YamlDocument, parse_yaml, read_yaml

Weight = Annotated[float, Field(ge=0)]


class NodeSpec(Strict):
    """A trained network, or the set of the students' networks."""

    network: Literal["teacher", "students"] = Field(
        description="Which of the experiment's networks: the teacher, or one node per student."
    )
    supervised: Weight = Field(1.0, description="Weight of the node's own supervised loss.")


class LinkSpec(Strict):
    """Knowledge that flows from a target to a learner. A set's name stands for each member."""

    source: str = Field(alias="from", description="The target node or set.")
    learner: str = Field(alias="to", description="The node or set that learns.")
    loss: Literal["kl"] = Field(description="What is compared; see medkd/distill/links.py.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Softens both sides.")
    weight: Weight = Field(1.0, description="Factor on the loss, beside temperature squared.")


class DeploySpec(Strict):
    """What ships."""

    ensemble: str = Field(description="A set of nodes whose mean probability is the prediction.")


class MethodSpec(Strict):
    """A method file."""

    description: str = ""
    nodes: Annotated[dict[str, NodeSpec], Field(min_length=1)]
    links: Annotated[tuple[LinkSpec, ...], Field(strict=False)] = ()
    deploy: DeploySpec


@dataclass(frozen=True)
class Method:
    """A checked method and the text it was read from."""

    name: str
    text: str
    spec: MethodSpec
    document: YamlDocument


@dataclass(frozen=True)
class Node:
    """One network of the cohort. ``role`` is ``teacher`` or ``student``."""

    name: str
    role: Literal["teacher", "student"]
    index: int
    supervised: float


@dataclass(frozen=True)
class Link:
    """All targets of one learner under one link of the method; the loss is their mean.

    ``name`` is the key of the loss term, such as ``student_0/kl_from_teacher``.
    """

    name: str
    learner: str
    targets: tuple[str, ...]
    loss: str
    temperature: float
    weight: float


@dataclass(frozen=True)
class Graph:
    """A method expanded for a number of students."""

    method: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    deployed: tuple[str, ...]

    def node(self, name: str) -> Node:
        """The node called ``name``."""
        return next(node for node in self.nodes if node.name == name)


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
        return _check(path.stem, path.read_text(encoding="utf-8-sig"), document)
    if name not in method_names():
        close = difflib.get_close_matches(name, method_names(), n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(method_names())}."
        raise MethodError(
            f"unknown method '{name}'", where="train.method", remedy=f"{hint} Or name a .yaml file."
        )
    text = (resources.files("medkd.distill") / "methods" / f"{name}.yaml").read_text("utf-8")
    return _check(name, text, parse_yaml(text, f"{name}.yaml", MethodError))


def parse_method(text: str, name: str) -> Method:
    """Check a method given as YAML text; see :func:`load_method`."""
    return _check(name, text, parse_yaml(text, f"{name}.yaml", MethodError))


def _check(name: str, text: str, document: YamlDocument) -> Method:
    try:
        spec = MethodSpec.model_validate(document.content)
    except ValidationError as error:
        place, what, remedy = faults(error, MethodSpec, document.where)[0]
        raise MethodError(what, where=place, remedy=remedy) from None
    for index, link in enumerate(spec.links):
        for end, node in (("from", link.source), ("to", link.learner)):
            if node not in spec.nodes:
                _refuse_unknown_node(node, spec, document.where(("links", index, end)))
        if link.source == link.learner and spec.nodes[link.source].network == "teacher":
            raise MethodError(
                f"a link from '{link.source}' to itself",
                where=document.where(("links", index)),
                remedy="Only a set can be linked with itself: all pairs of its members.",
            )
    if spec.deploy.ensemble not in spec.nodes:
        _refuse_unknown_node(spec.deploy.ensemble, spec, document.where(("deploy", "ensemble")))
    if spec.nodes[spec.deploy.ensemble].network == "teacher":
        raise MethodError(
            "a teacher cannot ship",
            where=document.where(("deploy", "ensemble")),
            remedy="Deploy a set of students.",
        )
    networks = [node.network for node in spec.nodes.values()]
    for key, node_spec in spec.nodes.items():
        if networks.count(node_spec.network) > 1:
            raise MethodError(
                f"two nodes take the network '{node_spec.network}'",
                where=document.where(("nodes", key)),
                remedy="Give each network one node.",
            )
        learns = node_spec.supervised > 0 or any(link.learner == key for link in spec.links)
        if not learns:
            raise MethodError(
                f"the node '{key}' learns from nothing",
                where=document.where(("nodes", key)),
                remedy="Give it a supervised weight above 0, or a link that ends in it.",
            )
    return Method(name, text, spec, document)


def _refuse_unknown_node(node: str, spec: MethodSpec, where: str) -> None:
    close = difflib.get_close_matches(node, spec.nodes, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Known here: {', '.join(spec.nodes)}."
    raise MethodError(f"unknown node '{node}'", where=where, remedy=hint)


def expand(method: Method, students: int) -> Graph:
    """Turn sets into single nodes and links for ``students`` students.

    Raises:
        MethodError: a link among the students when there is one student only.
    """
    members: dict[str, tuple[str, ...]] = {}
    nodes: list[Node] = []
    for name, spec in method.spec.nodes.items():
        if spec.network == "teacher":
            members[name] = (name,)
            nodes.append(Node(name, "teacher", 0, spec.supervised))
            continue
        members[name] = tuple(f"{name}_{index}" for index in range(students))
        nodes += [
            Node(member, "student", index, spec.supervised)
            for index, member in enumerate(members[name])
        ]
    links: list[Link] = []
    for index, link_spec in enumerate(method.spec.links):
        for learner in members[link_spec.learner]:
            targets = tuple(t for t in members[link_spec.source] if t != learner)
            if not targets:
                raise MethodError(
                    f"the link from '{link_spec.source}' to '{link_spec.learner}' needs at least "
                    "two students, and the experiment has one",
                    where=method.document.where(("links", index)),
                    remedy="Add a student to train.students, or choose a method without that link.",
                )
            links.append(
                Link(
                    name=f"{learner}/{link_spec.loss}_from_{link_spec.source}",
                    learner=learner,
                    targets=targets,
                    loss=link_spec.loss,
                    temperature=link_spec.temperature,
                    weight=link_spec.weight,
                )
            )
    names = [link.name for link in links]
    for index, link_spec in enumerate(method.spec.links):
        key = f"/{link_spec.loss}_from_{link_spec.source}"
        learner = members[link_spec.learner][0]
        if names.count(learner + key) > 1:
            raise MethodError(
                f"the link from '{link_spec.source}' to '{link_spec.learner}' stands twice",
                where=method.document.where(("links", index)),
                remedy="Keep one, and add up their weights.",
            )
    return Graph(method.name, tuple(nodes), tuple(links), members[method.spec.deploy.ensemble])
