"""Drawings of methods: boxes for nodes and sets, arrows from who teaches to who learns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.distill.drawing_canvas import (
    ALARM,
    CARDS,
    COLOURS,
    LINE,
    LINK,
    LOOP,
    NAME,
    NAME_LINE,
    PADDING,
    QUIET,
    STACK,
    TEXT,
    Canvas,
    label_size,
    pill_width,
    text_width,
)
from medkd.distill.drawing_layout import (
    Box,
    Layout,
    PlacedWire,
    Rectangle,
    Wire,
    place,
    rows_of,
)
from medkd.distill.drawing_parts import NOT_DETACHED, Arrow, Card, arrows_of, card_of
from medkd.distill.method import Method
from medkd.files import make_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_method(method: Method) -> Figure:
    """A drawing of the method, its sets not expanded; works in any process, with no display.

    Arrows run from the target to the learner. Thin grey dashes show what a node is made of, or
    whose early stages it shares.
    """
    from matplotlib.figure import Figure

    spec = method.spec
    cards = {name: card_of(name, spec) for name in spec.nodes}
    arrows = arrows_of(spec)
    loops = {name: [a for a in arrows if a.source == a.target == name] for name in spec.nodes}
    rows = rows_of(spec)
    between = [a for a in arrows if rows[a.source] != rows[a.target]]
    beside = [a for a in arrows if rows[a.source] == rows[a.target] and a.source != a.target]
    layout = place(
        [_box(card, rows[name], loops[name]) for name, card in cards.items()],
        [_wire(key, arrow, rows) for key, arrow in enumerate(between)],
    )
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = Canvas(axes)
    for key, arrow in enumerate(between):
        _draw_between(canvas, arrow, cards, layout, layout.wires[key], rows)
    lowest = _draw_beside(canvas, beside, cards, layout, loops)
    for name, card in cards.items():
        _draw_card(canvas, card, layout.boxes[name])
        _draw_loops(canvas, loops[name], card, layout.boxes[name])
    _frame(canvas, figure, method, arrows, lowest)
    return figure


def write_drawing(method: Method, folder: Path) -> tuple[Path, Path]:
    """Write the drawing to ``folder`` as NAME.svg and NAME.png; returns both paths.

    The same method gives the same SVG, byte for byte, with the same matplotlib.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from matplotlib import rc_context

    make_folder(folder)
    figure = draw_method(method)
    svg, png = folder / f"{method.name}.svg", folder / f"{method.name}.png"
    with rc_context({"svg.hashsalt": method.name, "svg.fonttype": "path"}):
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
        write_bytes(svg, content.getvalue())
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    write_bytes(png, content.getvalue())
    return svg, png


# How large it is.


def _supervised_text(card: Card) -> str:
    return f"{card.supervised:g} CE" if card.supervised != 1 else "CE"


def _title(card: Card) -> str:
    return f"{card.name} × K" if card.is_set else card.name


def _box(card: Card, row: int, loops: Sequence[Arrow]) -> Box:
    first = text_width(_title(card), NAME, bold=True)
    if card.supervised:
        first += 0.25 + pill_width(_supervised_text(card))
    widths = [first, *(text_width(line, TEXT) for line in card.lines)]
    height = 2 * PADDING + NAME_LINE + len(card.lines) * LINE
    if card.ships:
        widths.append(pill_width(card.ships))
        height += LINE + 0.09
    room, beside = 0.0, _behind(card)
    for loop in loops:
        width, tall = label_size(loop.label)
        room += max(tall, 0.34) + 0.14
        beside = max(beside, _behind(card) + LOOP + 0.1 + width)
    return Box(card.name, row, max(widths) + 2 * PADDING, max(height, room), beside)


def _behind(card: Card) -> float:
    """How far a set's stack stands out to the right and upwards."""
    return 2 * STACK if card.is_set else 0.0


def _wire(key: int, arrow: Arrow, rows: dict[str, int]) -> Wire:
    lower, upper = sorted((arrow.source, arrow.target), key=rows.__getitem__)
    return Wire(key, upper, lower, label_size(arrow.label))


# How it is painted.


def _draw_card(canvas: Canvas, card: Card, box: Rectangle) -> None:
    edge, fill = COLOURS[card.kind]
    width = 2.4 if card.ships else 1.2
    for behind in (2, 1, 0) if card.is_set else (0,):
        shifted = Rectangle(
            box.left + behind * STACK, box.bottom + behind * STACK, box.width, box.height
        )
        # Where one of a set ships, that one is in front.
        bold = card.ships and not (behind and card.one_ships)
        canvas.rounded(
            shifted,
            0.09,
            facecolor=fill,
            edgecolor=edge,
            linewidth=width if bold else 1.2,
            zorder=CARDS - behind / 10,
        )
    if card.kind == "frozen":
        inner = Rectangle(box.left + 0.045, box.bottom + 0.045, box.width - 0.09, box.height - 0.09)
        canvas.rounded(inner, 0.06, facecolor="none", edgecolor=edge, linewidth=0.8, zorder=CARDS)
    rows = NAME_LINE + len(card.lines) * LINE + ((LINE + 0.09) if card.ships else 0)
    y = (box.top + box.bottom) / 2 + rows / 2 - NAME_LINE / 2
    x = box.left + PADDING
    canvas.text(x, y, card.name, NAME, weight="bold")
    if card.is_set:
        more = text_width(_title(card), NAME, bold=True) - text_width("× K", NAME)
        canvas.text(x + more, y, "× K", NAME, color=QUIET)
    if card.supervised:
        text = _supervised_text(card)
        left = box.right - PADDING + 0.03 - pill_width(text)
        canvas.pill(left, y + 0.03, text, fill="white", colour=edge, edge=edge)
    y -= NAME_LINE / 2 + LINE / 2
    for line in card.lines:
        canvas.text(x, y, line, color=edge)
        y -= LINE
    if card.ships:
        canvas.pill(x - 0.02, y - 0.06, card.ships, fill=LINK, colour="white", edge=LINK)


def _draw_arrow(
    canvas: Canvas, arrow: Arrow, points: Sequence[tuple[float, float]], *, curves: bool = False
) -> None:
    if arrow.is_link:
        colour = LINK if arrow.detach else ALARM
        canvas.line(points, curves=curves, colour=colour, arrow=True)
    else:
        canvas.line(points, curves=curves)


def _tell(canvas: Canvas, arrow: Arrow, x: float, y: float, ha: str = "left") -> None:
    canvas.label(x, y, arrow.label, ha, alarming=(NOT_DETACHED,))


def _draw_between(
    canvas: Canvas,
    arrow: Arrow,
    cards: dict[str, Card],
    layout: Layout,
    wire: PlacedWire,
    rows: dict[str, int],
) -> None:
    lower, upper = sorted((arrow.source, arrow.target), key=rows.__getitem__)
    start = (wire.lower_x, layout.boxes[lower].top + _behind(cards[lower]))
    end = (wire.upper_x, layout.boxes[upper].bottom)
    low, high = wire.label_y - wire.half_label, wire.label_y + wire.half_label
    points = [start, (start[0], low), (wire.x, start[1]), (wire.x, low)]
    points += [(wire.x, high)] * 3
    points += [(wire.x, end[1]), (end[0], high), end]
    straight = wire.x == wire.lower_x == wire.upper_x
    if straight:
        points = [start, end]
    _draw_arrow(
        canvas, arrow, points if arrow.target == upper else points[::-1], curves=not straight
    )
    if arrow.is_link:
        at, ha = (wire.x - 0.09, "right") if wire.label_left else (wire.x + 0.09, "left")
        _tell(canvas, arrow, at, wire.label_y, ha)


def _draw_loops(canvas: Canvas, loops: Sequence[Arrow], card: Card, box: Rectangle) -> None:
    """Links of a set to itself, at its right side, one below the other."""
    x = box.right + _behind(card)
    step = box.height / max(len(loops), 1)
    for number, loop in enumerate(loops):
        y = box.top - (number + 0.5) * step + (STACK if card.is_set else 0)
        far = x + LOOP * 4 / 3
        half = 0.15
        curve = [(x, y + half), (far, y + 2 * half), (far, y - 2 * half), (x, y - half)]
        _draw_arrow(canvas, loop, curve, curves=True)
        _tell(canvas, loop, x + LOOP + 0.1, y)


def _draw_beside(
    canvas: Canvas,
    arrows: Sequence[Arrow],
    cards: dict[str, Card],
    layout: Layout,
    loops: dict[str, list[Arrow]],
) -> float:
    """What joins boxes of one row; returns the height of the lowest."""
    depth = 0.0
    for arrow in arrows:
        ends = (arrow.source, arrow.target)
        left, right = sorted(ends, key=lambda name: layout.boxes[name].left)
        a, b = layout.boxes[left], layout.boxes[right]
        if not arrow.is_link and not loops[left]:
            y = (max(a.bottom, b.bottom) + min(a.top, b.top)) / 2
            _draw_arrow(canvas, arrow, [(a.right + _behind(cards[left]), y), (b.left, y)])
            continue
        # Below the row, where nothing else is.
        depth += 0.3
        low = min(a.bottom, b.bottom) - depth
        from_x, to_x = a.right - 0.2 - depth / 3, b.left + 0.2 + depth / 3
        points = [(from_x, a.bottom), (from_x, low), (to_x, low), (to_x, b.bottom)]
        _draw_arrow(canvas, arrow, points if arrow.source == left else points[::-1])
        _, height = label_size(arrow.label)
        if arrow.is_link:
            _tell(canvas, arrow, (from_x + to_x) / 2, low - 0.07 - height / 2, "center")
        depth += height + 0.07
    return -depth


def _frame(
    canvas: Canvas, figure: Figure, method: Method, arrows: Sequence[Arrow], lowest: float
) -> None:
    """The method's name above, what lines mean below, and the figure's size."""
    told = []
    if any(arrow.is_link for arrow in arrows):
        told.append("arrow: from target to learner")
    if any(not arrow.is_link for arrow in arrows):
        told.append("dashes: made of, or shared stages")
    told.append("CE: cross-entropy by labels")
    if method.spec.update == "alternating":
        told.append("networks are updated in turn")
    bottom = min(canvas.bottom, lowest) - 0.32
    canvas.text(canvas.left, canvas.top + 0.36, method.name, 13.0, weight="bold")
    lines = [" · ".join(told)]
    if text_width(lines[0], 8.0) > canvas.right - canvas.left:
        lines = told
    for line in lines:
        canvas.text(canvas.left, bottom, line, 8.0, color=QUIET)
        canvas.use(canvas.left, canvas.left + text_width(line, 8.0), bottom - 0.08, canvas.top)
        bottom -= 0.16
    canvas.use(canvas.left, canvas.right, canvas.bottom - 0.03, canvas.top + 0.5)
    margin = 0.12
    left, right = canvas.left - margin, canvas.right + margin
    low, high = canvas.bottom - margin, canvas.top + margin
    figure.set_size_inches(right - left, high - low)
    canvas.axes.set_xlim(left, right)
    canvas.axes.set_ylim(low, high)
