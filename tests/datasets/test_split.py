"""The split stage: what it writes, keeps and refuses, and what later stages read of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config, DataConfig, SplitConfig, load_config
from medkd.datasets.patients import patients_of
from medkd.datasets.split import check_split, read_split, run_split_stage
from medkd.datasets.split_schemes import make_folds
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError, TableError

SHARES = SplitConfig(train=0.6, validation=0.2, test=0.2)


def cohort(**sizes: int) -> dict[str, str]:
    return {f"{name}-{i:03d}": name for name, size in sizes.items() for i in range(size)}


def slide_rows(patients: dict[str, str]) -> list[SlideRow]:
    return [
        SlideRow(f"{patient}_{number}", Path("x.svs"), patient, label)
        for patient, label in patients.items()
        for number in range(3)
    ]


def config_in(folder: Path, seed: int = 0, split: SplitConfig = SHARES) -> Config:
    return Config(output=folder, seed=seed, split=split, data=DataConfig(slides=folder / "s.csv"))


def test_the_stage_writes_one_role_for_each_patient(tmp_path: Path) -> None:
    patients = cohort(MSI=5, MSS=10)
    summary = run_split_stage(slide_rows(patients), config_in(tmp_path))
    split = read_split(tmp_path / "splits.parquet")
    assert list(split["patient_id"]) == sorted(patients)
    assert not summary.kept
    assert summary.counts == (
        {
            "train": {"MSI": 3, "MSS": 6},
            "validation": {"MSI": 1, "MSS": 2},
            "test": {"MSI": 1, "MSS": 2},
        },
    )
    assert summary.test_sites == ((),)


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
    expected = make_folds(patients_of(slide_rows(patients), with_sites=False), SHARES, 2)
    assert written["role"].tolist() == expected["role"].tolist()


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


def at_sites(patients: dict[str, str], *sites: str) -> list[SlideRow]:
    return [
        SlideRow(f"{patient}_0", Path("x.svs"), patient, label, site=sites[number % len(sites)])
        for number, (patient, label) in enumerate(patients.items())
    ]


def test_each_fold_of_a_split_can_be_read(tmp_path: Path) -> None:
    config = config_in(tmp_path, split=SplitConfig(scheme="kfold", folds=3))
    patients = cohort(MSI=3, MSS=6)
    summary = run_split_stage(slide_rows(patients), config)
    one_of_each = {role: {"MSI": 1, "MSS": 2} for role in ("train", "validation", "test")}
    assert summary.counts == (one_of_each,) * 3
    path = tmp_path / "splits.parquet"
    written = pd.read_parquet(path)
    assert list(written.columns) == ["patient_id", "label", "fold", "role"]
    tested = []
    for fold in range(3):
        split = read_split(path, fold)
        assert list(split["patient_id"]) == sorted(patients)
        check_split(split, slide_rows(patients))
        tested += split.loc[split["role"] == "test", "patient_id"].tolist()
    assert sorted(tested) == sorted(patients)
    assert run_split_stage(slide_rows(patients), config).kept


def test_a_fold_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "splits.parquet"
    run_split_stage(slide_rows(cohort(MSI=3, MSS=3)), config_in(tmp_path))
    with pytest.raises(
        StageError,
        match=r"splits\.parquet: has no fold 1, only fold 0\. Choose one of these as split\.fold",
    ):
        read_split(path, 1)
    path.unlink()
    kfold = SplitConfig(scheme="kfold", folds=3)
    run_split_stage(slide_rows(cohort(MSI=3, MSS=3)), config_in(tmp_path, split=kfold))
    with pytest.raises(StageError, match=r"has no fold 3, only 0 to 2\."):
        read_split(path, 3)


def test_a_published_split_without_folds_is_fold_0(tmp_path: Path) -> None:
    path = tmp_path / "splits.parquet"
    given_split().to_parquet(path)
    pd.testing.assert_frame_equal(read_split(path), given_split())


def test_the_sites_that_are_tested_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*at_sites(cohort(MSI=12, MSS=12), "A", "B", "C")]
    rows.append(SlideRow("only", Path("x.svs"), "p", "MSS", site="D"))
    config = config_in(tmp_path, split=SplitConfig(scheme="leave_one_site_out"))
    assert run_split_stage(rows, config).test_sites == (("A",), ("B",), ("C",))
    assert capsys.readouterr().err == (
        "warning: a class has no patient at D: never left out, in train or validation in every "
        "fold.\n"
    )


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        (("A", ""), "patient 'a' has no site, and the split goes by sites. Fill in the column"),
        (("A", "B"), "patient 'a' has slides of the sites A and B. Give all slides of a patient"),
    ],
)
def test_a_patient_without_one_site_is_told(
    tmp_path: Path, sites: tuple[str, ...], told: str
) -> None:
    rows = [SlideRow(f"s{n}", Path("x"), "a", "MSI", site=site) for n, site in enumerate(sites)]
    config = config_in(tmp_path, split=SplitConfig(scheme="site_preserved", folds=3))
    with pytest.raises(StageError) as error:
        run_split_stage(rows, config)
    assert str(error.value).startswith(f"{tmp_path / 's.csv'}: {told}")


def from_file(folder: Path, text: str) -> Config:
    path = folder / "roles.csv"
    path.write_text(text, encoding="utf-8-sig")
    return config_in(folder, split=SplitConfig(scheme="file", file=path))


def test_a_split_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [SlideRow(name, Path(name), name, "MSI") for name in "abc"]
    text = "patient_id,role,fold,note\n" + "".join(
        f"{patient},{role},{fold},x\n"
        for fold in (0, 1)
        for patient, role in zip(
            "abcz" if fold else "bcaz", ("test", "train", "validation", "test"), strict=True
        )
    )
    config = from_file(tmp_path, text)
    summary = run_split_stage(rows, config)
    assert len(summary.counts) == 2
    assert "roles.csv: 1 patients are not in the table of slides" in capsys.readouterr().err
    first, second = (read_split(config.splits_file, fold) for fold in (0, 1))
    assert first["role"].tolist() == ["validation", "test", "train"]
    assert second["role"].tolist() == ["test", "train", "validation"]
    assert second["label"].tolist() == ["MSI"] * 3
    # What one experiment wrote, another one takes.
    other = SplitConfig(scheme="file", file=config.splits_file)
    run_split_stage(rows, config_in(tmp_path / "other", split=other))
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "other" / "splits.parquet"), pd.read_parquet(config.splits_file)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "patient_id,role\na,train\nb,validation\nb,test\nc,test\n",
            "1 patients have two roles in fold 0, such as 'b': validation and test. Give each "
            "patient one role in a fold; who validates cannot test.",
        ),
        (
            "patient_id,role\na,train\nb,validation\n",
            "patient 'c' has no role in fold 0. Give every patient of the table of slides a role "
            "in every fold.",
        ),
        (
            "patient_id,role\na,train\nb,train\nc,test\n",
            "fold 0 has no validation patient. Give each role some patients.",
        ),
        ("patient_id,role\na,tune\n", "unknown role 'tune'. Use train, validation, test."),
        ("patient_id\na\n", "the column 'role' is missing. Add it."),
        (
            "patient_id,role,fold\na,train,1\nb,test,3\n",
            "has the folds 1, 3. Number the folds from 0 on, without a gap, and give every patient "
            "a role.",
        ),
        (
            "patient_id,role,fold\na,train,first\n",
            "a fold is not a whole number. Number the folds from 0 on.",
        ),
        (
            "patient_id,role\nz,train\n",
            "has no role of a patient. Number the folds from 0 on, without a gap, and give every "
            "patient a role.",
        ),
    ],
)
def test_a_table_of_roles_that_cannot_be_used_is_told(tmp_path: Path, text: str, told: str) -> None:
    config = from_file(tmp_path, text)
    rows = [SlideRow(name, Path(name), name, "MSI") for name in "abc"]
    with pytest.raises(TableError) as error:
        run_split_stage(rows, config)
    assert str(error.value) == f"{tmp_path / 'roles.csv'}: {told}"
    assert not config.splits_file.exists()


def test_the_table_of_roles_is_relative_to_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "medkd.yaml").write_text("split: {scheme: file, file: roles.csv}\n")
    assert load_config(tmp_path / "medkd.yaml").split.file == tmp_path / "roles.csv"
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assigned = load_config(tmp_path / "medkd.yaml", ("split.file=mine.csv",))
    assert assigned.split.file == here / "mine.csv"


def test_the_command_shows_every_fold_and_its_test_sites(tmp_path: Path) -> None:
    slides = "slide_id,path,patient_id,label,site\n" + "".join(
        f"{site}{label}{n},x.svs,{site}{label}{n},{label},{site}\n"
        for site in "ABC"
        for label in ("MSI", "MSS")
        for n in range(3)
    )
    (tmp_path / "slides.csv").write_text(slides)
    (tmp_path / "medkd.yaml").write_text("split: {scheme: leave_one_site_out}\n")
    result = CliRunner().invoke(app, ["split", "--config", str(tmp_path / "medkd.yaml")])
    assert result.exit_code == 0
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.output.splitlines()
        if line.startswith("│")
    ]
    assert [row for row in cells if row[1] == "test"] == [
        [str(fold), "test", "3", "3", site] for fold, site in enumerate("ABC")
    ]
    assert "Folds: 3; --set split.fold=K names the one to train." in result.output


def test_a_table_of_roles_that_is_not_there_is_told(tmp_path: Path) -> None:
    split = SplitConfig(scheme="file", file=tmp_path / "none.csv")
    with pytest.raises(TableError, match=r"none\.csv: no such file\. Set split\.file to a table"):
        run_split_stage(slide_rows(cohort(MSI=3)), config_in(tmp_path, split=split))


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
