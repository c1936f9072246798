"""Training tracked by a real MLflow server over HTTP, and read back from it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from medkd.errors import TrackingError
from medkd.slide_level.aggregate_stage import run_aggregate_stage
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.training.predict_stage import run_predict_stage
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server on loopback with its own database and artefact folder; ends with the test."""
    port = free_port()
    folder = tmp_path / "server"
    folder.mkdir()
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
         "--artifacts-destination", str(folder / "artifacts")],
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no server: {(folder / 'log.txt').read_text()[-2000:]}")
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


def test_runs_curves_and_model_over_http(
    server: str, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    config = cohort.config
    result = run_train_stage(config, cohort.rows)
    run_predict_stage(config, cohort.rows)
    run_aggregate_stage(config)
    assert not (config.output / "mlflow.db").exists()

    client = mlflow.MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.info.run_id == result.mlflow_run_id)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in nested) == [
        "small: student_0", "small: student_1", "small: teacher"
    ]  # fmt: skip
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["train.method"] == "kd_ml"
    assert parent.data.tags["medkd.synthetic"] == "true"

    curves = pd.read_csv(config.run_folder / "curves.csv")
    student = next(run for run in nested if run.info.run_name.endswith("student_1"))
    for metric in ("train/kl_from_teacher", "train/kl_from_student", "validation/auroc"):
        history = client.get_metric_history(student.info.run_id, metric)
        expected = curves[(curves["network"] == "student_1") & (curves["metric"] == metric)]
        assert [point.step for point in history] == list(expected["epoch"])
        assert [point.value for point in history] == pytest.approx(list(expected["value"]))
    artefacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {
        "config.yaml",
        "method.yaml",
        "method.png",
        "splits.parquet",
        "evaluation.json",
    } <= artefacts
    plots = {item.path for item in client.list_artifacts(parent.info.run_id, "plots")}
    assert {"plots/roc.png", "plots/reliability.png", "plots/confusion.png"} <= plots

    slide = tmp_path / "new.svs"
    write_slide(
        SlideSpec(label="MSI", seed=99, width_px=1024, height_px=1024, mpp=0.5, site="A"), slide
    )
    model = mlflow.pyfunc.load_model("models:/small/1")
    assert model.metadata.signature is not None
    calls = model.predict(pd.DataFrame({"slide": [str(slide)]}))
    assert list(calls["slide_id"]) == ["new"]
    assert calls["call"][0] in {"MSS", "MSI suspected", "indeterminate", "no result"}
    for form in ({"slide": str(slide)}, {"slide": [str(slide)]}):
        pd.testing.assert_frame_equal(model.predict(form), calls)


def test_a_server_that_is_away_is_told_in_one_line(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError) as error:
        run_train_stage(cohort.config, cohort.rows)
    assert error.match("the MLflow store cannot be used: .* Start the server, or unset")
    assert "\n" not in str(error.value)
