"""Scores of two runs side by side, and runs that do not belong together."""

from __future__ import annotations

import pandas as pd
import pytest

from medkd.errors import StageError
from medkd.slide_level.pairing import paired_rows

FIRST = pd.DataFrame(
    {"patient_id": ["a", "b", "c"], "label": ["MSI", "MSS", "MSS"], "score": [0.9, 0.2, 0.4]}
)
SECOND = pd.DataFrame(
    {"patient_id": ["c", "a", "b"], "label": ["MSS", "MSI", "MSS"], "score": [0.3, 0.8, 0.1]}
)


def test_scores_of_a_patient_stand_side_by_side() -> None:
    found = paired_rows(FIRST, SECOND)
    assert found.to_dict("list") == {
        "patient_id": ["a", "b", "c"],
        "label": ["MSI", "MSS", "MSS"],
        "first": [0.9, 0.2, 0.4],
        "second": [0.8, 0.1, 0.3],
    }


def test_slides_keep_their_patients() -> None:
    slides = FIRST.assign(slide_id=["s1", "s2", "s3"])
    others = slides.iloc[::-1].assign(score=0.5)
    found = paired_rows(slides, others, key="slide_id")
    assert found["patient_id"].tolist() == ["a", "b", "c"]
    assert found["second"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (SECOND.iloc[:1],
         "comparison: patient 'a' is in kd alone (2 such in all). "
         "Compare runs that were tested on the same patients."),
        (pd.concat([SECOND, SECOND.iloc[:1].assign(patient_id="d")]),
         "comparison: patient 'd' is in dml alone (1 such in all). "
         "Compare runs that were tested on the same patients."),
        (pd.concat([SECOND, SECOND.iloc[:1]]),
         "comparison: patient 'c' comes twice in dml. Choose one network and one role."),
        (SECOND.assign(label="MSS"),
         "comparison: patient 'a' is MSI in kd and MSS in dml. "
         "Aggregate both runs with the same slides.csv."),
    ],
)  # fmt: skip
def test_messages(second: pd.DataFrame, message: str) -> None:
    with pytest.raises(StageError) as caught:
        paired_rows(FIRST, second, names=("kd", "dml"))
    assert str(caught.value) == message
