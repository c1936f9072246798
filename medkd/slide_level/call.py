"""From a score to a call in words, with its reasons. Plain Python, so that infer starts fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medkd.config import InferConfig
from medkd.slide_level.pooling import SlideScore

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
    *,
    tissue_area_mm2: float,
    tiles_used: int,
    negative: str = "MSS",
    positive: str = "MSI",
    conformal: ConformalSets | None = None,
) -> Call:
    """Call one slide.

    The negative class is a rule-out: the whole interval lies below the operating point. Where the
    interval holds the operating point, or the students disagree, the answer is that there is none.
    Conformal sets, where there are any, decide instead of the interval and the operating point.

    Args:
        score: calibrated; None where there was no tile to score.
        threshold: the frozen operating point.
        limits: the quality gates.
        tissue_area_mm2, tiles_used: of the slide.
        negative, positive: the classes' names.
        conformal: sets that were fitted with the calibration.
    """
    gates = [
        Gate("tissue area, mm²", tissue_area_mm2, limits.min_tissue_mm2,
             tissue_area_mm2 >= limits.min_tissue_mm2),
        Gate("usable tiles", tiles_used, limits.min_tiles, tiles_used >= limits.min_tiles),
    ]  # fmt: skip
    lacking = []
    if not gates[0].passed:
        # Cut, not rounded: what is too little must not read as if it were enough.
        shown_mm2 = math.floor(100 * tissue_area_mm2) / 100
        lacking.append(
            f"The slide shows {shown_mm2:.2f} mm² of tissue; {limits.min_tissue_mm2:g} mm² "
            "are needed."
        )
    if not gates[1].passed:
        lacking.append(f"{tiles_used} tiles are usable; {limits.min_tiles} are needed.")
    if lacking or score is None:
        return Call(NO_RESULT, tuple(lacking), tuple(gates))
    agree = score.disagreement <= limits.max_disagreement
    gates.append(
        Gate("disagreement of students", score.disagreement, limits.max_disagreement, agree)
    )
    interval = f"{score.lower:.2f} to {score.upper:.2f}"
    point = f"the operating point of {threshold:.2f}"
    if not agree:
        reason = (
            f"The students' scores differ by {score.disagreement:.2f}; up to "
            f"{limits.max_disagreement:g} is taken as agreement."
        )
        return Call(INDETERMINATE, (reason, "Use the standard test."), tuple(gates))
    if conformal is not None:
        return _conformal_call(score.score, conformal, tuple(gates), negative, positive)
    if score.lower >= threshold:
        reason = f"The interval of the score, {interval}, lies at or above {point}."
        return Call(
            f"{positive} suspected", (reason, "Confirm by immunohistochemistry or PCR."),
            tuple(gates),
        )  # fmt: skip
    if score.upper < threshold:
        reason = f"The interval of the score, {interval}, lies below {point}."
        return Call(negative, (reason,), tuple(gates))
    reason = f"The interval of the score, {interval}, holds {point}."
    return Call(INDETERMINATE, (reason, "Use the standard test."), tuple(gates))


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
