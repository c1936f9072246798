"""The formulas of a method, in TeX, made from its links and nodes for any number K of students."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medkd.distill.method import Method, is_set, set_of
from medkd.distill.schema import LinkSpec, MethodSpec, NodeSpec

_SETTINGS = {"temperature": "T", "alpha": r"\alpha", "beta": r"\beta"}


@dataclass(frozen=True)
class Learner:
    """A single node, a set's member of a number, or a set's member k.

    Attributes:
        owner: the node or set.
        index: empty for a single node; a number; or ``k`` for any member that has no number here.
        but: members that ``k`` does not stand for.
    """

    owner: str
    index: str = ""
    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class Formula:
    """An equation: its left side, the terms on the right, and what must be said about it."""

    left: str
    terms: tuple[str, ...]
    remark: str = ""
    sign: str = "="

    @property
    def tex(self) -> str:
        """As GitHub takes it: several lines if there are more than two terms."""
        if len(self.terms) < 3:
            return f"{self.left} {self.sign} {' + '.join(self.terms)}"
        first, *others = self.terms
        lines = [
            rf"{self.left} &{self.sign} {first} \\",
            *(rf"&\quad + {term} \\" for term in others),
        ]
        return "\n".join([r"\begin{aligned}", *lines, r"\end{aligned}"])


def loss_formulas(method: Method) -> list[Formula]:
    """The loss of each node that learns: by the labels, and by each link that ends in it."""
    spec = method.spec
    formulas = []
    for learner in _learners(spec):
        node = spec.nodes[learner.owner]
        terms = []
        if node.supervised_weight:
            probabilities = _probabilities(_node(learner.owner, learner.index))
            terms.append(rf"{_factor(node.supervised_weight)}\mathrm{{CE}}(y, {probabilities})")
        for number, link in enumerate(spec.links):
            term = _term(link, number, learner, spec)
            if term:
                terms.append(term)
        if terms:
            remark = f"every $`k`$ but {' and '.join(learner.but)}" if learner.but else ""
            loss = rf"\mathcal{{L}}_{{{_node(learner.owner, learner.index)}}}"
            formulas.append(Formula(loss, tuple(terms), remark))
    return formulas


def node_formulas(method: Method) -> list[tuple[str, Formula]]:
    """What each node that is made of others is, in words and as a formula."""
    spec = method.spec
    told = []
    for name, node in spec.nodes.items():
        index = "k" if is_set(name, spec) else ""
        if node.mean_of is not None:
            told.append(_mean(name, node, index))
        elif node.bridge_of is not None:
            told.append(_bridge(name, node))
        elif node.ensemble_of is not None:
            told.append(_ensemble(name, node, index, spec))
    return told


def ramp_formulas(method: Method) -> list[Formula]:
    """How the weights of links grow: w, or w with a number where there are several."""
    formulas = []
    for symbol, text in _ramps(method.spec).items():
        shape, length, total, unit = text
        now, whole = ("e", "E") if unit == "epochs" else ("g", "G")
        end = f"{length:g}" if total is None else rf"\frac{{{length:g}}}{{{total:g}}} {whole}"
        shapes = {
            "linear": "t",
            "cosine": r"\frac{1}{2} (1 - \cos(\pi t))",
            "exponential": r"\exp(-5 (1 - t)^2)",
        }
        right = rf"{shapes[shape]}, \quad t = \min(1, {now} / t_1), \quad t_1 = {end}"
        formulas.append(Formula(symbol, (right,)))
    return formulas


def _learners(spec: MethodSpec) -> list[Learner]:
    """Nodes, and of each set those members that links name, then member k."""
    learners = []
    for name in spec.nodes:
        if not is_set(name, spec):
            learners.append(Learner(name))
            continue
        named = {link.learner.rpartition("_")[2] for link in spec.links if _is_member(link, name)}
        numbers = tuple(sorted(named, key=int))
        learners += [Learner(name, number) for number in numbers]
        learners.append(Learner(name, "k", numbers))
    return learners


def _is_member(link: LinkSpec, name: str) -> bool:
    return (
        link.learner != name and re.fullmatch(rf"{re.escape(name)}_\d+", link.learner) is not None
    )


def _term(link: LinkSpec, number: int, learner: Learner, spec: MethodSpec) -> str:
    """What a link adds to the learner's loss; empty if it does not end there."""
    if link.learner not in (learner.owner, f"{learner.owner}_{learner.index}"):
        return ""
    source = set_of(link.source, spec) or link.source
    own = learner.index or "0"
    average, index = "", ""
    if is_set(source, spec):
        if link.source != source:
            index = link.source.rpartition("_")[2]
        elif link.pairs == "own":
            index = own
        else:
            index = "j"
            without_own = link.pairs == "others" or source == learner.owner
            average = (
                rf"\frac{{1}}{{K - 1}} \sum_{{j \neq {own}}} "
                if without_own
                else r"\frac{1}{K} \sum_j "
            )
    ramp = next((rf"{name} \cdot " for name, at in _ramp_of_link(spec).items() if number in at), "")
    compared = _compared(link, _node(source, index), _node(learner.owner, learner.index))
    return f"{_factor(link.weight)}{ramp}{average}{compared}"


def _compared(link: LinkSpec, target: str, learner: str) -> str:
    """The loss between two nodes."""
    ends = (_quantity(link.places[0], target, bar=link.detach), _quantity(link.places[1], learner))
    temperature = link.settings.get("temperature", 1.0)
    if link.loss in ("kl", "reverse_kl", "js"):
        p = _probabilities(target, temperature, bar=link.detach)
        q = _probabilities(learner, temperature)
        squared = rf"{temperature:g}^2 \, " if temperature != 1 else ""
        if link.loss == "js":
            return rf"{squared}\mathrm{{JS}}({p}, {q})"
        first, second = (p, q) if link.loss == "kl" else (q, p)
        return rf"{squared}\mathrm{{KL}}({first} \, \| \, {second})"
    settings = ", ".join(f"{_SETTINGS[key]} = {value:g}" for key, value in link.settings.items())
    name = rf"\mathrm{{{_escaped(link.loss)}}}" + (f"_{{{settings}}}" if settings else "")
    return f"{name}({ends[0]}, {ends[1]})"


def _quantity(place: str, node: str, *, bar: bool = False) -> str:
    """What of a node is compared: logits z, pooled features f, or a stage's map F."""
    symbol = {"logits": "z", "pooled": "f"}.get(place, "F")
    above = f"^{{({place.split()[1]})}}" if place.startswith("stage") else ""
    return (rf"\bar{{{symbol}}}" if bar else symbol) + f"{above}_{{{node}}}"


def _probabilities(node: str, temperature: float = 1.0, *, bar: bool = False) -> str:
    above = f"^{{({temperature:g})}}" if temperature != 1 else ""
    return (r"\bar{p}" if bar else "p") + f"{above}_{{{node}}}"


def _node(name: str, index: str = "") -> str:
    return rf"\mathrm{{{_escaped(name)}}}" + (
        f"_{index}" if len(index) == 1 else f"_{{{index}}}" if index else ""
    )


def _escaped(name: str) -> str:
    return name.replace("_", r"\_")


def _factor(weight: float) -> str:
    return "" if weight == 1 else rf"{weight:g} \cdot "


_Ramp = tuple[str, float, float | None, str]


def _ramp_of_link(spec: MethodSpec) -> dict[str, list[int]]:
    """Symbol of each ramp, and the numbers of the links that it is on."""
    links: dict[_Ramp, list[int]] = {}
    for number, link in enumerate(spec.links):
        if link.ramp is not None:
            ramp = link.ramp.parsed()
            links.setdefault((ramp.shape, ramp.length, ramp.total, ramp.unit), []).append(number)
    alone = len(links) == 1
    return {("w" if alone else f"w_{i}"): at for i, at in enumerate(links.values(), 1)}


def _ramps(spec: MethodSpec) -> dict[str, _Ramp]:
    ramps: dict[str, _Ramp] = {}
    for symbol, numbers in _ramp_of_link(spec).items():
        ramp_spec = spec.links[numbers[0]].ramp
        assert ramp_spec is not None
        ramp = ramp_spec.parsed()
        ramps[symbol] = (ramp.shape, ramp.length, ramp.total, ramp.unit)
    return ramps


def _mean(name: str, node: NodeSpec, index: str) -> tuple[str, Formula]:
    assert node.mean_of is not None
    mean, source = _node(name, index), _node(node.mean_of, index)
    decay = f"{node.decay:g}"
    if node.warm_start:
        decay = rf"\min \left( 1 - \frac{{1}}{{g + 1}}, {decay} \right)"
    words = (
        f"`{name}` averages the weights $`\\theta`$ of `{node.mean_of}`, anew after each step "
        "$`g = 0, 1, \\ldots`$:"
    )
    right = rf"\delta \, \theta_{{{mean}}} + (1 - \delta) \, \theta_{{{source}}}, \quad "
    return words, Formula(
        rf"\theta_{{{mean}}}", (right + rf"\delta = {decay}",), sign=r"\leftarrow"
    )


def _bridge(name: str, node: NodeSpec) -> tuple[str, Formula]:
    assert node.bridge_of is not None
    words = (
        f"`{name}` has its own late stages, norm and classifier $`A`$, made like those of "
        f"`{node.bridge_of}` from stage {node.from_stage} on but fresh, and fed with the map "
        f"$`F`$ that comes before them; no gradient goes back into `{node.bridge_of}`:"
    )
    right = rf"A(\bar{{F}}_{{{_node(node.bridge_of)}}})"
    return words, Formula(f"z_{{{_node(name)}}}", (right,))


def _ensemble(name: str, node: NodeSpec, index: str, spec: MethodSpec) -> tuple[str, Formula]:
    assert node.ensemble_of is not None
    this = _node(name, index)
    members = node.ensemble_of
    if node.by in ("mean logits", "mean probabilities"):
        symbol = "z" if node.by == "mean logits" else "p"
        count, total = _sum(members, symbol, spec, without_own=node.without == "own")
        right = rf"\frac{{1}}{{{count}}} {total}" if count != "1" else total
        if node.by == "mean probabilities":
            words = f"`{name}` is the mean of probabilities; its logits are their logarithms:"
            return words, Formula(f"z_{{{this}}}", (rf"\log \left( {right} \right)",))
        return f"`{name}` is the mean of logits:", Formula(f"z_{{{this}}}", (right,))
    if node.by == "gate":
        _, total = _sum(members, "z", spec, weight="a")
        words = (
            f"`{name}` weighs logits by a softmax over the members, from the mean over all "
            "positions $`s`$ of the last shared stage's map; its own loss trains the members too:"
        )
        gate = r"a = \mathrm{softmax}(\mathrm{ReLU}(\mathrm{BN}(W s)))"
        return words, Formula(f"z_{{{this}}}", (rf"{total}, \quad {gate}",))
    if node.by == "attention":
        peer = members[0]
        words = (
            f"`{name}` weighs the logits of all members, its own among them, by the product of two "
            "learned projections of pooled features $`f`$:"
        )
        weights = (
            rf"a_{{kj}} = \mathrm{{softmax}}_j((U f_{{{_node(peer, 'k')}}})^\top "
            rf"V f_{{{_node(peer, 'j')}}})"
        )
        right = rf"\sum_j a_{{kj}} \, z_{{{_node(peer, 'j')}}}, \quad {weights}"
        return words, Formula(f"z_{{{this}}}", (right,))
    words = (
        f"`{name}` is one linear classifier on the pooled features $`f`$ of all members side by "
        "side; its own loss trains the members too:"
    )
    listed = []
    for member in members:
        if member in spec.nodes and is_set(member, spec):
            first, last = _node(member, "0"), _node(member, "K-1")
            listed.append(rf"f_{{{first}}}, \ldots, f_{{{last}}}")
        else:
            listed.append(f"f_{{{_single(member, spec)}}}")
    return words, Formula(f"z_{{{this}}}", (rf"W [{', '.join(listed)}] + b",))


def _sum(
    members: tuple[str, ...],
    symbol: str,
    spec: MethodSpec,
    *,
    without_own: bool = False,
    weight: str = "",
) -> tuple[str, str]:
    """Number of members, and the sum over them."""
    singles, terms, sets = 0, [], 0
    for member in members:
        if member in spec.nodes and is_set(member, spec):
            sets += 1
            node = _node(member, "j")
            over = r"\sum_{j \neq k}" if without_own else r"\sum_j"
            factor = f"{weight}_{{{node}}} \\, " if weight else ""
            terms.append(f"{over} {factor}{symbol}_{{{node}}}")
        else:
            singles += 1
            node = _single(member, spec)
            factor = f"{weight}_{{{node}}} \\, " if weight else ""
            terms.append(f"{factor}{symbol}_{{{node}}}")
    students = {0: "", 1: "K"}.get(sets, f"{sets} K")
    fixed = singles - (1 if without_own else 0)
    count = (
        f"{students} {'+' if fixed > 0 else '-'} {abs(fixed)}"
        if students and fixed
        else (students or str(singles))
    )
    total = " + ".join(terms)
    return count, rf"\left( {total} \right)" if len(terms) > 1 else total


def _single(member: str, spec: MethodSpec) -> str:
    """A node that is no set, or a member of one."""
    if member in spec.nodes:
        return _node(member)
    owner, _, number = member.rpartition("_")
    return _node(owner, number)
