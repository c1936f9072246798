"""What drawings of methods are painted with: boxes, tags, labels and lines, measured in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medkd.distill.drawing_layout import Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points. At 72 points to the inch and a drawing of at most some 9 inches, a page that shows it 900
# pixels wide shows letters of 12 pixels and more.
NAME, TEXT = 12.0, 9.5
LINE = TEXT * 1.32 / 72
NAME_LINE = NAME * 1.4 / 72
PADDING = 0.13
STACK = 0.065  # from one box of a set to the one behind it
LOOP = 0.42  # how far a set's link to itself reaches to its right

# After Okabe and Ito: these can be told apart by the colour-blind. A word says the kind, too.
COLOURS = {
    "network": ("#00639C", "#E1EEF7"),
    "frozen": ("#5F6670", "#ECEDEF"),
    "mean": ("#006B4F", "#DFF3EC"),
    "ensemble": ("#8F5A00", "#FDF1D8"),
    "bridge": ("#A03C78", "#F9E7F1"),
}
LINK, ALARM, MADE, QUIET = "#222222", "#C44E00", "#8C8C8C", "#5A5A5A"

# From the back to the front.
_LINES, CARDS, _TAGS, _WORDS = 3.0, 3.5, 4.0, 5.0


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Of a line of text, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text or " ", size=size, prop=font).get_extents().width) / 72


def label_size(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of lines beside an arrow, in inches."""
    if not lines:
        return 0.0, 0.0
    return max(text_width(line, TEXT, bold=True) for line in lines), len(lines) * LINE


def pill_width(text: str) -> float:
    """Of a tag, in inches."""
    return text_width(text, TEXT, bold=True) + 0.16


class Canvas:
    """Axes in inches, and the room that was used on them."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.left, self.right, self.bottom, self.top = 0.0, 0.0, 0.0, 0.0

    def use(self, left: float, right: float, bottom: float, top: float) -> None:
        """Take note of room that is used."""
        self.left, self.right = min(self.left, left), max(self.right, right)
        self.bottom, self.top = min(self.bottom, bottom), max(self.top, top)

    def text(self, x: float, y: float, text: str, size: float = TEXT, **style: Any) -> None:
        """A line of text, its left end and its middle at ``x`` and ``y`` unless told otherwise."""
        style = {"va": "center", "ha": "left", "color": LINK, **style}
        self.axes.text(x, y, text, fontsize=size, zorder=_WORDS, **style)

    def rounded(self, box: Rectangle, radius: float, **style: Any) -> None:
        """A rectangle with rounded corners."""
        from matplotlib.patches import FancyBboxPatch

        shape = f"round,pad=0,rounding_size={radius}"
        corner = (box.left, box.bottom)
        self.axes.add_patch(FancyBboxPatch(corner, box.width, box.height, shape, **style))
        self.use(box.left, box.right, box.bottom, box.top)

    def pill(self, x: float, y: float, text: str, *, fill: str, colour: str, edge: str) -> None:
        """A tag whose left end is at ``x`` and whose middle is at ``y``."""
        height = LINE + 0.05
        box = Rectangle(x, y - height / 2, pill_width(text), height)
        self.rounded(box, height / 2, facecolor=fill, edgecolor=edge, linewidth=1.0, zorder=_TAGS)
        self.text(x + box.width / 2, y, text, ha="center", weight="bold", color=colour)

    def label(
        self,
        x: float,
        y: float,
        lines: Sequence[str],
        ha: str = "left",
        alarming: Sequence[str] = (),
    ) -> None:
        """Lines of text beside an arrow, around the height ``y``; some of them may alarm."""
        top = y + (len(lines) - 1) * LINE / 2
        width, height = label_size(lines)
        left = {"left": x, "right": x - width, "center": x - width / 2}[ha]
        self.use(left, left + width, y - height / 2, y + height / 2)
        for number, line in enumerate(lines):
            style: dict[str, Any] = {"color": ALARM, "weight": "bold"}
            self.text(x, top - number * LINE, line, ha=ha, **(style if line in alarming else {}))

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        curves: bool = False,
        colour: str = MADE,
        arrow: bool = False,
    ) -> None:
        """Dashes through points (or a chain of Bézier curves), or an arrow to the last of them."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Outline

        code = Outline.CURVE4 if curves else Outline.LINETO
        outline = Outline(list(points), [Outline.MOVETO, *[code] * (len(points) - 1)])
        style: dict[str, Any] = {
            "arrowstyle": "-|>,head_length=5,head_width=2.6" if arrow else "-",
            "linewidth": 1.5 if arrow else 1.1,
            "linestyle": "solid" if arrow else (0, (3.5, 2.5)),
            "capstyle": "butt",
            "joinstyle": "miter",
        }
        patch = FancyArrowPatch(
            path=outline,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            mutation_scale=1,
            zorder=_LINES,
            **style,
        )
        self.axes.add_patch(patch)
