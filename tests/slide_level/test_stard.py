"""Where every test patient went: counts by hand, sums, and what does not belong together."""

from __future__ import annotations

import pandas as pd
import pytest

from medkd.errors import StageError
from medkd.slide_level.stard import Flow, Group, patient_flow

# patient, positive, fates of the slides, call
COHORT = (
    ("a", True, ("",), "MSI suspected"),
    ("b", True, ("", "no usable tile"), "MSS"),
    ("c", True, ("failed in tiling: missing mpp",), None),
    ("d", False, ("",), "MSS"),
    ("e", False, ("", ""), "MSS"),
    ("f", False, ("",), "MSI suspected"),
    ("g", False, ("",), "indeterminate"),
    ("h", False, ("",), "no result"),
    ("i", False, ("no usable tile", "failed in tiling: missing mpp"), None),
)


def slides(cohort=COHORT) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (f"{patient}{number}", patient, positive, fate)
            for patient, positive, fates, _ in cohort
            for number, fate in enumerate(fates)
        ],
        columns=["slide_id", "patient_id", "positive", "fate"],
    )


def flow(calls: dict[str, str] | None = None) -> Flow:
    known = {patient: call for patient, _, _, call in COHORT if call is not None}
    return patient_flow(
        slides(),
        known if calls is None else calls,
        positive_call="MSI suspected",
        negative_call="MSS",
    )


def test_each_patient_is_counted_where_it_went() -> None:
    found = flow()
    assert found.eligible == Group(patients=9, positives=3, slides=12)
    assert found.without_tiles == {
        "failed in tiling: missing mpp": Group(1, 1, 1),
        "failed in tiling: missing mpp and no usable tile": Group(1, 0, 2),
    }
    assert found.slide_fates == {"failed in tiling: missing mpp": 2, "no usable tile": 2}
    assert found.no_result == Group(1, 0, 1)
    assert found.indeterminate == Group(1, 0, 1)
    assert found.called_negative == Group(3, 1, 5)
    assert found.called_positive == Group(2, 1, 2)
    assert (found.excluded, found.scored, found.called) == (2, 7, 5)


def test_the_groups_add_up_to_the_eligible_patients_and_slides() -> None:
    found = flow()
    groups = [
        *found.without_tiles.values(),
        found.no_result,
        found.indeterminate,
        found.called_negative,
        found.called_positive,
    ]
    for name in ("patients", "positives", "negatives", "slides"):
        assert sum(getattr(group, name) for group in groups) == getattr(found.eligible, name)


def test_json_holds_the_counts() -> None:
    told = flow().to_json()
    assert told["called_negative"] == {"patients": 3, "positives": 1, "slides": 5}
    assert (told["scored"], told["called"]) == (7, 5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"z": "MSS"}, r"patient 'z' is no test patient of slides\.csv \(1 such in all\)"),
        ({"a": None}, r"patient 'a' has tiles and no call \(1 such in all\)"),
        ({"c": "MSS"}, r"patient 'c' has a call and no tiles any more"),
        ({"a": "benign"}, r"'benign' is no call of these classes\. Run 'medkd aggregate' again"),
    ],
)
def test_calls_of_other_patients_or_classes_are_refused(change, told: str) -> None:
    calls = {patient: call for patient, _, _, call in COHORT if call is not None} | change
    with pytest.raises(StageError, match=told):
        flow({patient: call for patient, call in calls.items() if call is not None})
