"""What a store refuses for good costs that alone, and is told once. The store is a real one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from medkd.tracking import TrackedRun
from medkd.tracking.outbox import Outbox
from medkd.tracking.sender import Sender
from medkd.tracking.store import new_client


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MlflowClient, str]:
    """A database, its client, and an experiment."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = new_client(uri)
    location = (folder / "artifacts").as_uri()
    return uri, client, client.create_experiment("refusals", artifact_location=location)


@pytest.fixture
def sender(store: tuple[str, MlflowClient, str], tmp_path: Path) -> Iterator[Sender]:
    sender = Sender(store[0], Outbox(tmp_path / "outbox.jsonl"))
    yield sender
    sender.close()


def test_everything_arrives_as_it_was_logged(store, sender: Sender, tmp_path: Path) -> None:
    _, client, experiment = store
    run = TrackedRun(client.create_run(experiment).info.run_id, sender)
    began_ms = time.time() * 1000
    run.log_params({f"p{number}": number for number in range(150)})
    run.log_metrics({f"m{number}": number / 3 for number in range(1500)}, 4)
    for step, value in enumerate((0.1, math.inf, math.nan)):
        run.log_metrics({"loss": value}, step)
    logged_ms = time.time() * 1000
    (tmp_path / "table.csv").write_text("a\n1\n")
    run.log_file(tmp_path / "table.csv", "tables")
    run.set_status("KILLED")
    sender.close()
    assert not (tmp_path / "outbox.jsonl").exists()

    known = client.get_run(run.run_id)
    assert known.data.params == {f"p{number}": str(number) for number in range(150)}
    assert known.data.metrics["m1499"] == 1499 / 3
    assert known.info.status == "KILLED"
    assert [item.path for item in client.list_artifacts(run.run_id, "tables")] == [
        "tables/table.csv"
    ]
    history = client.get_metric_history(run.run_id, "loss")
    assert [point.step for point in history] == [0, 1, 2]
    assert history[0].value == 0.1
    # The database has the largest number for infinity.
    assert history[1].value > 1e308
    assert math.isnan(history[2].value)
    assert all(int(began_ms) <= point.timestamp <= logged_ms for point in history)


def test_a_deleted_run_is_told_once_and_costs_the_others_nothing(
    store, sender: Sender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, client, experiment = store
    deleted = TrackedRun(client.create_run(experiment).info.run_id, sender)
    kept = TrackedRun(client.create_run(experiment).info.run_id, sender)
    client.delete_run(deleted.run_id)
    for step in range(20):
        deleted.log_metrics({"loss": step}, step)
        kept.log_metrics({"loss": step}, step)
    deleted.set_status("FINISHED")
    sender.close()
    assert len(client.get_metric_history(kept.run_id, "loss")) == 20
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(
        f"warning: MLflow ({uri}) has no run {deleted.run_id} any more: The run {deleted.run_id} "
        "must be in the 'active' state"
    )
    assert told[0].endswith(
        f"It is kept in {tmp_path / 'outbox.jsonl'}. Restore the run in MLflow, or remove the file."
    )

    client.restore_run(deleted.run_id)
    Sender(uri, Outbox(tmp_path / "outbox.jsonl")).close()
    history = client.get_metric_history(deleted.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(n, n) for n in range(20)]
    assert client.get_run(deleted.run_id).info.status == "FINISHED"
    assert not (tmp_path / "outbox.jsonl").exists()


def test_one_wrong_name_costs_that_metric_alone(
    store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, client, experiment = store
    run_id = client.create_run(experiment).info.run_id
    outbox = Outbox(tmp_path / "outbox.jsonl")
    for step, name in enumerate(("loss", "loss?", "loss")):
        outbox.add(run_id, "metrics", {"values": {name: "1.0"}, "step": step})
    Sender(uri, outbox).close()
    history = client.get_metric_history(run_id, "loss")
    assert [point.step for point in history] == [0, 2]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"refuses metrics such as loss? of run {run_id}: " in told[0]
    assert [entry.content["step"] for entry in Outbox(outbox.path).waiting()] == [1]


def test_a_file_that_was_removed_is_told_and_forgotten(
    store, sender: Sender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, client, experiment = store
    run = TrackedRun(client.create_run(experiment).info.run_id, sender)
    run.log_file(tmp_path / "gone.png")
    run.log_metrics({"loss": 1}, 0)
    sender.close()
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'gone.png'}: is not there any more, so the MLflow run {run.run_id} "
        "goes without it\n"
    )
    assert client.get_run(run.run_id).data.metrics == {"loss": 1}
    assert not (tmp_path / "outbox.jsonl").exists()


def test_a_file_that_cannot_be_stored_does_not_hold_up_the_metrics(
    store, sender: Sender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, client, experiment = store
    run = TrackedRun(client.create_run(experiment).info.run_id, sender)
    folder = tmp_path / "a_folder_in_the_way"
    folder.write_text("")
    artefacts = Path(client.get_run(run.run_id).info.artifact_uri.removeprefix("file://"))
    artefacts.mkdir(parents=True)
    (artefacts / "plots").write_text("a file where a folder is needed")
    run.log_file(folder, "plots")
    run.log_metrics({"loss": 1}, 0)
    sender.close()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "refuses the file a_folder_in_the_way of run" in told[0]
    assert told[0].endswith("The next command of this run tries again.")
    assert client.get_run(run.run_id).data.metrics == {"loss": 1}
    (artefacts / "plots").unlink()
    Sender(store[0], Outbox(tmp_path / "outbox.jsonl")).close()
    assert len(client.list_artifacts(run.run_id, "plots")) == 1


def test_a_store_that_is_away_is_told_with_what_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tracking.server import free_port

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, path = f"http://127.0.0.1:{free_port()}", tmp_path / "outbox.jsonl"
    sender = Sender(uri, Outbox(path))
    run = TrackedRun("0" * 32, sender)
    for step in range(3):
        run.log_metrics({"loss": 1, "auroc": 0.5}, step)
    while not (told := capsys.readouterr().err):
        time.sleep(0.01)
    run.set_status("FINISHED")
    sender.close()
    assert told.startswith(f"warning: MLflow ({uri}) does not take what is logged: ")
    assert told.endswith(f". The work goes on; what is logged waits in {path}.\n")
    assert told.count("\n") == 1
    assert capsys.readouterr().err == (
        f"warning: {path}: 6 metrics, 1 files, parameters and states wait for MLflow ({uri}); the "
        "next 'medkd train', 'predict' or 'aggregate' of this run sends them\n"
    )
