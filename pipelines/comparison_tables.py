"""Figures of several runs in words: spreads over seeds, paired differences, Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from scipy import stats

Run = dict[str, Any]
"""What a run left, with its ``seed``."""
Figure = Callable[[Run], float | None]


def spread(runs: Sequence[Run], figure: Figure) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [value for value in map(figure, runs) if value is not None]
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Differences seed by seed: mean, its 95% interval by Student's t, how many are above 0."""
    # Rounded, so that what sums leave in the last digit is no difference.
    differences = [round(a - b, 6) for a, b in zip(ours, theirs, strict=True)]
    found: dict[str, Any] = {
        "mean": statistics.fmean(differences),
        "seeds": len(differences),
        "above": sum(difference > 0 for difference in differences),
    }
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return {key: round(value, 4) for key, value in found.items()}


def against(runs: Sequence[Run], baseline: Sequence[Run], figure: Figure) -> dict[str, Any] | None:
    """A figure against the same of other runs with the same seeds; None without such runs."""
    theirs = {run["seed"]: figure(run) for run in baseline}
    pairs = [(figure(run), theirs.get(run["seed"])) for run in runs]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return paired(*zip(*known, strict=True)) if known else None


def within(runs: Sequence[Run], ours: Figure, theirs: Figure) -> dict[str, Any] | None:
    """One figure against another of the same runs; None where they have not both."""
    pairs = [(ours(run), theirs(run)) for run in runs]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return paired(*zip(*known, strict=True)) if known else None


def points(found: dict[str, Any] | None) -> str:
    """A paired difference in percentage points, with its interval."""
    return "" if found is None else interval(found, factor=100, digits=1)


def interval(found: dict[str, Any], *, factor: float = 1, digits: int = 3) -> str:
    """A paired difference with its interval, where there is one."""
    mean = f"{factor * found['mean']:+.{digits}f}"
    if "low" not in found:
        return mean
    low, high = factor * found["low"], factor * found["high"]
    return f"{mean} ({low:+.{digits}f} to {high:+.{digits}f})"


def table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [title, ["---"] * len(title), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
