"""What an evaluation cannot be made of: each is one line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.config import Config
from medkd.errors import StageError
from medkd.files import write_json
from medkd.slide_level.evaluate_stage import run_evaluate_stage
from medkd.slide_level.evaluation_input import read_evaluation_input
from tests.slide_level.evaluated_run import PATIENTS, Row, aggregated_run, changed, write_slides

TESTED = tuple(row for row in PATIENTS if row.role == "test" and row.score is not None)


def without(*patients: str) -> tuple[Row, ...]:
    return tuple(row for row in PATIENTS if row.patient not in patients)


def rewrite(config: Config, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = config.run_folder / f"{name}.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            without("t1", "t2", "t6"),
            r"patient_poolings\.parquet: of 3 test patients with a score 0 are MSI and 3 are not; "
            r"an evaluation takes 2 of each at the least, and tens to mean anything\. Give test a "
            r"larger share, or add patients\.$",
        ),
        (without("t2", "t4", "t5"), r"of 2 test patients with a score 1 are MSI and 1 are not"),
        (
            changed(PATIENTS, **{row.patient: {"score": 0.25} for row in TESTED}),
            r"patient_poolings\.parquet: all 5 test patients have the same score, 0\.25\. Look at "
            r"the training: these networks tell no patient from another\.$",
        ),
        (
            changed(PATIENTS, t4={"head": float("nan")}),
            r"patient_poolings\.parquet: the score of patient 't4' by gated_attention is not a "
            r"number \(1 such in all\)\. Look at predictions\.parquet, then run 'medkd aggregate'",
        ),
        (
            changed(PATIENTS, t1={"score": 1.5}),
            r"the probability of patient 't1' is not between 0 and 1\. Run 'medkd aggregate' again",
        ),
        (
            tuple(row for row in PATIENTS if row.role != "test"),
            r"patient_poolings\.parquet: has no test patient\.",
        ),
    ],
)
def test_patients_that_say_nothing_are_refused(tmp_path: Path, rows, told: str) -> None:
    config = aggregated_run(tmp_path, rows)
    with pytest.raises(StageError, match=told):
        run_evaluate_stage(config)
    assert not (config.run_folder / "evaluation").exists()


def drop(name: str) -> Callable[[Config], None]:
    return lambda config: (config.run_folder / name).unlink()


def relabel(config: Config) -> None:
    write_slides(config, changed(PATIENTS, t4={"label": "MSI"}))


def forget_patient(config: Config) -> None:
    write_slides(config, without("t4"))


def move_patient(config: Config) -> None:
    split = pd.read_parquet(config.splits_file)
    split.loc[split["patient_id"] == "t4", "role"] = "train"
    split.to_parquet(config.splits_file)


def other_calls(config: Config) -> None:
    rewrite(config, "patient_calls", lambda t: t.assign(probability=t["probability"] / 2))


def two_shipped(config: Config) -> None:
    rewrite(config, "patient_poolings", lambda t: t.assign(shipped=True))


def other_threshold(config: Config) -> None:
    rewrite(config, "patient_poolings", lambda t: t.assign(threshold=0.75))


def fewer_by_head(config: Config) -> None:
    rewrite(
        config,
        "patient_poolings",
        lambda t: t[(t["pooling"] == "mean_probability") | (t["patient_id"] != "t4")],
    )


def twice(config: Config) -> None:
    rewrite(config, "patient_poolings", lambda t: pd.concat([t, t[t["patient_id"] == "t4"]]))


def damage(config: Config) -> None:
    (config.run_folder / "patient_poolings.parquet").write_bytes(b"PAR1 and no more")


def no_report(config: Config) -> None:
    (config.tiles_folder / "report.csv").unlink()


def short_report(config: Config) -> None:
    path = config.tiles_folder / "report.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            drop("patient_poolings.parquet"),
            r"patient_poolings\.parquet: no aggregation yet, or one of an earlier medkd\. Run "
            r"'medkd aggregate' first\.$",
        ),
        (drop("patient_calls.parquet"), r"patient_calls\.parquet: no aggregation yet"),
        (damage, r"patient_poolings\.parquet: cannot be read: .* Run 'medkd aggregate' again\.$"),
        (
            relabel,
            r"patient_poolings\.parquet: patient 't4' was MSS when the run was aggregated and is "
            r"MSI in slides\.csv now\. Run 'medkd aggregate' again\.$",
        ),
        (forget_patient, r"patient 't4' is not in slides\.csv any more\. Bring the patient back"),
        (
            move_patient,
            r"patient 't4' was a test patient when the run was aggregated and is a train patient "
            r"of the split now\. Train, predict and aggregate on this split",
        ),
        (
            other_calls,
            r"small: patient_poolings\.parquet and patient_calls\.parquet are of different "
            r"aggregations\. Run 'medkd aggregate' again\.$",
        ),
        (two_shipped, r"patient_poolings\.parquet: 2 poolings are shipped, not one\."),
        (
            other_threshold,
            r"model: has another operating point than the run's patients were called by "
            r"\(0\.75\)\. Run 'medkd aggregate' again\.$",
        ),
        (fewer_by_head, r"the pooling gated_attention has other patients than the others"),
        (twice, r"patient 't4' comes twice\. Run 'medkd aggregate' again"),
        (no_report, r"report\.csv: no report of the tiling\. Run 'medkd tile' again\.$"),
        (short_report, r"report\.csv: says nothing of slide 't1_s1'\. Run 'medkd tile' again\.$"),
    ],
)
def test_what_does_not_belong_together_is_told(tmp_path: Path, spoil, told: str) -> None:
    config = aggregated_run(tmp_path)
    spoil(config)
    with pytest.raises(StageError, match=told):
        run_evaluate_stage(config)
    assert not (config.run_folder / "evaluation").exists()


def test_another_run_must_be_there_aggregated_and_of_the_same_patients(tmp_path: Path) -> None:
    config = aggregated_run(tmp_path)
    fewer = aggregated_run(tmp_path, without("t4"), name="fewer")
    relabelled = aggregated_run(tmp_path, changed(PATIENTS, t4={"label": "MSI"}), name="relabelled")
    bare = aggregated_run(tmp_path, name="bare")
    (bare.run_folder / "patient_poolings.parquet").unlink()
    config = aggregated_run(tmp_path / "own")
    folder = config.run_folder.parent
    for other in (fewer, relabelled, bare):
        other.run_folder.rename(folder / other.run_name)
    for name, told in {
        "nobody": r"--against nobody: is neither a run of this output nor a folder\. Runs here: "
        r"bare, fewer, relabelled, small\.$",
        "small": r"--against small: is the run that is evaluated\. Name another run\.$",
        "bare": r"bare.patient_poolings\.parquet: no aggregation yet",
        "fewer": r"--against fewer: patient 't4' is in small alone \(1 such in all\)\. Compare "
        r"runs that were tested on the same patients\.$",
        str(folder / "relabelled"): r"patient 't4' is MSS in small and MSI in .*relabelled\. "
        r"Aggregate both runs with the same slides\.csv\.$",
    }.items():
        with pytest.raises(StageError, match=told):
            run_evaluate_stage(config, against=(name,))
    assert not (config.run_folder / "evaluation").exists()


def test_a_patient_with_one_value_of_a_column_and_an_empty_cell_has_that_value(
    tmp_path: Path,
) -> None:
    sites = {"t1": "north", "t2": "south", "t3": ""}
    rows = [
        Row(r.patient, r.role, r.label, r.score, r.head, r.call, r.lost,
            (("site", sites.get(r.patient, "east") if r.score is not None else ""),))
        for r in PATIENTS
    ]  # fmt: skip
    found = read_evaluation_input(aggregated_run(tmp_path, rows)).subgroups["site"]
    groups = dict(zip(found["patient_id"], found["group"], strict=True))
    assert len(found) == 5
    assert (groups["t1"], groups["t2"], groups["t4"]) == ("north", "south", "east")
    assert pd.isna(groups["t3"])


def test_imported_tiles_need_no_report_of_a_tiling(tmp_path: Path) -> None:
    config = aggregated_run(tmp_path)
    (config.tiles_folder / "report.csv").unlink()
    write_json(
        config.tiles_folder / "import.json",
        {
            "schema_version": 1,
            "kind": "tcga-tiles",
            "root": ".",
            "size_px": 224,
            "mpp": None,
            "has_places": False,
            "published_split": False,
        },
    )
    scored = [f"{row.patient}_s0" for row in PATIENTS if row.score is not None]
    tiles = pd.DataFrame({"slide_id": scored, "patient_id": "p"})
    zeros = dict.fromkeys(("x", "y", "mpp", "size_px", "tissue_fraction", "focus"), 0)
    tiles.assign(**zeros, image="").to_parquet(config.tiles_folder / "index.parquet")
    given = read_evaluation_input(config)
    assert (given.imported, given.synthetic_slides) == ("tcga-tiles", 0)
    assert given.flow.slide_fates == {"no imported tile": 3}
    np.testing.assert_array_equal(given.patient_ids, ["t1", "t2", "t3", "t4", "t5"])
