"""What passes, and what is refused, in the order in which it is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.errors import StageError
from medkd.slide_level.labelled import check_labelled

WORDS = {"cohort": "site B", "purpose": "to try"}


def test_lists_become_arrays() -> None:
    labels, scores = check_labelled([1, 0, 0], [1, 0, 0.5], **WORDS)
    assert (labels.dtype, scores.dtype) == (np.bool_, np.float64)
    assert labels.tolist() == [True, False, False]
    assert scores.tolist() == [1.0, 0.0, 0.5]


def test_scores_need_not_be_probabilities_where_only_their_order_counts() -> None:
    _, scores = check_labelled([1, 0, 0], [12, -3, 0.5], **WORDS, within_0_and_1=False)
    assert scores.tolist() == [12.0, -3.0, 0.5]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 0], [np.inf, 0.1],
         "site B: a score is not a number. Look at predictions.parquet."),
        ([1, 0], [1.01, 0.1],
         "site B: a score does not lie between 0 and 1. Look at predictions.parquet."),
        ([], [], "site B: there is no positive patient to try. Give validation a larger share, or "
         "add patients."),
        ([1], [0.3], "site B: there is no negative patient to try. Give validation a larger "
         "share, or add patients."),
        ([1, 0], [0.3, 0.2], "site B: 2 patients are too few to try: it takes 3 at the least, and "
         "tens to mean anything. Give validation a larger share, or add patients."),
    ],
)  # fmt: skip
def test_messages(labels: list, scores: list, message: str) -> None:
    with pytest.raises(StageError) as caught:
        check_labelled(labels, scores, **WORDS)
    assert str(caught.value) == message


def test_what_a_caller_must_not_give() -> None:
    with pytest.raises(ValueError, match=r"labels are \(3,\) and scores \(2,\)"):
        check_labelled([1, 0, 1], [0.1, 0.2], **WORDS)
    with pytest.raises(ValueError, match="one a patient each"):
        check_labelled([[1], [0], [1]], [[0.1], [0.2], [0.3]], **WORDS)
