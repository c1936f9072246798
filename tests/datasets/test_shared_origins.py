"""Patients, slides and weights that roles share, told from tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from medkd.datasets.shared_origins import Weights, origin_findings, person, read_weights
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError


def roles(**of: str) -> pd.DataFrame:
    """``train="a b"`` gives a and b that role."""
    return pd.DataFrame(
        [(patient, role) for role, names in of.items() for patient in names.split()],
        columns=["patient_id", "role"],
    )


def found(split: pd.DataFrame, rows: list[SlideRow] | None = None, **more: object) -> list[tuple]:
    findings = origin_findings(split, rows or [], more.get("marks", {}), more.get("weights", ()))
    return [(finding.kind, finding.what, finding.examples) for finding in findings]


def test_a_clean_split_has_no_finding() -> None:
    split = roles(train="a b", validation="c", test="d")
    rows = [SlideRow(f"{p}_{n}", Path(f"{p}_{n}.svs"), p, "MSI") for p in "abcd" for n in range(2)]
    marks = {row.slide_id: row.slide_id for row in rows}
    assert found(split, rows, marks=marks) == []


def test_a_patient_in_two_roles() -> None:
    assert found(roles(train="a b", validation="c", test="d b")) == [
        ("shared_patients", "train and test share patients (1), such as b", (("b", "b"),))
    ]


def test_validation_used_for_test() -> None:
    assert found(roles(train="a", validation="b c", test="b c")) == [
        (
            "validation_used_for_test",
            "who chooses also tests (2), such as b",
            (("b", "b"), ("c", "c")),
        )
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCGA-AA-3516-01A-01-TS1", "tcga-aa-3516"),
        ("tcga_aa_3516", "tcga-aa-3516"),
        ("TCGA-AA-35167", "tcga-aa-35167"),
        (" Case 7", "case-7"),
        ("case_7.", "case-7"),
        ("1-23", "1-23"),
    ],
)
def test_ids_that_mean_one_person(name: str, expected: str) -> None:
    assert person(name) == expected


def test_one_person_under_two_ids() -> None:
    split = roles(train="TCGA-AA-3516-01A 1-23", validation="X7", test="tcga-aa-3516 12-3 x7")
    assert [(kind, examples) for kind, _, examples in found(split)] == [
        ("shared_patients", (("TCGA-AA-3516-01A", "tcga-aa-3516"),)),
        ("shared_patients", (("X7", "x7"),)),
    ]


def test_a_slide_that_carries_the_barcode_of_another_roles_case() -> None:
    split = roles(train="p1", validation="p2", test="p3")
    rows = [
        SlideRow("TCGA-AA-3516-01Z-00-DX1", Path("a"), "p1", "MSI"),
        SlideRow("TCGA-AA-3516-01Z-00-DX2", Path("b"), "p3", "MSI"),
        SlideRow("TCGA-AA-3517-01Z-00-DX1", Path("c"), "p2", "MSI"),
    ]
    assert found(split, rows) == [
        ("shared_patients", "train and test share patients (1), such as p1 and p3", (("p1", "p3"),))
    ]


def test_one_slide_under_two_patients(tmp_path: Path) -> None:
    split = roles(train="p1", validation="p2", test="p3")
    (tmp_path / "link.svs").symlink_to(tmp_path / "one.svs")
    rows = [
        SlideRow("s1", tmp_path / "one.svs", "p1", "MSI"),
        SlideRow("s2", tmp_path / "link.svs", "p2", "MSI"),
        SlideRow("s3", tmp_path / "copy.svs", "p3", "MSI"),
        SlideRow("s4", tmp_path / "one.svs", "nobody", "MSI"),
    ]
    assert found(split, rows, marks={"s1": "same", "s2": "other", "s3": "same"}) == [
        ("shared_slides", "train and test share slides (1), such as s1 and s3", (("s1", "s3"),)),
        (
            "shared_slides",
            "train and validation share slides (1), such as s1 and s2",
            (("s1", "s2"),),
        ),
    ]


def earlier_run(folder: Path, train: list[str], validation: list[str]) -> Path:
    weights = folder / "runs" / "first" / "networks" / "teacher.safetensors"
    weights.parent.mkdir(parents=True)
    report = {"seen": {"train": train, "validation": validation}}
    (weights.parent.parent / "leakage.json").write_text(json.dumps(report))
    return weights


def test_weights_that_saw_who_is_to_test_them(tmp_path: Path) -> None:
    path = earlier_run(tmp_path, ["a", "b", "c"], ["d"])
    weights = read_weights(path)
    assert weights.known
    split = roles(train="a", validation="b e", test="C d")
    assert found(split, weights=[weights]) == [
        (
            "seen_by_weights",
            f"the weights {path} trained on validation patients (1), such as b",
            (("b", "b"),),
        ),
        (
            "seen_by_weights",
            f"the weights {path} trained on test patients (1), such as c and C",
            (("c", "C"),),
        ),
        (
            "validation_used_for_test",
            f"the weights {path} were chosen by test patients (1), such as d",
            (("d", "d"),),
        ),
    ]
    assert found(roles(train="a b c", validation="d", test="e"), weights=[weights]) == []


def test_weights_of_an_epoch_and_weights_of_no_run(tmp_path: Path) -> None:
    run = earlier_run(tmp_path, ["a"], []).parent.parent
    kept = run / "checkpoints" / "epoch-003" / "teacher.safetensors"
    assert read_weights(kept).seen["train"] == {"a"}
    assert read_weights(tmp_path / "x" / "y" / "z" / "w.safetensors") == Weights(
        tmp_path / "x" / "y" / "z" / "w.safetensors", False
    )


def test_a_report_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = earlier_run(tmp_path, ["a"], [])
    report = path.parent.parent / "leakage.json"
    report.write_text("{}")
    with pytest.raises(StageError, match=r"leakage\.json: is no report of a leakage audit: 'seen'"):
        read_weights(path)
