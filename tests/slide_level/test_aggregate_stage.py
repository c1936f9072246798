"""The aggregate stage on a finished run: its files, the frozen package, MLflow, its refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from medkd.config import Config, load_config
from medkd.errors import ModelPackageError, StageError
from medkd.files import write_json
from medkd.inference.package import load_package, write_package
from medkd.slide_level.aggregate_stage import AggregateResult, run_aggregate_stage
from medkd.tracking import connect, open_run, tracking_uri, write_run_ids
from tests.slide_level.hand_made import PATIENTS, STUDENTS, one_class, predictions

NETWORKS = ("teacher", *STUDENTS)
EXPERIMENT = """\
output: .
data: {slides: slides.csv}
train: {name: small}
slide_level: {bootstrap_resamples: 1000}
infer: {min_tiles: 4, min_tissue_mm2: 0.5}
mlflow: {experiment: small, registered_model: small}
"""


def finished_run(folder: Path) -> Config:
    """What tile, split, train and predict leave of the hand-made cohort."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "medkd.yaml").write_text(EXPERIMENT)
    config = load_config(folder / "medkd.yaml")
    table = pd.DataFrame(PATIENTS, columns=["patient_id", "role", "label", "score"])
    table["slide_id"] = table["patient_id"] + "_s"
    table["path"] = table["slide_id"] + ".svs"
    table[["slide_id", "path", "patient_id", "label"]].to_csv(config.data.slides, index=False)
    table[["patient_id", "label", "role"]].to_parquet(config.splits_file, index=False)
    config.tiles_folder.mkdir()
    for slide_id in table["slide_id"]:
        write_json(config.tiles_folder / f"{slide_id}.json", {"tissue_area_mm2": 2.0})
    config.run_folder.mkdir(parents=True)
    predictions().to_parquet(config.run_folder / "predictions.parquet", index=False)
    write_package(config.model_folder, package_content(config), package_files())
    return config


def package_files() -> dict[str, bytes]:
    return {f"students/{s}.{kind}": b"x" for s in STUDENTS for kind in ("onnx", "safetensors")}


def package_content(config: Config) -> dict:
    roles = {"train": 2, "validation": 4, "test": 5}
    return {
        "schema_version": 1,
        "name": "small",
        "version": "1",
        "created": "2030-01-02",
        "task": "classification",
        "research_use_only": True,
        "classes": ["MSS", "MSI"],
        "positive": "MSI",
        "preprocessing": {"tile": config.tile.model_dump(mode="json")},
        "students": [
            {
                "name": name,
                "network": "resnet10",
                "width": 1.0,
                "parameters": 1,
                "onnx": f"students/{name}.onnx",
                "safetensors": f"students/{name}.safetensors",
            }
            for name in STUDENTS
        ],
        "slide_head": {"pooling": "mean_probability"},
        "calibration": {"kind": "none"},
        "operating_point": None,
        "gates": config.infer.model_dump(mode="json"),
        "slide_level": config.slide_level.model_dump(mode="json"),
        "provenance": {
            "run_id": "0",
            "experiment": "small",
            "run_name": "small",
            "method": "kd_ml",
            "seed": 0,
            "epochs": 1,
            "best_epoch": 1,
            "data_digest": "0" * 64,
            "patients": roles,
            "tiles": roles,
            "trained_on_synthetic": True,
            "software": "medkd",
            "torch": "2",
        },
    }


def track(config: Config) -> dict[str, str]:
    """The MLflow runs that a training leaves."""
    client, experiment = connect(config)
    parent = open_run(client, experiment, "small")
    nested = {name: open_run(client, experiment, name, parent_id=parent) for name in NETWORKS}
    runs = {"parent": parent, **nested}
    write_run_ids(config.run_folder, tracking_uri(config), runs)
    return runs


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Config, dict[str, str], AggregateResult]]:
    """The hand-made cohort, aggregated once; no test writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = finished_run(tmp_path_factory.mktemp("aggregated"))
        runs = track(config)
        yield config, runs, run_aggregate_stage(config)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A finished run that is not tracked, for one test to spoil."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return finished_run(tmp_path / "run")


def test_tables_are_written_as_they_were_aggregated(done) -> None:
    config, _, result = done
    for name, table in (
        ("slide_calls", result.aggregation.slides),
        ("patient_calls", result.aggregation.patients),
    ):
        written = pd.read_parquet(config.run_folder / f"{name}.parquet")
        pd.testing.assert_frame_equal(written, table, check_dtype=False)


def test_slide_calls_can_be_read_in_a_spreadsheet(done) -> None:
    config, _, _ = done
    table = pd.read_csv(config.run_folder / "slide_calls.csv")
    t1 = table[(table["slide_id"] == "t1_s") & (table["network"] == "ensemble")].iloc[0]
    assert (t1["role"], t1["label"], t1["score"], t1["call"]) == (
        "test",
        "MSI",
        0.875,
        "MSI suspected",
    )


def test_the_evaluation_is_written_as_json(done) -> None:
    config, _, result = done
    written = json.loads((config.run_folder / "evaluation.json").read_text())
    assert written == result.aggregation.evaluation
    assert written["synthetic"] is True


def test_plots_are_written_as_png(done) -> None:
    config, _, _ = done
    plots = sorted((config.run_folder / "plots").iterdir())
    assert [path.name for path in plots] == ["confusion.png", "reliability.png", "roc.png"]
    for path in plots:
        with Image.open(path) as image:
            image.verify()


def test_the_operating_point_is_frozen_into_the_package(done) -> None:
    config, _, result = done
    manifest = load_package(config.model_folder).manifest
    assert manifest.operating_point is not None
    frozen = manifest.operating_point.model_dump(mode="json", exclude={"fitted_to_sha256"})
    assert frozen == result.aggregation.operating_point.to_json()
    assert manifest.operating_point.threshold == 0.5
    assert manifest.test_performance is not None
    assert manifest.test_performance["patient_auroc"]["value"] == pytest.approx(5 / 6)
    card = (config.model_folder / "model_card.md").read_text(encoding="utf-8")
    assert "A score of at least 0.5000 counts as MSI" in card
    assert "On 5 test patients (2 MSI): AUROC 0.833" in card


def test_figures_of_each_network_are_in_its_mlflow_run(done) -> None:
    config, runs, _ = done
    client, _ = connect(config)
    metrics = {name: client.get_run(run).data.metrics for name, run in runs.items()}
    assert metrics["parent"]["operating_point/threshold"] == 0.5
    assert metrics["parent"]["test/sensitivity"] == 0.5
    assert metrics["parent"]["test/specificity"] == pytest.approx(2 / 3)
    assert metrics["parent"]["test/patient_auroc"] == pytest.approx(5 / 6)
    assert metrics["teacher"]["test/patient_auroc"] == pytest.approx(1 / 6)
    assert metrics["student_1"]["test/slide_auroc"] == pytest.approx(5 / 6)
    assert "operating_point/threshold" not in metrics["student_1"]


def test_files_and_model_are_in_mlflow(done) -> None:
    config, runs, _ = done
    client, _ = connect(config)
    assert client.get_run(runs["parent"]).info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(runs["parent"])}
    assert {"evaluation.json", "slide_calls.parquet", "slide_calls.csv", "plots"} <= files
    assert client.get_model_version("small", "1").run_id == runs["parent"]


def test_the_terminal_is_told_what_came_of_it(done) -> None:
    config, _, result = done
    assert result.lines == (
        "Calibration: none. Operating point 0.5000 (fixed sensitivity), frozen: sensitivity 1.00, "
        "specificity 0.50 on 4 validation patients.",
        "On 5 test patients (2 MSI): sensitivity 0.500 (0.000 to 1.000), specificity 0.667 "
        "(0.000 to 1.000).",
        f"Model package: {config.model_folder}; in MLflow's registry as models:/small/1",
        f"Figures and tables: {config.run_folder}",
    )
    assert [row[:3] for row in result.auroc_rows] == [
        ("student_0", "0.833", "0.833"),
        ("student_1", "0.833", "0.833"),
        ("teacher", "0.167", "0.167"),
        ("ensemble", "0.833", "0.833"),
    ]


def test_test_patients_of_one_class_are_told_and_the_package_is_still_frozen(run: Config) -> None:
    gone = ["t3", "t4", "t5"]
    table = predictions()
    table[~table["patient_id"].isin(gone)].to_parquet(run.run_folder / "predictions.parquet")
    track(run)
    result = run_aggregate_stage(run)
    assert "On 2 test patients (2 MSI)" in result.lines[1]
    assert result.lines[1].endswith("specificity not available.")
    assert result.auroc_rows[-1] == ("ensemble", "", "not available", "not available")
    expected = one_class().operating_point.threshold
    assert load_package(run.model_folder).manifest.operating_point.threshold == expected
    assert "AUROC not available." in (run.model_folder / "model_card.md").read_text("utf-8")


def spoil_predictions(run: Config) -> None:
    (run.run_folder / "predictions.parquet").unlink()


def damage_predictions(run: Config) -> None:
    (run.run_folder / "predictions.parquet").write_bytes(b"PAR1 and no more")


def spoil_split(run: Config) -> None:
    run.splits_file.unlink()


def spoil_label(run: Config) -> None:
    table = pd.read_csv(run.data.slides)
    table.loc[table["patient_id"] == "t4", "label"] = "MSI"
    table.to_csv(run.data.slides, index=False)


def spoil_role(run: Config) -> None:
    split = pd.read_parquet(run.splits_file)
    again = split[split["patient_id"] == "t1"].assign(role="train")
    pd.concat([split, again]).to_parquet(run.splits_file)


def spoil_record(run: Config) -> None:
    (run.tiles_folder / "t2_s.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            spoil_predictions,
            r"predictions\.parquet: no predictions yet\. Run 'medkd predict' first\.",
        ),
        (
            damage_predictions,
            r"predictions\.parquet: cannot be read: .* Run 'medkd predict' again\.",
        ),
        (spoil_split, r"splits\.parquet: no split yet\. Run 'medkd split' first\."),
        (
            spoil_label,
            r"splits\.parquet: patient 't4' was MSS when the split was made and is MSI now\. "
            r"Remove the file and run 'medkd split' again",
        ),
        (
            spoil_role,
            r"splits\.parquet: patient 't1' has two roles\. Remove the file and run 'medkd split'",
        ),
        (spoil_record, r"t2_s\.json: no such record of a slide\. Run 'medkd tile' first\."),
    ],
)
def test_what_an_earlier_stage_should_have_left_is_told(run: Config, spoil, told: str) -> None:
    spoil(run)
    with pytest.raises(StageError, match=told):
        run_aggregate_stage(run)
    assert not (run.run_folder / "evaluation.json").exists()


def test_a_package_that_was_changed_is_refused(run: Config) -> None:
    (run.model_folder / "students" / "student_0.onnx").write_bytes(b"other")
    with pytest.raises(ModelPackageError, match=r"'students/student_0\.onnx' is not the file"):
        run_aggregate_stage(run)


def test_a_training_tracked_elsewhere_is_told_with_the_keys_to_set(run: Config) -> None:
    with pytest.raises(
        StageError,
        match=r"mlflow\.db: the training was not tracked in this MLflow store\. Set "
        r"MLFLOW_TRACKING_URI and mlflow\.tracking_uri as they were in training\.$",
    ):
        run_aggregate_stage(run)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_environment_is_as_it_was(
    run: Config, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    # MLflow keeps a store in the environment: the next experiment would go to this one's.
    before = tracking_uri(run) if chosen else None
    if before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    track(run)
    run_aggregate_stage(run)
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
