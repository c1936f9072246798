"""Calibration maps: from a patient's score to a probability. Applying one takes numpy alone.

Every map is non-decreasing, so that no two patients change places. Fitting and choosing one is in
:mod:`medkd.slide_level.calibration_fit`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, model_validator

from medkd.schema import Strict

EPSILON = 1e-6
"""Scores nearer to 0 or 1 are taken for this far, and no map but 'none' gives any nearer."""

SLOPE_LIMIT = 100.0
"""No slope is steeper, whatever the patients say: at 100 a score of 0.51 has 55 times the odds of
one of 0.50, which is beyond what tens or hundreds of patients can show."""

Slope = Annotated[float, Field(ge=0, le=SLOPE_LIMIT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1)]

_LOGIT_LIMIT = float(np.log(1 - EPSILON) - np.log(EPSILON))


def logit(scores: Any) -> np.ndarray:
    """Log odds of scores in [0, 1], float64 of the same shape, finite by :data:`EPSILON`.

    Raises:
        ValueError: a score is not a number between 0 and 1.
    """
    scores = _checked(scores)
    inside = np.clip(scores, EPSILON, 1 - EPSILON)
    return np.log(inside) - np.log1p(-inside)


def expit(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities of log odds, never nearer to 0 or 1 than :data:`EPSILON`."""
    return 1 / (1 + np.exp(-np.clip(log_odds, -_LOGIT_LIMIT, _LOGIT_LIMIT)))


def _checked(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a score is not a number between 0 and 1")
    return scores


class Uncalibrated(Strict):
    """The score as it is."""

    kind: Literal["none"] = "none"

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        return _checked(scores)


class Temperature(Strict):
    """``logit p = logit s / temperature`` (Guo et al., ICML 2017)."""

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(
        ge=1 / SLOPE_LIMIT, le=SLOPE_LIMIT, description="Above 1 for scores that are too extreme."
    )

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        return expit(logit(scores) / self.temperature)


class Platt(Strict):
    """``logit p = slope * logit s + intercept`` (Platt 1999, on the logit of the score)."""

    kind: Literal["platt"] = "platt"
    slope: Slope
    intercept: Finite

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        return expit(self.slope * logit(scores) + self.intercept)


class Beta(Strict):
    """``logit p = a ln s - b ln(1 - s) + c`` (Kull, Silva Filho and Flach, AISTATS 2017)."""

    kind: Literal["beta"] = "beta"
    a: Slope
    b: Slope
    c: Finite

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        low, high = beta_features(scores)
        return expit(self.a * low + self.b * high + self.c)


class Isotonic(Strict):
    """Straight lines between knots, level beyond the first and the last."""

    kind: Literal["isotonic"] = "isotonic"
    scores: Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
    probabilities: Annotated[tuple[Inside, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _rises(self) -> Isotonic:
        if len(self.scores) != len(self.probabilities):
            raise ValueError("'scores' and 'probabilities' must be of one length")
        if not all(0 <= score <= 1 for score in self.scores):
            raise ValueError("'scores' must lie between 0 and 1")
        if any(second <= first for first, second in pairwise(self.scores)):
            raise ValueError("'scores' must rise")
        if any(second < first for first, second in pairwise(self.probabilities)):
            raise ValueError("'probabilities' must not fall")
        return self

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        scores = _checked(scores)
        knots, heights = np.array(self.scores), np.array(self.probabilities)
        above = np.clip(np.searchsorted(knots, scores, side="right"), 1, max(1, len(knots) - 1))
        # Rounding may carry a line past its end by the last digit, and then the next one falls.
        ends = heights[above - 1], heights[np.minimum(above, len(knots) - 1)]
        return np.asarray(np.clip(np.interp(scores, knots, heights), *ends))


class Recalibrated(Strict):
    """``logit p = slope * logit old(s) + intercept``: an older map, moved to a new site."""

    kind: Literal["recalibrated"] = "recalibrated"
    old: CalibrationMap
    slope: Slope
    intercept: Finite

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        return expit(self.slope * logit(self.old(scores)) + self.intercept)


CalibrationMap = Annotated[
    Uncalibrated | Temperature | Platt | Beta | Isotonic | Recalibrated,
    Field(discriminator="kind"),
]
Recalibrated.model_rebuild()

_ADAPTER: TypeAdapter[Any] = TypeAdapter(CalibrationMap)


def beta_features(scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """``ln s`` and ``-ln(1 - s)``, what beta calibration weighs by a and b."""
    inside = np.clip(_checked(scores), EPSILON, 1 - EPSILON)
    return np.log(inside), -np.log1p(-inside)


def calibration_from_json(content: Any) -> CalibrationMap:
    """The map that ``map.model_dump(mode="json")`` wrote; ``{"kind": "none"}`` is one.

    Raises:
        pydantic.ValidationError: an unknown kind, a wrong parameter, or a map that falls.
    """
    return _ADAPTER.validate_python(content)


def least_score(calibration: CalibrationMap, probability: float) -> float | None:
    """The least score that a map takes to at least a probability; None: no score is.

    By bisection, for no map falls.
    """
    if calibration(1.0) < probability:
        return None
    low, high = 0.0, 1.0
    if calibration(low) >= probability:
        return low
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if calibration(middle) >= probability else (middle, high)
    return high
