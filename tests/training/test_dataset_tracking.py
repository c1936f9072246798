"""A training's data in MLflow, read back from the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from medkd.cli import app
from medkd.tracking import read_run_ids, tracking_uri, write_run_ids
from medkd.training.box_set import load_box_set
from medkd.training.data import load_tile_table
from medkd.training.dataset_tracking import DIGEST_TAG, log_summary_page
from medkd.training.tile_set import load_tile_set
from tests.conftest import Cohort
from tests.training.box_cohort import box_cohort
from tests.training.test_run_tracking import track


def test_a_training_names_its_data_and_gets_its_page(cohort: Cohort) -> None:
    config = cohort.variant("mlflow.system_metrics=false")
    track(config, cohort).finish("FINISHED")
    uri = tracking_uri(config)
    run_id = read_run_ids(config.run_folder, uri)["parent"]
    client = MlflowClient(tracking_uri=uri)
    table = load_tile_table(config, cohort.rows)

    (logged,) = client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.name == "slides"
    assert logged.dataset.digest == table.digest[:36]
    assert json.loads(logged.dataset.source) == {"uri": str(config.data.slides.resolve())}
    profile = json.loads(logged.dataset.profile)
    assert sum(profile[f"{role}_patients"] for role in ("train", "validation", "test")) == 16
    assert sum(profile[f"{role}_tiles"] for role in ("train", "validation", "test")) == len(
        table.tiles
    )
    assert json.loads(logged.dataset.schema)["classes"] == ["MSS", "MSI"]
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "training")]

    # The command adds the page; the dataset is there once, on resume too.
    track(config, cohort).finish("FINISHED")
    told = CliRunner().invoke(app, ["summary", "--config", str(cohort.folder / "medkd.yaml")])
    assert told.exit_code == 0
    assert f"dataset and page are in the run {run_id} of 'small'" in told.output
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 1
    assert "summary.html" in [file.path for file in client.list_artifacts(run_id)]


def test_another_dataset_is_not_given_to_the_run(cohort: Cohort) -> None:
    config = cohort.variant("mlflow.system_metrics=false")
    data = load_tile_set(config, cohort.rows)
    page = cohort.folder / "summary.html"
    page.write_text("page")
    assert log_summary_page(config, data, page) is None  # no training yet
    track(config, cohort).finish("FINISHED")
    fewer = cohort.rows[:-1]
    other = load_tile_set(config, fewer)
    assert other.digest != data.digest
    assert log_summary_page(config, other, page) is None
    assert log_summary_page(config, data, page) is not None


def test_a_store_that_is_gone_costs_no_page(cohort: Cohort) -> None:
    config = cohort.variant("mlflow.system_metrics=false")
    track(config, cohort).finish("FINISHED")
    (cohort.folder / "mlflow.db").write_bytes(b"no database at all, but some bytes" * 100)
    told = CliRunner().invoke(app, ["summary", "--config", str(cohort.folder / "medkd.yaml")])
    assert told.exit_code == 0
    assert "the MLflow store cannot be used" in told.output
    assert "The page is written all the same." in told.output
    assert (cohort.folder / "summary.html").exists()


def test_a_training_on_boxes_gets_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = box_cohort(tmp_path / "experiment")
    data = load_box_set(config)
    client = MlflowClient(tracking_uri=uri)
    folder = (tmp_path / "artifacts").as_uri()
    experiment = client.create_experiment("small", artifact_location=folder)
    run_id = client.create_run(experiment, tags={DIGEST_TAG: data.digest}).info.run_id
    config.run_folder.mkdir(parents=True)
    write_run_ids(config.run_folder, uri, {"parent": run_id})
    told = CliRunner().invoke(app, ["summary", "--config", str(config.output / "medkd.yaml")])
    assert told.exit_code == 0
    assert f"Digest of images, boxes and roles: {data.digest}" in told.output
    assert f"dataset and page are in the run {run_id} of 'small'" in told.output
    assert data.digest in (config.output / "summary.html").read_text()
    (logged,) = client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.digest == data.digest[:36]
    assert [file.path for file in client.list_artifacts(run_id)] == ["summary.html"]
