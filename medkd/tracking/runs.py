"""The MLflow runs of one training: a parent run, and a nested run for each network.

Runs are addressed by id, never by MLflow's global active run, so that a later stage or a resumed
process writes into the same runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.config import Config
from medkd.errors import StageError
from medkd.files import write_json
from medkd.tracking.outbox import OUTBOX_FILE, Outbox
from medkd.tracking.sender import METRICS_PER_REQUEST, PARAMS_PER_REQUEST, Sender
from medkd.tracking.store import connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_IDS_FILE = "mlflow.json"


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run. What it is told is handed to ``sender`` and never waits for the store."""

    run_id: str
    sender: Sender

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; a parameter that was logged before with the same value is no error."""
        for part in _parts(params.items(), PARAMS_PER_REQUEST):
            self.sender.put(self.run_id, "params", {key: str(value)[:6000] for key, value in part})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step, with the time of this call."""
        for part in _parts(metrics.items(), METRICS_PER_REQUEST):
            # As text: JSON knows no infinity, and a loss may be one.
            values = {key: repr(float(value)) for key, value in part}
            self.sender.put(self.run_id, "metrics", {"values": values, "step": step})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file as an artefact, as it is when its turn comes."""
        self.sender.put(self.run_id, "file", {"path": str(path.resolve()), "folder": folder})

    def set_status(self, status: str) -> None:
        """Set RUNNING, or end the run as FINISHED, FAILED or KILLED."""
        self.sender.put(self.run_id, "status", {"status": status})


def _parts(items: Iterable[tuple[str, Any]], most: int) -> Iterator[list[tuple[str, Any]]]:
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part


def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    *,
    run_id: str | None = None,
    parent_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Begin a run, or find ``run_id`` again if the store still has it, and return its id."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    if run_id is not None:
        try:
            if client.get_run(run_id).info.lifecycle_stage == "active":
                return run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    all_tags = dict(tags or {})
    if parent_id is not None:
        all_tags[MLFLOW_PARENT_RUN_ID] = parent_id
    run = client.create_run(experiment_id, run_name=name, tags=all_tags)
    return str(run.info.run_id)


def write_run_ids(run_folder: Path, uri: str, runs: Mapping[str, str]) -> None:
    """Note the ids of a training's runs, ``parent`` and each network, and that they begin now."""
    content = {"tracking_uri": uri, "began_ms": int(time.time() * 1000), "runs": dict(runs)}
    write_json(run_folder / RUN_IDS_FILE, content)


def read_run_ids(run_folder: Path, uri: str) -> dict[str, str]:
    """The noted ids, or none if they belong to another store than ``uri``."""
    path = run_folder / RUN_IDS_FILE
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(content["runs"]) if content["tracking_uri"] == uri else {}


def read_beginning_ms(run_folder: Path) -> int:
    """When the noted runs began, milliseconds since 1970."""
    path = run_folder / RUN_IDS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    # Files of earlier versions do not say, but were not written again as long as the runs went on.
    return int(content.get("began_ms", path.stat().st_mtime * 1000))


def open_sender(config: Config) -> Sender:
    """A sender for what a run logs; what an earlier process could not send goes first."""
    return Sender(tracking_uri(config), Outbox(config.run_folder / OUTBOX_FILE))


@contextmanager
def tracked_runs(config: Config) -> Iterator[dict[str, TrackedRun]]:
    """The runs of a finished training, for a later stage to write into; sent at the end.

    Raises:
        StageError: the training was tracked in another store.
        TrackingError: the store does not answer.
    """
    uri = tracking_uri(config)
    run_ids = read_run_ids(config.run_folder, uri)
    if not run_ids:
        raise StageError(
            "the training was not tracked in this MLflow store",
            where=uri,
            remedy="Set MLFLOW_TRACKING_URI and mlflow.tracking_uri as they were in training.",
        )
    connect(config)
    sender = open_sender(config)
    try:
        yield {name: TrackedRun(run_id, sender) for name, run_id in run_ids.items()}
    finally:
        sender.close()


@contextmanager
def sending_leftovers(config: Config) -> Iterator[None]:
    """Meanwhile, send what earlier processes of this run could not."""
    if not (config.run_folder / OUTBOX_FILE).exists():
        yield
        return
    sender = open_sender(config)
    try:
        yield
    finally:
        sender.close()


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``; lists are indexed."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat.update(flatten({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
