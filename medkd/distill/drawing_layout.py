"""Where the parts of a method's drawing go: boxes in rows, and wires in columns of their own.

Every wire between two rows runs down a column that it shares with no other wire of the same gap,
and its label stands beside it there: labels meet neither boxes nor one another in any method.
All lengths are inches, y upwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations

from medkd.distill.method import set_of
from medkd.distill.schema import MethodSpec

# Between the boxes of a row, from a box's side to its wires, and from a wire to what is beside it.
_BETWEEN = 0.45
_INSET = 0.3
_BESIDE = 0.17
# Of a gap between rows, above and below its labels.
_MARGIN = 0.3
_SMALLEST_GAP = 0.5
# What a box off the middle of its wires costs, against the width of boxes and drawing.
_EVEN = 2.5
# What the solver of the linear program may be off.
_EXACT = 1e-6
# With more pairs of boxes than this their order is left as it is: trying all would take long.
_MOST_ORDERED = 7


@dataclass(frozen=True)
class Box:
    """A box to be placed: its smallest size, its row from the bottom, and room to its right."""

    name: str
    row: int
    width: float
    height: float
    beside: float = 0.0


@dataclass(frozen=True)
class Wire:
    """A wire to be placed between boxes of two rows.

    ``key`` is whatever tells the wires apart; ``label`` is width and height of its label, if any.
    """

    key: int
    upper: str
    lower: str
    label: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Rectangle:
    """A placed box."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right side."""
        return self.left + self.width

    @property
    def top(self) -> float:
        """Its upper side."""
        return self.bottom + self.height


@dataclass(frozen=True)
class PlacedWire:
    """A placed wire.

    Attributes:
        x: of its column.
        upper_x, lower_x: where it meets its boxes; other than ``x`` only where boxes cannot stand
            so that all wires are straight.
        label_y: the middle of its label.
        label_left: the label stands to the left of the column, not to the right.
        half_label: half the height of the tallest label in its gap.
    """

    x: float
    upper_x: float
    lower_x: float
    label_y: float
    label_left: bool
    half_label: float


@dataclass(frozen=True)
class Layout:
    """Boxes by name, and wires by their key."""

    boxes: dict[str, Rectangle] = field(default_factory=dict)
    wires: dict[int, PlacedWire] = field(default_factory=dict)


def rows_of(spec: MethodSpec) -> dict[str, int]:
    """The row of each node, from the bottom: students, then what is made of them, then the teacher.

    Two nodes that a wire joins are never in one row above the bottom.
    """
    rows: dict[str, int] = {}
    waiting = list(spec.nodes)
    while waiting:
        for name in list(waiting):
            node = spec.nodes[name]
            sources = [set_of(source, spec) or source for source in node.sources]
            if all(source in rows for source in sources):
                below = [rows[s] for s in sources if spec.nodes[s].network != "teacher"]
                rows[name] = 0 if node.network is not None else 1 + max(below, default=0)
                waiting.remove(name)
    teachers = {name for name, node in spec.nodes.items() if node.network == "teacher"}
    order = list(spec.nodes)
    joined = {
        tuple(sorted((set_of(a, spec) or a, set_of(b, spec) or b), key=order.index))
        for a, b in _joined(spec)
    }
    # The later of two is raised, so that this comes to an end.
    for _ in order:
        for first, second in sorted(joined):
            if (
                first != second
                and rows[first] == rows[second] > 0
                and not {first, second} & teachers
            ):
                rows[second] += 1
    top = 1 + max((rows[name] for name in order if name not in teachers), default=-1)
    return {name: top if name in teachers else row for name, row in rows.items()}


def _joined(spec: MethodSpec) -> list[tuple[str, str]]:
    made = [(name, source) for name, node in spec.nodes.items() for source in node.sources]
    return made + [(link.source, link.learner) for link in spec.links]


def place(boxes: Sequence[Box], wires: Sequence[Wire]) -> Layout:
    """Place boxes and wires. A wire's boxes are in different rows, ``upper`` above ``lower``."""
    if not boxes:
        return Layout()
    by_name = {box.name: box for box in boxes}
    columns, label_left = _columns(boxes, wires)
    x = _across(boxes, columns, label_left)
    heights, gaps = _heights(boxes, wires)
    bottoms = [sum(heights[:row]) + sum(gaps[:row]) for row in range(len(heights))]
    placed = {}
    for box in boxes:
        bottom = bottoms[box.row] + (heights[box.row] - box.height) / 2
        left, right = x[f"left {box.name}"], x[f"right {box.name}"]
        placed[box.name] = Rectangle(left, bottom, right - left, box.height)

    def port(name: str, at: float) -> float:
        box = placed[name]
        inside = min(max(at, box.left + _INSET), box.right - _INSET)
        return at if abs(at - inside) < _EXACT else inside

    runs = {}
    for wire in columns:
        at = x[f"wire {wire.key}"]
        row = by_name[wire.lower].row
        runs[wire.key] = PlacedWire(
            at,
            port(wire.upper, at),
            port(wire.lower, at),
            bottoms[row] + heights[row] + gaps[row] / 2,
            label_left[wire.key],
            gaps[row] / 2 - _MARGIN,
        )
    return Layout(placed, runs)


def _heights(boxes: Sequence[Box], wires: Sequence[Wire]) -> tuple[list[float], list[float]]:
    """Height of each row, and of the gap above it."""
    rows = {box.name: box.row for box in boxes}
    count = 1 + max(rows.values())
    heights = [max((b.height for b in boxes if b.row == row), default=0.0) for row in range(count)]
    gaps = []
    for row in range(count):
        labels = [wire.label[1] for wire in wires if rows[wire.lower] == row]
        gaps.append(max([_SMALLEST_GAP, *(label + 2 * _MARGIN for label in labels)]))
    return heights, gaps


def _columns(boxes: Sequence[Box], wires: Sequence[Wire]) -> tuple[list[Wire], dict[int, bool]]:
    """The wires from left to right, and whether their labels stand to their left."""
    bundles: dict[tuple[str, str], list[Wire]] = {}
    for wire in wires:
        bundles.setdefault((wire.upper, wire.lower), []).append(wire)
    label_left: dict[int, bool] = {}
    for pair, bundle in bundles.items():
        told = [wire for wire in bundle if wire.label[0]]
        plain = [wire for wire in bundle if not wire.label[0]]
        first = told[:1] if len(told) > 1 else []
        bundles[pair] = [*first, *plain, *told[len(first) :]]
        label_left |= {wire.key: wire in first for wire in bundle}
    orders = permutations(bundles) if len(bundles) <= _MOST_ORDERED else iter([tuple(bundles)])
    order = min(orders, key=lambda pairs: _bent(boxes, [w for p in pairs for w in bundles[p]]))
    return [wire for pair in order for wire in bundles[pair]], label_left


def _bent(boxes: Sequence[Box], columns: Sequence[Wire]) -> int:
    """How many ends of wires would not be straight above or below their box."""
    rows = 1 + max(box.row for box in boxes)
    kept = sum(len(entry) for row in range(rows) for _, entry in _sequence(row, boxes, columns))
    wanted = sum(len(_met(row, boxes, columns)) for row in range(rows))
    return wanted - kept


def _met(row: int, boxes: Sequence[Box], columns: Sequence[Wire]) -> list[tuple[str, Wire]]:
    """The wires that end in a row, with their box, or pass through it, with their own key."""
    rows = {box.name: box.row for box in boxes}
    met = []
    for wire in columns:
        if rows[wire.upper] == row:
            met.append((wire.upper, wire))
        elif rows[wire.lower] == row:
            met.append((wire.lower, wire))
        elif rows[wire.lower] < row < rows[wire.upper]:
            met.append((f"wire {wire.key}", wire))
    return met


def _sequence(
    row: int, boxes: Sequence[Box], columns: Sequence[Wire]
) -> list[tuple[str, list[Wire]]]:
    """What stands in a row from left to right: boxes with the wires above or below them."""
    groups: list[tuple[str, list[Wire]]] = []
    for name, wire in _met(row, boxes, columns):
        if groups and groups[-1][0] == name:
            groups[-1][1].append(wire)
        else:
            groups.append((name, [wire]))
    longest: dict[str, list[Wire]] = {}
    for name, group in groups:
        if len(group) > len(longest.get(name, [])):
            longest[name] = group
    kept = [(name, group) for name, group in groups if longest[name] is group]
    alone: list[tuple[str, list[Wire]]] = [
        (box.name, []) for box in boxes if box.row == row and box.name not in longest
    ]
    return [*kept, *alone]


def _across(
    boxes: Sequence[Box], columns: Sequence[Wire], label_left: Mapping[int, bool]
) -> dict[str, float]:
    """Where everything is from left to right: the narrowest drawing, as even as it can be."""
    from scipy.optimize import linprog

    by_name = {box.name: box for box in boxes}
    program = _Program()

    def sides(name: str) -> tuple[dict[str, float], float, dict[str, float], float]:
        """Left and right end of a box or a passing wire: a variable, and what to add to it."""
        if name in by_name:
            return {f"left {name}": 1}, 0.0, {f"right {name}": 1}, by_name[name].beside
        return {name: 1}, -_BESIDE, {name: 1}, _BESIDE

    program.weigh({"end": 1.0, "start": -1.0})
    for box in boxes:
        left, right = f"left {box.name}", f"right {box.name}"
        program.at_least({right: 1, left: -1}, box.width)
        program.at_least({"end": 1, right: -1}, box.beside)
        program.at_least({left: 1, "start": -1}, 0)
        program.weigh({right: 1.0, left: -1.0})
        program.keep_near({left: 0.5, right: 0.5}, {"middle": 1}, 0.01)
    for wire in columns:
        key = f"wire {wire.key}"
        to_left, to_right = _room(wire, label_left)
        program.at_least({key: 1, "start": -1}, to_left - _BESIDE)
        program.at_least({"end": 1, key: -1}, to_right - _BESIDE)
        for other in columns[: columns.index(wire)]:
            if _share_a_gap(wire, other, by_name):
                room = _room(other, label_left)[1] + to_left
                program.at_least({key: 1, f"wire {other.key}": -1}, room)
    for row in range(1 + max(box.row for box in boxes)):
        sequence = _sequence(row, boxes, columns)
        for (a, _), (b, _) in pairwise(sequence):
            _, _, end, more = sides(a)
            start, less, _, _ = sides(b)
            program.at_least(_difference(start, end), _BETWEEN + more - less)
        for name, group in sequence:
            if name in by_name and group:
                keys = [f"wire {wire.key}" for wire in group]
                for key in keys:
                    program.at_least({key: 1, f"left {name}": -1}, _INSET)
                    program.at_least({f"right {name}": 1, key: -1}, _INSET)
                middle = dict.fromkeys(keys, 1 / len(keys))
                program.keep_near({f"left {name}": 0.5, f"right {name}": 0.5}, middle, _EVEN)
    matrix, bounds, costs = program.as_arrays()
    solved = linprog(costs, A_ub=matrix, b_ub=bounds, bounds=(None, None), method="highs")
    values = dict(zip(program.names, solved.x, strict=True))
    return {name: float(value - values["start"]) for name, value in values.items()}


def _room(wire: Wire, label_left: Mapping[int, bool]) -> tuple[float, float]:
    """What a wire needs to its left and to its right."""
    label = wire.label[0] + 2 * _BESIDE if wire.label[0] else _BESIDE
    return (label, _BESIDE) if label_left[wire.key] else (_BESIDE, label)


def _share_a_gap(a: Wire, b: Wire, boxes: Mapping[str, Box]) -> bool:
    lowest = max(boxes[a.lower].row, boxes[b.lower].row)
    return lowest < min(boxes[a.upper].row, boxes[b.upper].row)


def _difference(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0.0) - b.get(name, 0.0) for name in {**a, **b}}


class _Program:
    """A linear program, gathered row by row."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows: list[tuple[dict[str, float], float]] = []
        self._costs: dict[str, float] = {}

    def at_least(self, terms: Mapping[str, float], value: float) -> None:
        for name in terms:
            if name not in self.names:
                self.names.append(name)
        self._rows.append((dict(terms), value))

    def weigh(self, terms: Mapping[str, float]) -> None:
        for name, cost in terms.items():
            self._costs[name] = self._costs.get(name, 0.0) + cost

    def keep_near(self, a: Mapping[str, float], b: Mapping[str, float], cost: float) -> None:
        """Let it cost how far apart two sums are."""
        apart = f"apart {len(self._rows)}"
        difference = _difference(a, b)
        self.at_least({apart: 1, **difference}, 0)
        self.at_least({apart: 1, **{name: -value for name, value in difference.items()}}, 0)
        self.weigh({apart: cost})

    def as_arrays(self) -> tuple[list[list[float]], list[float], list[float]]:
        matrix = [[-terms.get(name, 0.0) for name in self.names] for terms, _ in self._rows]
        bounds = [-value for _, value in self._rows]
        return matrix, bounds, [self._costs.get(name, 0.0) for name in self.names]
