"""Distillation graphs: a method with every set written out for a number of students.

Nodes predict, links carry knowledge from a target to a learner. What stands here has names and
numbers only; :mod:`medkd.distill.cohort` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medkd.distill.method import Method, is_set, set_of
from medkd.distill.ramp import Ramp
from medkd.distill.schema import LinkSpec, NodeSpec

Role = Literal["teacher", "student", "mean", "ensemble", "bridge"]


@dataclass(frozen=True)
class Node:
    """What gives logits.

    Attributes:
        name: of it.
        role: ``teacher`` or ``student`` for trained networks, else what it is.
        index: its number in its set, from 0.
        is_extra: a network beside those of the experiment, like its first student.
        where: file and line of the method.
        supervised: weight of its own loss by the labels.
        frozen: trained beforehand, and never after.
        view: number of the augmentation that it sees.
        trunk: of networks that have early stages in common, the name of what they share.
        shared_stages: how many, as a slice counts (-1: all but the last); None without trunk.
        sources: nodes that a mean, an ensemble or a bridge is made of.
        by: how an ensemble combines them.
        module: of ensembles that learn, the name under which nodes share one module.
        decay, warm_start: of a mean.
        from_stage: of a bridge.
    """

    name: str
    role: Role
    index: int = 0
    is_extra: bool = False
    where: str = ""
    supervised: float = 0.0
    frozen: bool = False
    view: int = 0
    trunk: str | None = None
    shared_stages: int | None = None
    sources: tuple[str, ...] = ()
    by: str | None = None
    module: str | None = None
    decay: float = 0.999
    warm_start: bool = True
    from_stage: int = -1

    @property
    def is_network(self) -> bool:
        """Whether it is a network of the experiment's configuration."""
        return self.role in ("teacher", "student")


@dataclass(frozen=True)
class Link:
    """All targets of one learner under one link of the method; the loss is their mean.

    Attributes:
        name: the key of the loss term, such as ``student_0/kl_from_teacher``.
        learner: who learns.
        targets: from whom.
        source: what the method calls the targets.
        loss: a name of :data:`medkd.distill.links.LOSSES`.
        settings: every number that the loss takes.
        weight: factor on the loss.
        ramp: how the weight grows; None: it stays.
        detach: targets get no gradient.
        target_place, learner_place: what is compared: ``logits``, ``pooled`` or ``stage N``.
        where: file and line of the method.
    """

    name: str
    learner: str
    targets: tuple[str, ...]
    source: str
    loss: str
    settings: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    ramp: Ramp | None = None
    detach: bool = True
    target_place: str = "logits"
    learner_place: str = "logits"
    where: str = ""

    @property
    def temperature(self) -> float | None:
        """Of the loss; None where it has none."""
        return self.settings.get("temperature")


@dataclass(frozen=True)
class Graph:
    """A method expanded for a number of students.

    Attributes:
        method: its name.
        nodes: each after those that it is made of.
        links: of the method, one for each learner.
        views: how many augmentations of an image a step needs.
        update: ``simultaneous`` or ``alternating``.
        deployed: the nodes that ship; their mean probability is the prediction.
        chosen_by_validation: just one of ``deployed`` ships, the best on validation data.
    """

    method: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    deployed: tuple[str, ...]
    views: int = 1
    update: Literal["simultaneous", "alternating"] = "simultaneous"
    chosen_by_validation: bool = False

    def node(self, name: str) -> Node:
        """The node called ``name``."""
        return next(node for node in self.nodes if node.name == name)

    def made_of(self, name: str) -> tuple[Node, ...]:
        """The node and all that it needs to predict, in the order of ``nodes``."""
        needed, waiting = set(), [name]
        while waiting:
            current = waiting.pop()
            if current not in needed:
                needed.add(current)
                node = self.node(current)
                # A mean has weights of its own: it follows its source, but needs it no more.
                waiting += () if node.role == "mean" else node.sources
        return tuple(node for node in self.nodes if node.name in needed)

    def first(self, name: str) -> Graph:
        """A graph of one frozen network that learns by its labels: what is done before."""
        node = replace(self.node(name), frozen=False, supervised=1.0, view=0)
        return Graph(self.method, (node,), (), (name,))

    def alone(self, name: str) -> Graph:
        """A graph of what ``name`` is made of, without links: what it needs to predict."""
        nodes = tuple(replace(node, view=0, supervised=0.0) for node in self.made_of(name))
        return Graph(self.method, nodes, (), (name,))


def expand(method: Method, students: int) -> Graph:
    """Turn sets into single nodes and links for ``students`` students.

    Raises:
        MethodError: a link or an ensemble needs more students than there are, or gradients would
            flow in a circle.
    """
    return _Expansion(method, students).graph()


class _Expansion:
    def __init__(self, method: Method, students: int) -> None:
        self._method = method
        self._spec = method.spec
        self._students = students
        self._views = self._numbered_views()
        self._nodes: dict[str, Node] = {}

    def graph(self) -> Graph:
        waiting = list(self._spec.nodes)
        while waiting:
            # The first whose sources are all there; circles were refused before.
            name = next(
                name
                for name in waiting
                if all(
                    set_of(source, self._spec) not in waiting
                    for source in self._spec.nodes[name].sources
                )
            )
            waiting.remove(name)
            for node in self._expanded(name, self._spec.nodes[name]):
                self._nodes[node.name] = node
        links = [
            link
            for index, spec in enumerate(self._spec.links)
            for link in self._linked(index, spec)
        ]
        self._check_repeated(links)
        self._check_circles(links)
        deploy = self._spec.deploy
        assert deploy.node is not None
        return Graph(
            method=self._method.name,
            nodes=tuple(self._nodes.values()),
            links=tuple(links),
            deployed=self._members(deploy.node, ("deploy", deploy.rule)),
            views=max((node.view for node in self._nodes.values()), default=0) + 1,
            update=self._spec.update,
            chosen_by_validation=deploy.rule == "best_of",
        )

    def _numbered_views(self) -> dict[str, int]:
        names: list[str] = []
        for name in self._spec.views:
            names += self._members(name, ("views",))
        return {name: number for number, name in enumerate(dict.fromkeys(names))}

    def _members(self, name: str, key: tuple[str | int, ...]) -> tuple[str, ...]:
        """The single nodes that a name of the method stands for."""
        owner = set_of(name, self._spec)
        assert owner is not None
        if not is_set(owner, self._spec):
            return (name,)
        members = tuple(f"{owner}_{index}" for index in range(self._students))
        if name == owner:
            return members
        if name not in members:
            self._method.refuse(
                key,
                f"there is no '{name}' among {_count(self._students)}",
                "Add students to train.students, or name another one.",
            )
        return (name,)

    def _expanded(self, name: str, spec: NodeSpec) -> list[Node]:
        key = ("nodes", name)
        where = self._method.document.where(key)
        names = self._members(name, key)
        common = Node(
            name,
            "student",
            where=where,
            supervised=spec.supervised_weight if not spec.frozen else 0.0,
            frozen=spec.frozen,
        )
        if spec.network is not None:
            trunk = self._trunk(name, spec)
            return [
                replace(
                    common,
                    name=member,
                    role="teacher" if spec.network == "teacher" else "student",
                    index=index,
                    is_extra=spec.network == "student",
                    view=self._views.get(member, 0),
                    trunk=trunk[0] if trunk else None,
                    shared_stages=trunk[1] if trunk else None,
                )
                for index, member in enumerate(names)
            ]
        sources = tuple(member for source in spec.sources for member in self._members(source, key))
        if spec.mean_of is not None:
            return [
                replace(
                    common,
                    name=member,
                    role="mean",
                    index=index,
                    view=self._nodes[source].view,
                    sources=(source,),
                    decay=spec.decay,
                    warm_start=spec.warm_start,
                )
                for index, (member, source) in enumerate(zip(names, sources, strict=True))
            ]
        if spec.bridge_of is not None:
            view = self._nodes[sources[0]].view
            role: Role = "bridge"
            return [
                replace(common, role=role, view=view, sources=sources, from_stage=spec.from_stage)
            ]
        return self._ensembles(names, sources, spec, common)

    def _ensembles(
        self, names: tuple[str, ...], sources: tuple[str, ...], spec: NodeSpec, common: Node
    ) -> list[Node]:
        nodes = []
        for index, member in enumerate(names):
            kept = tuple(s for i, s in enumerate(sources) if not (spec.without and i == index))
            if not kept:
                self._method.refuse(
                    ("nodes", common.name),
                    f"'{common.name}' needs at least two students, and the experiment has one",
                    "Add a student to train.students, or choose another method.",
                )
            nodes.append(
                replace(
                    common,
                    name=member,
                    role="ensemble",
                    index=index,
                    sources=kept,
                    by=spec.by,
                    module=common.name if spec.learns else None,
                )
            )
        return nodes

    def _trunk(self, name: str, spec: NodeSpec) -> tuple[str, int] | None:
        owner = name if spec.share is not None else spec.share_with
        if owner is None:
            return None
        share = self._spec.nodes[owner].share
        assert share is not None
        return f"{owner}_trunk", -1 if share == "all but last" else share

    def _linked(self, index: int, spec: LinkSpec) -> list[Link]:
        key = ("links", index)
        sources = self._members(spec.source, (*key, "from"))
        links = []
        for learner in self._members(spec.learner, (*key, "to")):
            number = self._nodes[learner].index
            targets = tuple(
                target
                for target in sources
                if target != learner
                and (
                    spec.pairs == "all"
                    or (self._nodes[target].index == number) == (spec.pairs == "own")
                )
            )
            if sources == (learner,) and self._students > 1:
                continue  # One member teaches its whole set, but not itself.
            if not targets:
                self._method.refuse(
                    key,
                    f"the link from '{spec.source}' to '{spec.learner}' needs at least two "
                    f"students, and the experiment has {self._students}",
                    "Add a student to train.students, or choose a method without that link.",
                )
            places = spec.places
            on = "" if places[1] == "logits" else f"_on_{places[1].replace(' ', '')}"
            links.append(
                Link(
                    name=f"{learner}/{spec.loss}{on}_from_{spec.source}",
                    learner=learner,
                    targets=targets,
                    source=spec.source,
                    loss=spec.loss,
                    settings=spec.settings,
                    weight=spec.weight,
                    ramp=spec.ramp.parsed() if spec.ramp else None,
                    detach=spec.detach,
                    target_place=places[0],
                    learner_place=places[1],
                    where=self._method.document.where(key),
                )
            )
        return links

    def _check_repeated(self, links: Sequence[Link]) -> None:
        seen: dict[str, Link] = {}
        for link in links:
            if link.name in seen:
                index = next(
                    i
                    for i in range(len(self._spec.links))
                    if self._method.document.where(("links", i)) == link.where
                )
                self._method.refuse(
                    ("links", index),
                    f"the link from '{link.source}' to '{link.learner}' stands twice",
                    "Keep one, and add up their weights.",
                )
            seen[link.name] = link

    def _check_circles(self, links: Sequence[Link]) -> None:
        """Links that are not detached pull both ends: two of them against each other are a slip."""
        teaches = {
            (target, link.learner): link
            for link in links
            if not link.detach
            for target in link.targets
        }
        for start, link in ((ends[0], link) for ends, link in teaches.items()):
            reached, waiting = set(), [start]
            while waiting:
                current = waiting.pop()
                for target, learner in teaches:
                    if target == current and learner not in reached:
                        reached.add(learner)
                        waiting.append(learner)
            if start in reached:
                index = next(
                    i
                    for i, spec in enumerate(self._spec.links)
                    if spec.source == link.source and not spec.detach
                )
                self._method.refuse(
                    ("links", index),
                    f"gradients would flow in a circle through '{start}': it learns from those "
                    "that it teaches, and nothing is detached",
                    "Leave 'detach: false' out of one of the links.",
                )


def _count(students: int) -> str:
    return "one student" if students == 1 else f"{students} students"
