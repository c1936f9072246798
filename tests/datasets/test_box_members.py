"""Whose an image is, and what must lie in one role."""

from __future__ import annotations

import pandas as pd
import pytest

from medkd.datasets.box_members import marks, members, numbered_anew
from medkd.errors import StageError

COLUMNS = ["image", "patient_id", "sequence_id"]


def table(*rows: tuple[str, str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


FRAMES = table(
    ("a.png", "7", "A"),  # a patient who is called as a sequence is
    ("b.png", None, "A"),
    ("c.png", None, "7"),
    ("d.png", None, None),
    ("e.png", "8", "B"),
    ("f.png", "9", "B"),
)


def test_a_member_is_the_patient_or_the_sequence_or_the_image() -> None:
    assert list(members(FRAMES)) == ["7", "sequence:A", "sequence:7", "d.png", "8", "9"]


def test_without_patients_and_sequences_images_keep_their_paths() -> None:
    images = table(("b.png", None, None), ("a.png", None, None))
    assert list(members(images)) == list(marks(images)) == ["b.png", "a.png"]


def test_a_sequence_marks_its_patient_where_frames_are_without_one() -> None:
    found = marks(FRAMES)
    assert sorted(found[found == "sequence:A"].index) == [0, 1]
    # Sequence B stands under two patients, and under nobody else: it marks neither.
    assert "sequence:B" not in set(found)
    assert len(found) == 7


def test_names_of_sequences_that_several_patients_have() -> None:
    assert numbered_anew(FRAMES) == ["B"]
    # One frame without a patient, and nobody knows whose it is: the patients are joined instead.
    assert numbered_anew(pd.concat([FRAMES, table(("g.png", None, "B"))])) == []


@pytest.mark.parametrize(
    ("rows", "both"),
    [
        ((("a.png", "sequence:7", None), ("b.png", None, "7")), "a sequence and a patient"),
        ((("a.png", "b.png", None), ("b.png", None, None)), "an image and a patient"),
        ((("a.png", None, "7"), ("sequence:7", None, None)), "an image and a sequence"),
    ],
)
def test_members_of_one_name_are_refused(
    rows: tuple[tuple[str, str | None, str | None], ...], both: str
) -> None:
    with pytest.raises(StageError) as caught:
        members(table(*rows))
    assert f"is the name of {both}. Import them with another pattern" in str(caught.value)
