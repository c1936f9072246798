"""From a score to a call in words, with its reasons. Plain Python, so that infer starts fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medkd.config import InferConfig
from medkd.slide_level.pooling import SlideScore
from medkd.slide_level.slide_quality import SlideQuality

if TYPE_CHECKING:
    from medkd.slide_level.conformal import ConformalSets

INDETERMINATE = "indeterminate"
NO_RESULT = "no result"


@dataclass(frozen=True)
class Gate:
    """One quality check: what was measured, the limit, and whether it passed."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Call:
    """``call`` is ``MSS``, ``MSI suspected``, ``indeterminate`` or ``no result``."""

    call: str
    reasons: tuple[str, ...]
    gates: tuple[Gate, ...]


def make_call(
    score: SlideScore | None,
    threshold: float,
    limits: InferConfig,
    quality: SlideQuality,
    *,
    negative: str = "MSS",
    positive: str = "MSI",
    conformal: ConformalSets | None = None,
    trained_mpp: tuple[float, float] | None = None,
    distance_limits: Mapping[str, float] | None = None,
) -> Call:
    """Call one slide, or one patient.

    The negative class is a rule-out: the whole interval lies below the operating point. Where the
    interval holds the operating point, the students disagree, or the slide is of another kind or
    quality than the model is for, the answer is that there is none. Conformal sets, where there
    are any, decide instead of the interval and the operating point.

    Args:
        score: calibrated; None where there was no tile to score.
        threshold: the frozen operating point.
        limits: the quality gates.
        quality: what was measured.
        negative, positive: the classes' names.
        conformal: sets that were fitted with the calibration.
        trained_mpp: least and largest resolution of level 0 of training slides, micrometres per
            pixel; None: not known, and no gate.
        distance_limits: how far from the training slides a slide may lie, of what is compared;
            None: nothing is, and no gate.
    """
    enough, lacking = _enough(quality, limits)
    if lacking or score is None:
        return Call(NO_RESULT, tuple(lacking), tuple(enough))
    fit, doubts = _fit_for_the_model(score, quality, limits, trained_mpp, distance_limits or {})
    gates = (*enough, *fit)
    if doubts:
        return Call(INDETERMINATE, (*doubts, "Use the standard test."), gates)
    if conformal is not None:
        return _conformal_call(score.score, conformal, gates, negative, positive)
    return _by_interval(score, threshold, gates, negative, positive)


def _enough(quality: SlideQuality, limits: InferConfig) -> tuple[list[Gate], list[str]]:
    """Gates without which there is no result, and what those say that failed."""
    gates = [
        Gate("tissue area, mm²", quality.tissue_mm2, limits.min_tissue_mm2,
             quality.tissue_mm2 >= limits.min_tissue_mm2),
        Gate("usable tiles", quality.used, limits.min_tiles, quality.used >= limits.min_tiles),
    ]  # fmt: skip
    lacking = []
    if not gates[0].passed:
        # Cut, not rounded: what is too little must not read as if it were enough.
        shown_mm2 = math.floor(100 * quality.tissue_mm2) / 100
        lacking.append(
            f"The slide shows {shown_mm2:.2f} mm² of tissue; {limits.min_tissue_mm2:g} mm² "
            "are needed."
        )
    if not gates[1].passed:
        lacking.append(f"{quality.used} tiles are usable; {limits.min_tiles} are needed.")
    return gates, lacking


def _fit_for_the_model(
    score: SlideScore,
    quality: SlideQuality,
    limits: InferConfig,
    trained_mpp: tuple[float, float] | None,
    distance_limits: Mapping[str, float],
) -> tuple[list[Gate], list[str]]:
    """Gates that leave a score in doubt, and what those say that failed."""
    gates, doubts = [], []

    def gate(name: str, value: float, limit: float, passed: bool, doubt: str) -> None:
        gates.append(Gate(name, value, limit, passed))
        if not passed:
            doubts.append(doubt)

    gate(
        "disagreement of students",
        score.disagreement,
        limits.max_disagreement,
        score.disagreement <= limits.max_disagreement,
        f"The students' scores differ by {score.disagreement:.2f}; up to "
        f"{limits.max_disagreement:g} is taken as agreement.",
    )
    for name, share, limit in (
        ("out of focus", quality.share_out_of_focus, limits.max_out_of_focus),
        ("unreadable", quality.share_unreadable, limits.max_unreadable),
    ):
        gate(
            f"share of tissue {name}",
            share,
            limit,
            share <= limit,
            f"{_percent(share)} of the tissue is {name}; up to {_percent(limit)} is allowed.",
        )
    if trained_mpp is not None:
        lowest = trained_mpp[0] * (1 - limits.mpp_tolerance)
        highest = trained_mpp[1] * (1 + limits.mpp_tolerance)
        for mpp in sorted(set(quality.mpp)):
            gate(
                "resolution of level 0, µm/px",
                mpp,
                lowest if mpp < lowest else highest,
                lowest <= mpp <= highest,
                f"The slide has {mpp:.3g} µm/px; the model is for {lowest:.3g} to {highest:.3g} "
                "µm/px, after the slides that it was trained on.",
            )
    for what, limit in distance_limits.items():
        distance = quality.distances[what]
        shown = _apart(distance, limit)
        gate(
            out_of_distribution(what),
            distance,
            limit,
            distance <= limit,
            f"The {what} is out of distribution: {shown[0]} from that of the training slides "
            f"(Mahalanobis distance); up to {shown[1]} is taken for their kind.",
        )
    return gates, doubts


def out_of_distribution(what: str) -> str:
    """Name of the gate of one distance from the training slides."""
    return f"out of distribution: {what}"


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Both with two decimals, or as many more as tell them apart."""
    for decimals in range(2, 17):
        shown = f"{value:.{decimals}f}", f"{limit:.{decimals}f}"
        if shown[0] != shown[1]:
            break
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _by_interval(
    score: SlideScore,
    threshold: float,
    gates: tuple[Gate, ...],
    negative: str,
    positive: str,
) -> Call:
    interval = f"{score.lower:.2f} to {score.upper:.2f}"
    point = f"the operating point of {threshold:.2f}"
    if score.lower >= threshold:
        reason = f"The interval of the score, {interval}, lies at or above {point}."
        return Call(
            f"{positive} suspected", (reason, "Confirm by immunohistochemistry or PCR."), gates
        )
    if score.upper < threshold:
        reason = f"The interval of the score, {interval}, lies below {point}."
        return Call(negative, (reason,), gates)
    reason = f"The interval of the score, {interval}, holds {point}."
    return Call(INDETERMINATE, (reason, "Use the standard test."), gates)


def _conformal_call(
    probability: float,
    conformal: ConformalSets,
    gates: tuple[Gate, ...],
    negative: str,
    positive: str,
) -> Call:
    call = conformal.call(probability, negative=negative, positive=positive)
    low, high = sorted((conformal.negative_up_to, conformal.positive_from))
    stated = f"an error rate of {conformal.error_rate:.0%} in each class"
    if call == INDETERMINATE:
        reason = (
            f"The probability, {probability:.2f}, lies between {low:.2f} and {high:.2f}, where "
            f"{stated} does not allow a call."
        )
        return Call(call, (reason, "Use the standard test."), gates)
    reason = f"The probability, {probability:.2f}, allows this call at {stated}."
    if call == negative:
        return Call(call, (reason,), gates)
    return Call(call, (reason, "Confirm by immunohistochemistry or PCR."), gates)
