"""Training tracked by a real MLflow server over HTTP, and read back from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from medkd.config import Config
from medkd.errors import TrackingError
from medkd.slide_level.aggregate_stage import run_aggregate_stage
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.tracking import OUTBOX_FILE, TrackedRun, open_run, read_run_ids
from medkd.tracking.outbox import Outbox
from medkd.tracking.sender import Sender
from medkd.training.predict_stage import run_predict_stage
from medkd.training.run_tracking import CohortTracker
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort
from tests.tracking.server import Server, free_port, running_server

# What a call that hands a metric over may take, however long the server does.
LONGEST_CALL_S = 1.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, awake; a request that it does not answer is given up after two seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return running


def wait_until(is_true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def new_run(server: Server, name: str) -> tuple[mlflow.MlflowClient, str]:
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    return client, open_run(client, experiment, name)


def curve(client: mlflow.MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def test_runs_curves_and_model_over_http(
    server: Server, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    config = cohort.config
    result = run_train_stage(config, cohort.rows)
    run_predict_stage(config, cohort.rows)
    run_aggregate_stage(config)
    assert not (config.output / "mlflow.db").exists()

    client = mlflow.MlflowClient(tracking_uri=server.uri)
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
    for run in nested:
        (weights,) = client.list_artifacts(run.info.run_id, "checkpoint")
        own = config.run_folder / "networks" / Path(weights.path).name
        assert own.stem == run.info.run_name.removeprefix("small: ")
        assert weights.file_size == own.stat().st_size
    assert not (config.run_folder / OUTBOX_FILE).exists()
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


def test_no_metric_is_lost_and_no_call_waits_while_the_server_is_frozen_or_gone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, run_id = new_run(server, "outage")
    outbox = Outbox(tmp_path / OUTBOX_FILE)
    sender = Sender(server.uri, outbox, longest_pause_s=2)
    run = TrackedRun(run_id, sender)
    slowest_s = 0.0
    told: list[str] = []

    def log(steps: range) -> None:
        nonlocal slowest_s
        for step in steps:
            began = time.monotonic()
            run.log_metrics({"loss": step / 7}, step)
            slowest_s = max(slowest_s, time.monotonic() - began)

    def is_told(words: str) -> bool:
        told.extend(capsys.readouterr().err.splitlines())
        return words in "".join(told)

    log(range(100))
    wait_until(lambda: not outbox.waiting())
    server.freeze()
    log(range(100, 300))
    wait_until(lambda: is_told("does not take what is logged"))
    frozen_until_ms = time.time() * 1000
    server.thaw()
    wait_until(lambda: not outbox.waiting())
    server.end()
    log(range(300, 500))
    wait_until(
        lambda: is_told(f"127.0.0.1:{server.port}) does not take what is logged: API request")
    )
    log(range(500, 600))
    assert len(outbox.waiting()) == 300
    server.start()
    wait_until(lambda: not outbox.waiting())
    run.set_status("FINISHED")
    sender.close()

    assert slowest_s < LONGEST_CALL_S
    assert curve(client, run_id, "loss") == [(step, step / 7) for step in range(600)]
    made_ms = [point.timestamp for point in client.get_metric_history(run_id, "loss")]
    assert made_ms == sorted(made_ms)
    assert made_ms[299] <= frozen_until_ms
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not outbox.path.exists()
    is_told("")
    assert ["does not take" in line or "takes it again" in line for line in told] == [True] * 4, (
        told
    )
    assert ["takes it again" in line for line in told] == [False, True, False, True]


LOGS_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from medkd.tracking import TrackedRun
from medkd.tracking.outbox import Outbox
from medkd.tracking.sender import Sender
uri, path, run_id = sys.argv[1:]
sender = Sender(uri, Outbox(Path(path)))
run = TrackedRun(run_id, sender)
run.log_params({"learning_rate": 0.1})
for step in range(50):
    run.log_metrics({"loss": step / 3, "auroc": 1.0}, step)
print("logged", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_had_logged_is_sent_by_the_next_one(
    server: Server, tmp_path: Path
) -> None:
    client, run_id = new_run(server, "killed")
    path = tmp_path / OUTBOX_FILE
    server.freeze()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", LOGS_UNTIL_KILLED, server.uri, str(path), run_id],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        server.thaw()
    with path.open("ab") as file:
        file.write(b'{"number": 52, "run_id": "' + run_id.encode()[:9])
    sender = Sender(server.uri, Outbox(path))
    TrackedRun(run_id, sender).log_metrics({"loss": 50 / 3}, 50)
    sender.close(patience_s=60)
    assert curve(client, run_id, "loss") == [(step, step / 3) for step in range(51)]
    assert curve(client, run_id, "auroc") == [(step, 1.0) for step in range(50)]
    assert client.get_run(run_id).data.params == {"learning_rate": "0.1"}
    assert not path.exists()


def test_a_request_that_outlives_its_sender_disturbs_no_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = new_run(server, "outlived")
    path = tmp_path / OUTBOX_FILE
    asked = threading.Event()
    log_batch = mlflow.MlflowClient.log_batch

    def asking(*arguments: object, **named: object) -> None:
        asked.set()
        log_batch(*arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", asking)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    server.freeze()
    sender = Sender(server.uri, Outbox(path))
    for step in range(5):
        TrackedRun(run_id, sender).log_metrics({"loss": step}, step)
    assert asked.wait(60)
    sender.close(patience_s=0.1)
    assert {entry.content["step"] for entry in Outbox(path).waiting()} == set(range(5))
    server.thaw()
    second = Sender(server.uri, Outbox(path))
    TrackedRun(run_id, second).log_metrics({"loss": 5}, 5)
    second.close(patience_s=60)
    wait_until(lambda: all(thread.name != "mlflow-sender" for thread in threading.enumerate()))
    assert curve(client, run_id, "loss") == [(step, step) for step in range(6)]
    assert not path.exists()


def assert_curves_are_complete(server: Server, config: Config) -> None:
    """Every row of curves.csv is in its network's run and in the parent's, once."""
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    run_ids = read_run_ids(config.run_folder, server.uri)
    curves = pd.read_csv(config.run_folder / "curves.csv")
    for (network, metric), rows in curves.groupby(["network", "metric"]):
        expected = list(zip(rows["epoch"], rows["value"], strict=True))
        parent = curve(client, run_ids["parent"], f"{metric}/{network}")
        assert [step for step, _ in parent] == [epoch for epoch, _ in expected]
        assert [value for _, value in parent] == pytest.approx([value for _, value in expected])
        if network in run_ids:
            assert curve(client, run_ids[network], metric) == parent
    for run_id in run_ids.values():
        assert client.get_run(run_id).info.status == "FINISHED"


def after_epoch(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], None]]) -> None:
    """Have something happen when an epoch of a training was logged."""
    log_epoch = CohortTracker.log_epoch

    def logged(self: CohortTracker, epoch: int, rows: object) -> None:
        log_epoch(self, epoch, rows)
        actions.get(epoch, lambda: None)()

    monkeypatch.setattr(CohortTracker, "log_epoch", logged)


def test_a_training_whose_server_is_frozen_for_a_while_has_complete_curves(
    server: Server,
    cohort: Cohort,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    config = cohort.variant("train.epochs=4", "mlflow.experiment=frozen")
    after_epoch(monkeypatch, {1: server.freeze, 3: server.thaw})
    run_train_stage(config, cohort.rows)
    # The end of the run does not wait for ever; the next stage sends what was left.
    if (config.run_folder / OUTBOX_FILE).exists():
        run_predict_stage(config, cohort.rows)
    assert not (config.run_folder / OUTBOX_FILE).exists()
    assert_curves_are_complete(server, config)


@pytest.mark.slow
def test_a_run_that_ends_and_is_resumed_without_its_server_is_sent_by_predict(
    server: Server,
    cohort: Cohort,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    config = cohort.variant("train.epochs=3", "mlflow.experiment=resumed")

    def stop() -> None:
        raise KeyboardInterrupt

    def end_and_stop() -> None:
        server.end()
        stop()

    with monkeypatch.context() as patch:
        after_epoch(patch, {1: end_and_stop})
        with pytest.raises(KeyboardInterrupt):
            run_train_stage(config, cohort.rows)
    run_ids = read_run_ids(config.run_folder, server.uri)
    capsys.readouterr()

    run_train_stage(config, cohort.rows)
    told = capsys.readouterr().err
    assert f"warning: {server.uri}: the MLflow store cannot be used: " in told
    assert "The run goes on; what is logged waits in its folder." in told
    assert f"{config.run_folder / OUTBOX_FILE}: " in told
    assert "wait for MLflow" in told
    assert read_run_ids(config.run_folder, server.uri) == run_ids

    server.start()
    run_predict_stage(config, cohort.rows)
    assert not (config.run_folder / OUTBOX_FILE).exists()
    assert_curves_are_complete(server, config)
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    weights = client.list_artifacts(run_ids["student_0"], "checkpoint")
    assert [item.path for item in weights] == ["checkpoint/student_0.safetensors"]
