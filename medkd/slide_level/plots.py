"""Figures of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from medkd.slide_level.aggregate import ENSEMBLE, Aggregation
from medkd.slide_level.calibration_error import reliability
from medkd.slide_level.plot_style import COLOURS, as_png, axes_of
from medkd.slide_level.statistics import Estimate

_BINS = 5


def evaluation_plots(result: Aggregation, positive: str) -> dict[str, bytes]:
    """``roc.png``, ``reliability.png`` and ``confusion.png`` of the test patients."""
    tested = result.patients[result.patients["role"] == "test"]
    note = "Synthetic slides: no clinical meaning. " if result.evaluation["synthetic"] else ""
    note += "Research use only."
    return {
        "roc.png": as_png(_roc(tested, result, positive), note),
        "reliability.png": as_png(_reliability(tested, result, positive), note),
        "confusion.png": as_png(_confusion(tested, result, positive), note),
    }


def _roc(tested: pd.DataFrame, result: Aggregation, positive: str) -> Figure:
    ensemble = tested[tested["network"] == ENSEMBLE]
    truth = (ensemble["label"] == positive).to_numpy()
    figure, axes = axes_of(f"Test patients: {len(truth)}, of whom {int(truth.sum())} {positive}")
    networks = [name for name in tested["network"].unique() if name != ENSEMBLE]
    for name, colour in zip((*networks, ENSEMBLE), _cycle(len(networks) + 1), strict=True):
        part = tested[tested["network"] == name]
        known: Mapping[str, Any] = result.evaluation["networks"][name]["patient_auroc"]
        if known["value"] is None:
            continue
        false_rate, true_rate, _ = roc_curve(part["label"] == positive, part["score"])
        thick = name == ENSEMBLE
        axes.plot(
            false_rate,
            true_rate,
            color="black" if thick else colour,
            linewidth=2.4 if thick else 1.2,
            label=f"{name}: {Estimate(**known)}",
            zorder=3 if thick else 2,
        )
    above = (ensemble["probability"] >= result.operating_point.threshold).to_numpy()
    if truth.any() and not truth.all():
        axes.plot(
            above[~truth].mean(),
            above[truth].mean(),
            "o",
            color="#D55E00",
            markersize=9,
            markeredgecolor="white",
            zorder=4,
            label=f"operating point {result.operating_point.threshold:.2f}",
            clip_on=False,
        )
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8, title="AUROC (interval)", title_fontsize=8)
    else:
        axes.text(0.5, 0.2, "no curve: a class is absent", ha="center", fontsize=9)
    return figure


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _reliability(tested: pd.DataFrame, result: Aggregation, positive: str) -> Figure:
    ensemble = tested[tested["network"] == ENSEMBLE]
    truth = (ensemble["label"] == positive).to_numpy()
    found = reliability(truth, ensemble["probability"].to_numpy(), bins=_BINS, scheme="equal count")
    kind = result.decisions.calibration.kind
    told = "not calibrated" if kind == "none" else f"calibrated ({kind})"
    figure, axes = axes_of(
        f"Ensemble, {len(truth)} test patients, {told}; bins of equal count, 95% intervals"
    )
    for one in found.bins:
        x, y = one.mean_probability, one.share
        low, high = one.interval
        axes.plot([x, x], [low, high], color=COLOURS[4], linewidth=1.5, zorder=2)
        axes.plot(x, y, "o", color=COLOURS[0], markersize=8, clip_on=False, zorder=3)
        axes.annotate(
            f"n={one.patients}", (x, y), textcoords="offset points",
            xytext=(9, -12 if y > 0.5 else 6), fontsize=8,
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    axes.set(
        xlabel=f"mean predicted probability of {positive}",
        ylabel=f"observed share of {positive}",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.set_aspect("equal")
    return figure


def _confusion(tested: pd.DataFrame, result: Aggregation, positive: str) -> Figure:
    ensemble = tested[tested["network"] == ENSEMBLE]
    threshold = result.operating_point.threshold
    rows = sorted(ensemble["label"].unique(), key=lambda name: name == positive)
    counts = np.array(
        [
            [
                int((part["probability"] < threshold).sum()),
                int((part["probability"] >= threshold).sum()),
            ]
            for part in (ensemble[ensemble["label"] == name] for name in rows)
        ]
    )
    figure, axes = axes_of(f"Test patients at the operating point {threshold:.2f}")
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(counts.max() * 1.4, 1))
    for row, column in np.ndindex(counts.shape):
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=18)
    axes.set_xticks([0, 1], ["below", "at or above"])
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="probability by the ensemble", ylabel="label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
