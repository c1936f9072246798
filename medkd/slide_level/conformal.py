"""Split-conformal prediction sets, one error rate for each class. Calling takes numpy alone."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from medkd.errors import StageError
from medkd.schema import Strict
from medkd.slide_level.call import INDETERMINATE
from medkd.slide_level.labelled import check_labelled

COHORT = "validation patients"

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class ConformalSets(Strict):
    """Which classes a probability leaves possible.

    Of the patients of each class at most ``error_rate`` get a set without their class, on average
    over cohorts that could have been drawn and however the scores are distributed, as long as new
    patients come from where these came from (Vovk, ACML 2012, class-conditional; Sadinle, Lei and
    Wasserman, JASA 2019). Without ties the share of the others is within ``1 / (n + 1)`` of
    ``1 - error_rate``, for ``n`` patients of the class.
    """

    kind: Literal["class-conditional split-conformal"] = "class-conditional split-conformal"
    error_rate: Annotated[float, Field(gt=0, lt=1)]
    negative_up_to: Probability = Field(
        description="The negative class is possible at this probability and below."
    )
    positive_from: Probability = Field(
        description="The positive class is possible at this probability and above."
    )
    negatives: Count = Field(description="Patients of the negative class it was fitted to.")
    positives: Count = Field(description="Patients of the positive class it was fitted to.")
    cohort: str
    date: str

    def possible(self, probabilities: Any) -> np.ndarray:
        """Whether the negative and the positive class are possible.

        Args:
            probabilities: of the positive class, (patients,).

        Returns:
            bool, (patients, 2).

        Raises:
            ValueError: a probability is not a number between 0 and 1.
        """
        values = np.asarray(probabilities, np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("a probability is not a number between 0 and 1")
        return np.stack([values <= self.negative_up_to, values >= self.positive_from], -1)

    def call(self, probability: float, *, negative: str = "MSS", positive: str = "MSI") -> str:
        """The call of one patient: a class alone, or ``indeterminate`` where both or none are left.

        Args:
            probability: of the positive class, by the calibration map these sets were fitted with.
            negative, positive: the classes' names.

        Raises:
            ValueError: the probability is not a number between 0 and 1.
        """
        negative_possible, positive_possible = self.possible(probability)
        if negative_possible == positive_possible:
            return INDETERMINATE
        return f"{positive} suspected" if positive_possible else negative


def fit_conformal(
    labels: Any,
    probabilities: Any,
    error_rate: float,
    *,
    date: str,
    cohort: str = COHORT,
) -> ConformalSets:
    """Fit the sets to patients that the networks were not trained on.

    They may have fitted the calibration map: only the order of patients counts, and no map that
    rises changes that.

    Of the ``n`` patients of a class, the ``ceil((n + 1) (1 - error_rate))`` that fit their class
    best are inside (the finite-sample correction of Vovk, Gammerman and Shafer 2005).

    Args:
        labels: (patients,), True for the positive class.
        probabilities: (patients,), of the positive class.
        error_rate: for each class, in (0, 1).
        date: ISO date of the fit.
        cohort: who the patients are, in words.

    Raises:
        StageError: a class is absent or has too few patients for the error rate, a probability is
            not in [0, 1], or the error rate is out of range.
    """
    if not 0 < error_rate < 1:
        raise StageError(
            f"the error rate is {error_rate:g}, and must lie between 0 and 1",
            where=cohort,
            remedy="Change it; 0.1 is usual.",
        )
    labels, probabilities = check_labelled(
        labels, probabilities, cohort=cohort, purpose="to fit prediction sets to"
    )
    positives, negatives = np.sort(probabilities[labels])[::-1], np.sort(probabilities[~labels])
    return ConformalSets(
        error_rate=error_rate,
        negative_up_to=float(negatives[_inside(len(negatives), error_rate, "negative", cohort)]),
        positive_from=float(positives[_inside(len(positives), error_rate, "positive", cohort)]),
        negatives=len(negatives),
        positives=len(positives),
        cohort=cohort,
        date=date,
    )


def _inside(count: int, error_rate: float, name: str, cohort: str) -> int:
    """Index of the last patient inside, from the one that fits its class best."""
    # Whole numbers must not be lost to rounding: 20 * 0.05 leaves one patient outside.
    outside = math.floor((count + 1) * error_rate + 1e-9)
    if outside < 1:
        # Rounded up: the rate that is named must be one that works.
        possible = math.ceil(1e4 / (count + 1)) / 1e4
        raise StageError(
            f"{count} {name} patients are too few for an error rate of {error_rate:g}: it takes "
            f"{math.ceil(1 / error_rate - 1 - 1e-9)}",
            where=cohort,
            remedy=f"Ask for an error rate of {possible:g} or more, or add patients.",
        )
    return count - outside
