"""Rows in order, counts of a patient on all of the patient's rows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.errors import StageError
from medkd.slide_level.scored import scored_patients

LABELS = np.array([True, False, True, True, False, True])
SCORES = np.array([0.9, 0.2, 0.3, 0.5, 0.6, 0.1])
PATIENTS = np.array(["b", "a", "b", "c", "a", "b"])


def test_rows_of_each_class_are_in_order_of_score() -> None:
    cohort = scored_patients(LABELS, SCORES, PATIENTS)
    assert cohort.positive.scores.tolist() == [0.1, 0.3, 0.5, 0.9]
    assert cohort.positive.patient_ids[cohort.positive.patients].tolist() == ["b", "b", "c", "b"]
    assert cohort.positive.patient_count == 2
    assert cohort.negatives_below.tolist() == [0, 1, 1, 2]


def test_a_patients_count_is_that_of_all_the_patients_rows() -> None:
    cohort = scored_patients(LABELS, SCORES, PATIENTS)
    found = cohort.weighted(np.array([[2, 0], [0, 3]]), np.array([[1], [5]]))
    assert found.positive.tolist() == [[2, 2, 0, 2], [0, 0, 3, 0]]
    assert found.negative.tolist() == [[1, 1], [5, 5]]
    assert found.positives.tolist() == [6, 3]
    assert found.true_positives(np.array([0.3, 0.91])).tolist() == [[4, 0], [3, 0]]
    assert found.false_positives(np.array([0.3])).tolist() == [[1], [5]]


@pytest.mark.parametrize(
    ("labels", "scores", "patients", "message"),
    [
        (LABELS, SCORES[:5], None,
         "test: 6 labels, 5 scores and 6 patients. "
         "Give one label, one score and one patient for each row."),
        (LABELS, SCORES, PATIENTS[:2],
         "test: 6 labels, 6 scores and 2 patients. "
         "Give one label, one score and one patient for each row."),
        (np.arange(6), SCORES, None,
         "test: a label is neither true nor false. "
         "Give true, or 1, for the positive class and false, or 0, for the other."),
        (LABELS, np.where(LABELS, np.nan, 0.5), None,
         "test: a score is not a number. Look at the predictions."),
        (LABELS, np.where(LABELS, np.inf, 0.5), None,
         "test: a score is not a number. Look at the predictions."),
        (LABELS, SCORES, np.array(["b", "b", "b", "c", "a", "b"]),
         "test: patient 'b' has rows of both classes. Give every patient one label."),
    ],
)  # fmt: skip
def test_messages(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None, message: str
) -> None:
    with pytest.raises(StageError) as caught:
        scored_patients(labels, scores, patients, where="test")
    assert str(caught.value) == message
