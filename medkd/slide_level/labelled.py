"""Labels and scores of patients, checked before anything is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medkd.errors import StageError, TooFewPatientsError

FEWEST_PATIENTS = 3

T = TypeVar("T")


def check_labelled(
    labels: Any,
    scores: Any,
    *,
    cohort: str,
    purpose: str,
    within_0_and_1: bool = True,
    fewest: int = FEWEST_PATIENTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as arrays of bool and float64, one of each for every patient.

    Args:
        labels: (patients,), True for the positive class.
        scores: (patients,).
        cohort: who they are, in words, for the messages.
        purpose: what they are needed for, such as 'to calibrate on', for the messages.
        within_0_and_1: whether a score must be a probability.
        fewest: how many patients it takes.

    Raises:
        TooFewPatientsError: a class is absent, or there are fewer patients than it takes.
        StageError: a score is no number or out of range.
        ValueError: labels and scores are not two lists of one length.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels are {labels.shape} and scores {scores.shape}, one a patient each")
    if not np.isfinite(scores).all():
        raise StageError(
            "a score is not a number", where=cohort, remedy="Look at predictions.parquet."
        )
    if within_0_and_1 and not ((scores >= 0) & (scores <= 1)).all():
        raise StageError(
            "a score does not lie between 0 and 1",
            where=cohort,
            remedy="Look at predictions.parquet.",
        )
    more = "Give validation a larger share, or add patients."
    for lacking, there in (("positive", labels.any()), ("negative", not labels.all())):
        if not there:
            raise TooFewPatientsError(
                f"there is no {lacking} patient {purpose}", where=cohort, remedy=more
            )
    if len(labels) < fewest:
        raise TooFewPatientsError(
            f"{len(labels)} patients are too few {purpose}: it takes {fewest} at the "
            "least, and tens to mean anything",
            where=cohort,
            remedy=more,
        )
    return labels, scores


def label_of(labels: Mapping[str, T], patient_id: str, where: Path) -> T:
    """The label of a patient of a file of predictions or embeddings.

    Raises:
        StageError: there is none.
    """
    if patient_id not in labels:
        raise StageError(
            f"patient '{patient_id}' has no label", where=where, remedy="Add it to slides.csv."
        )
    return labels[patient_id]
