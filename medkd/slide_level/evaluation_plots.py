"""The drawings of an evaluation's page, as SVG, from the numbers of its report alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medkd.slide_level.plot_style import COLOURS, as_svg, axes_of

_BLUE, _ORANGE, _VERMILION = COLOURS[0], COLOURS[1], COLOURS[5]
_SQUARE, _WIDE = (4.6, 4.4), (5.0, 3.7)


def evaluation_drawings(report: Mapping[str, Any]) -> dict[str, str]:
    """SVG of each drawing: ``roc``, ``precision_recall``, ``probabilities``, ``reliability``,
    and ``decision_curve_0``, ``decision_curve_1`` ... in the order of the report's curves.

    Args:
        report: what ``report.json`` holds.
    """
    drawn = {
        "roc": _roc(report),
        "precision_recall": _precision_recall(report),
        "probabilities": _probabilities(report),
        "reliability": _reliability(report),
    }
    curves = report["decision_curves"]
    for index, curve in enumerate(curves["curves"]):
        drawn[f"decision_curve_{index}"] = _decision_curve(
            np.asarray(curves["threshold_probabilities"]), curve
        )
    return {name: as_svg(figure) for name, figure in drawn.items()}


def _counts(report: Mapping[str, Any]) -> str:
    cohort, classes = report["cohort"], report["classes"]
    return (
        f"{cohort['positives']} {classes['positive']}, {cohort['negatives']} {classes['negative']}"
    )


def _roc(report: Mapping[str, Any]) -> Figure:
    curve, accuracy = report["discrimination"]["roc"], report["accuracy"]["threshold"]
    figure, axes = axes_of(f"ROC ({_counts(report)})", size_inches=_SQUARE, note_strip=0)
    axes.plot(
        curve["false_positive_rate"], curve["sensitivity"], color=_BLUE, linewidth=2, label="score"
    )
    sensitivity, specificity = accuracy["sensitivity"], accuracy["specificity"]
    axes.errorbar(
        [1 - specificity["value"]],
        [sensitivity["value"]],
        xerr=_arms(1 - specificity["value"], 1 - specificity["upper"], 1 - specificity["lower"]),
        yerr=_arms(sensitivity["value"], sensitivity["lower"], sensitivity["upper"]),
        fmt="o",
        color=_VERMILION,
        markersize=7,
        markeredgecolor="white",
        elinewidth=1.4,
        capsize=3,
        clip_on=False,
        zorder=4,
        label=f"operating point, {_level(report)} intervals",
    )
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1, label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_aspect("equal")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _precision_recall(report: Mapping[str, Any]) -> Figure:
    curve, accuracy = report["discrimination"]["precision_recall"], report["accuracy"]["threshold"]
    prevalence = report["cohort"]["prevalence"]
    figure, axes = axes_of(
        f"Precision and recall ({_counts(report)})", size_inches=_SQUARE, note_strip=0
    )
    axes.step(
        curve["recall"], curve["precision"], where="post", color=_BLUE, linewidth=2, label="score"
    )
    ppv, sensitivity = accuracy["ppv"], accuracy["sensitivity"]
    if ppv["value"] is not None:
        axes.errorbar(
            [sensitivity["value"]],
            [ppv["value"]],
            xerr=_arms(sensitivity["value"], sensitivity["lower"], sensitivity["upper"]),
            yerr=_arms(ppv["value"], ppv["lower"], ppv["upper"]),
            fmt="o",
            color=_VERMILION,
            markersize=7,
            markeredgecolor="white",
            elinewidth=1.4,
            capsize=3,
            clip_on=False,
            zorder=4,
            label=f"operating point, {_level(report)} intervals",
        )
    axes.axhline(
        prevalence, linestyle=":", color="0.6", linewidth=1, label=f"chance: {prevalence:.2f}"
    )
    axes.set(
        xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(0, 1), ylim=(0, 1.02)
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.legend(loc="lower left", fontsize=8)
    return figure


def _probabilities(report: Mapping[str, Any]) -> Figure:
    counts, classes = report["discrimination"]["probabilities"], report["classes"]
    edges = np.asarray(counts["edges"])
    threshold = report["model"]["operating_point"]["threshold"]
    figure, axes = axes_of(
        "Probabilities of the test patients", size_inches=_SQUARE, note_strip=0
    )  # fmt: skip
    for name, side, colour in (("positives", 1, _VERMILION), ("negatives", -1, _BLUE)):
        label = classes["positive" if side > 0 else "negative"]
        axes.bar(
            edges[:-1],
            side * np.asarray(counts[name]),
            width=np.diff(edges),
            align="edge",
            color=colour,
            alpha=0.8,
            edgecolor="white",
            label=label,
        )
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.axvline(
        threshold, color="0.2", linestyle="--", linewidth=1.2, label=f"threshold {threshold:.3f}"
    )
    most = max(*counts["positives"], *counts["negatives"], 1)
    axes.set(
        xlabel=f"probability of {classes['positive']}",
        ylabel="patients",
        xlim=(0, 1),
        ylim=(-1.3 * most, 1.3 * most),
    )
    # Both classes are counted upwards from the line in the middle.
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best", fontsize=8)
    return figure


def _reliability(report: Mapping[str, Any]) -> Figure:
    bins = report["calibration"]["reliability"]
    positive = report["classes"]["positive"]
    figure, axes = axes_of(
        f"Reliability, bins of equal count, {_level(report)} intervals",
        size_inches=_SQUARE,
        note_strip=0,
    )
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    for one in bins:
        x, y, (low, high) = one["mean_probability"], one["share"], one["interval"]
        axes.plot([x, x], [low, high], color=COLOURS[4], linewidth=1.6, zorder=2)
        axes.plot(x, y, "o", color=_BLUE, markersize=7, clip_on=False, zorder=3)
        axes.annotate(
            f"n={one['patients']}",
            (x, y),
            textcoords="offset points",
            xytext=(7, -11 if y > 0.5 else 6) if x < 0.85 else (-28, -11 if y > 0.5 else 6),
            fontsize=8,
        )
    counts = report["discrimination"]["probabilities"]
    everyone = np.add(counts["positives"], counts["negatives"])
    edges = np.asarray(counts["edges"])
    axes.bar(
        edges[:-1],
        0.12 * everyone / max(everyone.max(), 1),
        width=np.diff(edges),
        align="edge",
        color="0.82",
        edgecolor="white",
        zorder=1,
    )
    axes.set(
        xlabel=f"predicted probability of {positive} (grey: how many patients)",
        ylabel=f"observed share of {positive}",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.set_aspect("equal")
    return figure


def _decision_curve(thresholds: np.ndarray, curve: Mapping[str, Any]) -> Figure:
    prevalence = curve["prevalence"]
    figure, axes = axes_of(
        f"Decision curve at a prevalence of {prevalence:.0%}", size_inches=_WIDE, note_strip=0
    )
    axes.fill_between(
        thresholds, curve["lower"], curve["upper"], color=COLOURS[4], alpha=0.35, linewidth=0
    )
    axes.plot(thresholds, curve["net_benefit"], color=_BLUE, linewidth=2, label="the model")
    axes.plot(
        thresholds, curve["treat_all"], color=_ORANGE, linewidth=1.2, label="everyone positive"
    )
    axes.axhline(0, color="0.3", linewidth=1, label="no one positive")
    axes.set(
        xlabel="threshold probability",
        ylabel="net benefit per patient",
        xlim=(0, 1),
        # Below, curves fall without end and say nothing.
        ylim=(-0.25 * prevalence, 1.15 * prevalence),
    )
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _level(report: Mapping[str, Any]) -> str:
    return f"{report['settings']['confidence']:.0%}"


def _arms(value: float, lower: float, upper: float) -> list[list[float]]:
    """Lengths of error bars; rounding must not make one negative."""
    return [[max(0.0, value - lower)], [max(0.0, upper - value)]]
