"""What a training tells MLflow besides the curves of its epochs, read back from the store."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from medkd.config import Config
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import TrackingError
from medkd.files import make_folder
from medkd.tracking import OUTBOX_FILE, open_run, read_run_ids, tracking_uri
from medkd.training.cohorts import build_cohort
from medkd.training.run_tracking import CohortTracker
from medkd.training.tile_set import load_tile_set
from tests.conftest import Cohort


def track(config: Config, cohort: Cohort) -> CohortTracker:
    graph = expand(load_method(config.train.method), len(config.train.students))
    folder = make_folder(config.run_folder)
    for name in ("config.yaml", "method.yaml", "method.svg", "method.png"):
        (folder / name).write_text("")
    data = load_tile_set(config, cohort.rows)
    return CohortTracker(config, graph, build_cohort(config, graph), data)


def reader(config: Config) -> tuple[MlflowClient, dict[str, str], Callable[[str], dict]]:
    client = MlflowClient(tracking_uri=tracking_uri(config))
    run_ids = read_run_ids(config.run_folder, tracking_uri(config))
    return client, run_ids, lambda name: client.get_run(run_ids[name]).data.metrics


def test_figures_of_steps_checkpoints_and_a_resumed_run(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cohort.variant("mlflow.system_metrics=false")
    tracker = track(config, cohort)
    tracker.log_steps(
        30,
        {"images_per_s": 120.5, "waiting_for_data": 0.25},
        {"student_0": {"learning_rate": 0.01, "kl_from_teacher": 0.7}, "teacher": {}},
    )
    tracker.finish("KILLED")
    client, run_ids, metrics = reader(config)
    assert metrics("parent") == {
        "step/images_per_s": 120.5,
        "step/waiting_for_data": 0.25,
        "step/learning_rate/student_0": 0.01,
        "step/kl_from_teacher/student_0": 0.7,
    }
    assert metrics("student_0") == {"step/learning_rate": 0.01, "step/kl_from_teacher": 0.7}
    assert metrics("teacher") == {}
    (point,) = client.get_metric_history(run_ids["student_0"], "step/learning_rate")
    assert point.step == 30
    assert client.get_run(run_ids["teacher"]).info.status == "KILLED"

    # Resumed: the same runs.
    noted = json.loads((config.run_folder / "mlflow.json").read_text())
    tracker = track(config, cohort)
    assert json.loads((config.run_folder / "mlflow.json").read_text()) == noted
    networks = make_folder(config.run_folder / "networks")
    (networks / "student_0.safetensors").write_bytes(b"weights")
    tracker.log_result(2, {"student_0": {"auroc": 0.9}})
    tracker.finish("FINISHED")
    assert metrics("parent")["best/auroc/student_0"] == 0.9
    (weights,) = client.list_artifacts(run_ids["student_0"], "checkpoint")
    assert (weights.path, weights.file_size) == ("checkpoint/student_0.safetensors", 7)
    assert not client.list_artifacts(run_ids["student_1"], "checkpoint")
    assert client.get_run(run_ids["teacher"]).info.status == "FINISHED"

    # A nested run that someone deleted, or of which the store knows nothing, is made anew.
    silent = cohort.variant("mlflow.system_metrics=false", "mlflow.log_checkpoints=false")
    client.delete_run(run_ids["student_0"])
    tracker = track(silent, cohort)
    tracker.log_result(2, {})
    tracker.finish("FINISHED")
    _, renewed, _ = reader(config)
    assert renewed["student_0"] != run_ids["student_0"]
    assert {**renewed, "student_0": ""} == {**run_ids, "student_0": ""}
    assert not client.list_artifacts(renewed["student_0"], "checkpoint")
    assert client.get_run(renewed["student_0"]).data.params["role"] == "student"
    experiment = client.get_run(run_ids["parent"]).info.experiment_id
    assert open_run(client, experiment, "small", run_id="0" * 32) != "0" * 32
    assert not (config.run_folder / OUTBOX_FILE).exists()
    assert capsys.readouterr().err == ""


def test_a_store_of_ones_own_that_is_spoilt_stops_a_resumed_run_too(cohort: Cohort) -> None:
    config = cohort.variant("mlflow.system_metrics=false")
    track(config, cohort).finish("KILLED")
    (config.output / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(
        TrackingError,
        match=r"mlflow\.db: the MLflow store cannot be used: .*file is "
        r"not a database\. See that",
    ):
        track(config, cohort)
