"""Leaving a slide before all its tiles were read: once those read so far settle its call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medkd.errors import ModelPackageError
from medkd.slides.judging import OUT_OF_FOCUS, UNREADABLE, USED

if TYPE_CHECKING:
    from medkd.inference.manifest import Manifest
    from medkd.inference.package import ModelPackage

# By this factor tiles grow from one look to the next. Every look is allowed for, but costs time.
LOOK_FACTOR = 1.1

# Of the bets, that none can lose more than half: c of the paper.
_LARGEST_BET = 0.5


def check_early_stop(package: ModelPackage) -> None:
    """Refuse what early stopping cannot be done with.

    Raises:
        ModelPackageError: its gates ask for it, and its slide score or interval is not of a kind
            that the tiles read so far bound.
    """
    manifest = package.manifest
    if not manifest.gates.early_stop:
        return
    kind, interval = manifest.slide_head.pooling.kind, manifest.slide_level.interval
    if kind != "mean_probability":
        what = f"pools tiles by {kind.replace('_', ' ')}"
    elif interval != "tiles":
        what = f"has intervals for {interval.replace('_', ' ')}"
    else:
        return
    raise ModelPackageError(
        f"stops early and {what}; that takes the mean probability and intervals for tiles",
        where=package.folder,
        remedy="Train or aggregate again with infer.early_stop: false.",
    )


def settled_interval(
    probabilities: Mapping[str, np.ndarray], fates: Sequence[str], manifest: Manifest
) -> tuple[float, float] | None:
    """The interval of a slide's score, if the tiles read so far settle the call; else None.

    Settled means that no threshold of a call lies in the interval, and that the gates that tiles
    decide are passed: disagreement, and the shares out of focus and unreadable. Each of these
    quantities has a confidence sequence of an equal part of ``early_stop_error``, so that all
    hold, at every look, with the rest of it.

    Args:
        probabilities: of the positive class, (tiles,) of each student, in random order of tiles.
        fates: of all candidates so far; those that were read, in the same random order.
        manifest: of the model.

    Returns:
        Lower and upper end, before calibration. It is wider than the interval of a whole pass.
    """
    gates = manifest.gates
    together = np.stack(list(probabilities.values())).mean(0, dtype=np.float64)
    thresholds = _thresholds(manifest)
    if len(together) < gates.min_tiles or not thresholds:
        return None
    error = gates.early_stop_error / (len(probabilities) + 3)
    lower, upper = confidence_sequence(together, error=error)
    if not lower <= together.mean() <= upper:
        return None
    low, high = manifest.calibration([lower, upper]).tolist()
    if any(low <= threshold <= high for threshold in thresholds):
        return None
    ends = [confidence_sequence(values, error=error) for values in probabilities.values()]
    if max(end[1] for end in ends) - min(end[0] for end in ends) > gates.max_disagreement:
        return None
    tissue = np.array([fate for fate in fates if fate in (USED, OUT_OF_FOCUS, UNREADABLE)])
    unreadable = min(gates.max_unreadable, manifest.preprocessing.tile.max_unreadable)
    for fate, limit in ((OUT_OF_FOCUS, gates.max_out_of_focus), (UNREADABLE, unreadable)):
        if confidence_sequence((tissue == fate).astype(np.float64), error=error)[1] > limit:
            return None
    return lower, upper


def _thresholds(manifest: Manifest) -> tuple[float, ...]:
    """Calibrated probabilities at which the call changes; none in a package that does not call."""
    if manifest.conformal is not None:
        return manifest.conformal.negative_up_to, manifest.conformal.positive_from
    point = manifest.operating_point
    return () if point is None else (point.threshold,)


def confidence_sequence(values: np.ndarray, *, error: float) -> tuple[float, float]:
    """The interval of a mean that may be looked at after every value.

    The predictable plug-in empirical Bernstein confidence sequence of Waudby-Smith and Ramdas
    2023, Theorem 2: with probability 1 - ``error`` the mean lies in the intervals after 1, 2, 3 ...
    values all at once, so it lies in what they have in common, which is returned. With
    L_t = min(sqrt(2 log(2 / error) / (s_{t-1}^2 t log(1 + t))), 1/2), m_t = (1/2 + sum x) / (t + 1)
    and s_t^2 = (1/4 + sum (x - m)^2) / (t + 1), the interval after t values is

        (sum L x  +-  (log(2 / error) + sum 4 (x - m_{before})^2 psi(L))) / sum L,

    where psi(L) = (-log(1 - L) - L) / 4. The theorem is of independent draws. Tiles are drawn
    without putting back, from which a mean strays less (Hoeffding 1963, section 6).

    Args:
        values: between 0 and 1, (n,), in random order, one at least.
        error: how often the mean may lie outside at any time.

    Returns:
        Lower and upper end; the lower is above the upper in the rare case that nothing is left.
    """
    values = np.asarray(values, np.float64)
    times = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (times + 1)
    variances = (0.25 + ((values - means) ** 2).cumsum()) / (times + 1)
    means_before = np.concatenate([[0.5], means[:-1]])
    variances_before = np.concatenate([[0.25], variances[:-1]])
    certainty = math.log(2 / error)
    bets = np.sqrt(2 * certainty / (variances_before * times * np.log1p(times)))
    bets = np.minimum(bets, _LARGEST_BET)
    spread = 4 * (values - means_before) ** 2 * (-np.log1p(-bets) - bets) / 4
    stakes = bets.cumsum()
    centres = (bets * values).cumsum() / stakes
    margins = (certainty + spread.cumsum()) / stakes
    return max(0.0, float((centres - margins).max())), min(1.0, float((centres + margins).min()))
