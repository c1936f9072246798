"""The drawings of a detector's evaluation, as SVG, from the numbers of its report alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from medkd.slide_level.plot_style import COLOURS, as_svg, axes_of
from medkd.training.box_evaluation import in_words

_SIZE = (4.8, 4.2)
_SHIPPED, _POINT = COLOURS[0], COLOURS[5]
_OTHERS = (COLOURS[1], COLOURS[2], COLOURS[3], COLOURS[4])
_LINES = ("-", "--", ":")
# A detector that cries wolf more often is of no use, and the curve's interest lies to the left;
# only where the threshold lies beyond, the drawing reaches as far.
_MOST_FALSE_POSITIVES = 8.0


def box_evaluation_drawings(report: Mapping[str, Any]) -> dict[str, str]:
    """SVG of ``froc`` and ``precision_recall``; none where no test image has a box.

    Args:
        report: what ``evaluation.json`` holds.
    """
    if not report["images"]["test"]["boxes"]:
        return {}
    drawn = {"froc": _froc(report), "precision_recall": _precision_recall(report)}
    return {name: as_svg(figure) for name, figure in drawn.items()}


def _styled(report: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Every model with how its line looks; what ships is last, above the others."""
    shipped, *others = report["models"]
    for number, model in reversed(list(enumerate(others))):
        colour = _OTHERS[number % len(_OTHERS)]
        line = _LINES[number // len(_OTHERS) % len(_LINES)]
        label = in_words(model["name"])
        yield model, {"color": colour, "linestyle": line, "linewidth": 1.2, "label": label}
    label = f"{in_words(shipped['name'])}, ships"
    yield shipped, {"color": _SHIPPED, "linewidth": 2.4, "label": label}


def _point(report: Mapping[str, Any]) -> tuple[float, float, float]:
    """False positives per image, recall and precision of what ships at its threshold."""
    at, counts = report["models"][0]["at_threshold"], report["images"]["test"]
    called = at["found"] + at["false_alarms"]
    precision = at["found"] / called if called else 1.0
    return at["false_alarms"] / counts["images"], at["found"] / counts["boxes"], precision


def _froc(report: Mapping[str, Any]) -> Figure:
    counts = report["images"]["test"]
    title = f"FROC: {counts['boxes']} boxes in {counts['images']} images, IoU 0.5"
    figure, axes = axes_of(title, size_inches=_SIZE, note_strip=0)
    across, height, _ = _point(report)
    farthest = max(
        (model["curve"]["false_positives_per_image"] or [0.0])[-1] for model in report["models"]
    )
    edge = max(min(max(1.5, 1.05 * farthest), _MOST_FALSE_POSITIVES), 1.05 * across)
    axes.axvline(1, color="0.75", linewidth=1, linestyle=":", zorder=0)
    for model, style in _styled(report):
        curve = model["curve"]
        x, y = curve["false_positives_per_image"], curve["recall"]
        # Recall is 0 before the first box that is found, and stays behind the last.
        end = max([edge, *x[-1:]])
        axes.step([0, *x, end], [0, *y, y[-1] if y else 0], where="post", **style)
    axes.plot(across, height, "o", label="at the threshold", **_dot())
    axes.set(
        xlabel="false positives per image",
        ylabel="share of boxes found",
        xlim=(0, edge),
        ylim=(0, 1.02),
    )
    _legend(axes)
    return figure


def _precision_recall(report: Mapping[str, Any]) -> Figure:
    title = "Precision and recall of boxes, IoU 0.5"
    figure, axes = axes_of(title, size_inches=_SIZE, note_strip=0)
    for model, style in _styled(report):
        curve = model["curve"]
        first = curve["precision"][:1] or [0.0]
        axes.plot([0, *curve["recall"]], [*first, *curve["precision"]], **style)
    _, recall, precision = _point(report)
    axes.plot(recall, precision, "o", label="at the threshold", **_dot())
    axes.set(
        xlabel="recall (share of boxes found)",
        ylabel="precision (share of detections that are right)",
        xlim=(0, 1.0),
        ylim=(0, 1.02),
    )
    _legend(axes)
    return figure


def _dot() -> dict[str, Any]:
    return {
        "color": _POINT,
        "markersize": 8,
        "markeredgecolor": "white",
        "clip_on": False,
        "zorder": 5,
    }


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # In the order of the table: what ships, the others, the point.
    order = [*range(len(handles) - 2, -1, -1), len(handles) - 1]
    axes.legend([handles[n] for n in order], [labels[n] for n in order], loc="best", fontsize=8)
