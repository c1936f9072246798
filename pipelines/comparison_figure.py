"""AP50 of every run of a study of detectors, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from comparison_tables import Run

from medkd.slide_level.plot_style import COLOURS, as_svg, axes_of

_LOOKS = {
    "teacher": {"marker": "D", "markersize": 5, "color": "0.6"},
    "student": {"marker": "o", "markersize": 4, "color": COLOURS[4]},
    "ensemble": {"marker": "o", "markersize": 8, "color": COLOURS[0]},
}


def ap50_drawing(runs: Mapping[str, Sequence[Run]], titles: Mapping[str, str]) -> str:
    """SVG: a row for each method, in it a line of marks for each seed, the lowest seed on top.

    Args:
        runs: of each method; each run has ``seed``, ``intervals`` and ``roles`` of its networks
            and of what ships.
        titles: of the methods.
    """
    height = 0.9 + 0.3 * sum(len(of) + 1 for of in runs.values())
    figure, axes = axes_of(
        "AP50 on test images, with 95% intervals over images",
        size_inches=(7.2, height),
        note_strip=0,
    )
    row, ticks, labels = 0.0, [], []
    for method, of in runs.items():
        rows = []
        for run in sorted(of, key=lambda run: run["seed"]):
            for name, role in run["roles"].items():
                value, lower, upper = (_or_nan(part) for part in run["intervals"][name])
                if role == "ensemble":
                    axes.plot([lower, upper], [row, row], color=COLOURS[0], linewidth=1.5)
                axes.plot(value, row, linestyle="", zorder=3, label=role, **_LOOKS[role])
            rows.append(row)
            row += 1
        ticks.append(float(np.mean(rows)))
        labels.append(titles.get(method, method))
        row += 1
    axes.set_yticks(ticks, labels)
    axes.set_ylim(row - 1.2, -0.8)
    axes.set_xlabel("AP50")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    known = dict(zip(names, handles, strict=True))
    shown = [name for name in _LOOKS if name in known]
    axes.legend(
        [known[name] for name in shown],
        shown,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=9,
    )
    return as_svg(figure)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
