"""No patient has two roles, each class has its share in each role, and a seed says it all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.config import Config, DataConfig, SplitConfig
from medkd.datasets.split import check_split, read_split, run_split_stage, split_patients
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError

SHARES = SplitConfig(train=0.6, validation=0.2, test=0.2)


def cohort(**sizes: int) -> dict[str, str]:
    return {f"{name}-{i:03d}": name for name, size in sizes.items() for i in range(size)}


def counts(split: pd.DataFrame, label: str) -> tuple[int, ...]:
    found = Counter(split.loc[split["label"] == label, "role"])
    return found["train"], found["validation"], found["test"]


@pytest.mark.parametrize("case", range(25))
def test_any_cohort_is_split_by_patient_and_class_within_one_patient(case: int) -> None:
    random = np.random.default_rng(case)
    sizes = dict(zip(("MSI", "MSS", "other"), random.integers(10, 80, 3).tolist(), strict=True))
    train, validation = random.uniform(0.1, 0.45, 2).tolist()
    shares = SplitConfig(train=train, validation=validation, test=1 - train - validation)
    patients = cohort(**sizes)
    split = split_patients(patients, shares, seed=case)
    assert list(split["patient_id"]) == sorted(patients)
    assert dict(zip(split["patient_id"], split["label"], strict=True)) == patients
    for label, size in sizes.items():
        ideal = np.array([shares.train, shares.validation, shares.test]) * size
        assert (np.abs(counts(split, label) - ideal) < 1).all()


@pytest.mark.parametrize(
    ("size", "shares", "expected"),
    [
        (10, (0.6, 0.2, 0.2), (6, 2, 2)),
        (7, (0.6, 0.2, 0.2), (4, 2, 1)),
        (8, (0.6, 0.2, 0.2), (5, 2, 1)),
        (11, (0.6, 0.2, 0.2), (7, 2, 2)),
        (100, (0.29, 0.57, 0.14), (29, 57, 14)),
        (4, (0.9, 0.05, 0.05), (2, 1, 1)),
        (3, (0.05, 0.05, 0.9), (1, 1, 1)),
    ],
)
def test_counts_worked_out_by_hand(
    size: int, shares: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    train, validation, test = shares
    config = SplitConfig(train=train, validation=validation, test=test)
    assert counts(split_patients(cohort(MSI=size), config, 0), "MSI") == expected


def test_the_same_seed_gives_the_same_roles_in_any_order_of_patients() -> None:
    patients = cohort(MSI=12, MSS=30)
    turned = dict(reversed(patients.items()))
    pd.testing.assert_frame_equal(
        split_patients(patients, SHARES, 7), split_patients(turned, SHARES, 7)
    )


def test_another_seed_gives_other_roles() -> None:
    patients = cohort(MSI=12, MSS=30)
    assert not split_patients(patients, SHARES, 7).equals(split_patients(patients, SHARES, 8))


def test_every_patient_is_tested_under_some_seed() -> None:
    patients = cohort(MSI=5, MSS=5)
    tested = set()
    for seed in range(60):
        split = split_patients(patients, SHARES, seed)
        tested |= set(split.loc[split["role"] == "test", "patient_id"])
    assert tested == set(patients)


@pytest.mark.parametrize(("size", "words"), [(1, "1 patient,"), (2, "2 patients,")])
def test_a_class_with_too_few_patients_is_told(size: int, words: str) -> None:
    with pytest.raises(
        StageError,
        match=rf"^my\.csv: class MSI has {words} and each of train, validation and test needs "
        r"one\. Add patients of that class\.$",
    ):
        split_patients(cohort(MSI=size, MSS=9), SHARES, 0, where="my.csv")


def slide_rows(patients: dict[str, str]) -> list[SlideRow]:
    return [
        SlideRow(f"{patient}_{number}", Path("x.svs"), patient, label)
        for patient, label in patients.items()
        for number in range(3)
    ]


def config_in(folder: Path, seed: int = 0) -> Config:
    return Config(output=folder, seed=seed, split=SHARES, data=DataConfig(slides=folder / "s.csv"))


def test_the_stage_writes_one_role_for_each_patient(tmp_path: Path) -> None:
    patients = cohort(MSI=5, MSS=10)
    summary = run_split_stage(slide_rows(patients), config_in(tmp_path))
    split = read_split(tmp_path / "splits.parquet")
    assert list(split["patient_id"]) == sorted(patients)
    assert not summary.kept
    assert summary.counts == {
        "train": {"MSI": 3, "MSS": 6},
        "validation": {"MSI": 1, "MSS": 2},
        "test": {"MSI": 1, "MSS": 2},
    }


def test_an_equal_split_is_kept(tmp_path: Path) -> None:
    rows = slide_rows(cohort(MSI=5, MSS=10))
    run_split_stage(rows, config_in(tmp_path))
    before = (tmp_path / "splits.parquet").stat()
    assert run_split_stage(list(reversed(rows)), config_in(tmp_path)).kept
    assert (tmp_path / "splits.parquet").stat().st_ino == before.st_ino


def test_a_split_that_nothing_was_trained_on_is_replaced(tmp_path: Path) -> None:
    patients = cohort(MSI=9, MSS=9)
    run_split_stage(slide_rows(patients), config_in(tmp_path, seed=1))
    assert not run_split_stage(slide_rows(patients), config_in(tmp_path, seed=2)).kept
    written = read_split(tmp_path / "splits.parquet")
    assert written["role"].tolist() == split_patients(patients, SHARES, 2)["role"].tolist()


def test_a_split_that_a_run_was_trained_on_is_never_replaced(tmp_path: Path) -> None:
    rows = slide_rows(cohort(MSI=9, MSS=9))
    run_split_stage(rows, config_in(tmp_path, seed=1))
    before = (tmp_path / "splits.parquet").read_bytes()
    (tmp_path / "runs" / "first" / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        StageError,
        match=r"splits\.parquet: another split is there, and first was trained on it\. "
        r"Choose another output folder",
    ):
        run_split_stage(rows, config_in(tmp_path, seed=2))
    assert (tmp_path / "splits.parquet").read_bytes() == before


def test_too_few_patients_name_the_users_table(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"s\.csv: class MSI has 2 patients"):
        run_split_stage(slide_rows(cohort(MSI=2, MSS=9)), config_in(tmp_path))


def test_no_split_yet_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"splits\.parquet: no split yet\. Run 'medkd split'"):
        read_split(tmp_path / "splits.parquet")


@pytest.mark.parametrize("columns", [None, {"patient_id": ["a"], "label": ["MSI"]}])
def test_a_file_that_is_not_a_split_is_told(tmp_path: Path, columns: dict | None) -> None:
    path = tmp_path / "splits.parquet"
    if columns is None:
        path.write_text("not parquet")
    else:
        pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(
        StageError,
        match=r"is not a split: .*\. Remove the file and run 'medkd split' again\.$",
    ):
        read_split(path)


def given_split(**columns: list[str]) -> pd.DataFrame:
    base = {"patient_id": ["a", "b"], "label": ["MSI", "MSS"], "role": ["train", "test"]}
    return pd.DataFrame({**base, **columns})


ROWS = [SlideRow("a1", Path("a"), "a", "MSI"), SlideRow("b1", Path("b"), "b", "MSS")]


def test_a_split_of_these_patients_passes() -> None:
    check_split(given_split(), ROWS)


def test_a_split_of_more_patients_than_the_table_passes() -> None:
    check_split(given_split(), ROWS[:1])


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"patient_id": ["a", "a"]}, "patient 'a' has two roles"),
        ({"role": ["train", "holdout"]}, "unknown role 'holdout'"),
        ({"patient_id": ["a", "c"]}, "patient 'b' has no role"),
        ({"label": ["MSI", "MSI"]}, "patient 'b' was MSI when the split was made and is MSS now"),
    ],
)
def test_a_split_that_contradicts_the_table_is_told(columns: dict, what: str) -> None:
    with pytest.raises(
        StageError,
        match=rf"^here: {what}\. Remove the file and run 'medkd split' again; runs trained on it "
        r"are then void\.$",
    ):
        check_split(given_split(**columns), ROWS, where="here")
