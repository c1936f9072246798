"""Tracking in MLflow: where the store is, and the runs of an experiment.

One parent run holds a training run, a nested run each of its networks. Runs are addressed by id,
never by MLflow's global active run, so that a later stage or a resumed process writes into the
same runs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.config import Config
from medkd.errors import StageError, TrackingError
from medkd.files import atomic_path, make_folder, remove_stale_temporaries, write_json
from medkd.progress import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

RUN_IDS_FILE = "mlflow.json"

# MLflow refuses more in one request.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100


def tracking_uri(config: Config) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else the configured one, else sqlite in the output folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or config.mlflow.tracking_uri
    return chosen or f"sqlite:///{(config.output / 'mlflow.db').resolve()}"


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network raise into a :class:`TrackingError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # A database's own words, without the statement it was given.
        message = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
        raise TrackingError(
            f"the MLflow store cannot be used: {message}",
            where=uri,
            remedy="See that the disk has space and that the file can be written, then start again."
            if uri.startswith("sqlite:")
            else "Start the server, or unset MLFLOW_TRACKING_URI and mlflow.tracking_uri to "
            "track in the output folder.",
        ) from error


def connect(config: Config) -> tuple[MlflowClient, str]:
    """Connect to the store and return its client and the id of the configured experiment.

    The store is made if it is the default one and does not exist.

    Raises:
        TrackingError: the store does not answer.
    """
    # A server that is down should be told within seconds, not after MLflow's default minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Only one line of MLflow's is of interest here, and it is told by the command line.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = tracking_uri(config)
    local = uri.startswith("sqlite:")
    if local:
        make_folder(config.output)
    with store_errors(uri):
        if uri.startswith("sqlite:///"):
            _make_store(Path(uri.removeprefix("sqlite:///")))
        client = MlflowClient(tracking_uri=uri)
        name = config.mlflow.experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            folder = (config.output / "mlartifacts").resolve()
            location = make_folder(folder).as_uri() if local else None
            return client, client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment '{name}' was deleted",
                where=uri,
                remedy="Restore it in MLflow, or set mlflow.experiment to another name.",
            )
        return client, found.experiment_id


def _make_store(path: Path) -> None:
    """Make the database whole: MLflow cannot use one whose making was cut short, nor mend it."""
    from mlflow import MlflowClient

    if path.exists():
        return
    remove_stale_temporaries(path.parent)
    with atomic_path(path) as temporary:
        MlflowClient(tracking_uri=f"sqlite:///{temporary.resolve()}").search_experiments()


@dataclass
class TrackedRun:
    """One MLflow run that is written to in batches.

    What the store refuses for a while is kept and sent with the next batch; a failed batch is
    reported on standard error and never ends a training.
    """

    client: MlflowClient
    run_id: str
    pending: list[Metric] = field(default_factory=list)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; a parameter that was logged before with the same value is no error."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            batch = entities[start : start + _PARAMS_PER_BATCH]
            self.client.log_batch(self.run_id, params=batch)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step, and those that an earlier call could not send."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        self.pending += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        try:
            while self.pending:
                self.client.log_batch(self.run_id, metrics=self.pending[:_METRICS_PER_BATCH])
                del self.pending[:_METRICS_PER_BATCH]
        except (MlflowException, OSError) as error:
            warn(
                f"MLflow did not take {len(self.pending)} metrics, they are kept for the next "
                f"try: {str(error)[:200]}"
            )

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file as an artefact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run. ``status``: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    *,
    run_id: str | None = None,
    parent_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrackedRun:
    """Begin a run, or go on in ``run_id`` if the store still has it."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    if run_id is not None:
        try:
            known = client.get_run(run_id)
            if known.info.lifecycle_stage == "active":
                client.update_run(run_id, status="RUNNING")
                return TrackedRun(client, run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    all_tags = dict(tags or {})
    if parent_id is not None:
        all_tags[MLFLOW_PARENT_RUN_ID] = parent_id
    run = client.create_run(experiment_id, run_name=name, tags=all_tags)
    return TrackedRun(client, run.info.run_id)


def write_run_ids(run_folder: Path, uri: str, runs: Mapping[str, str]) -> None:
    """Note the ids of a training's runs: ``parent`` and each network."""
    write_json(run_folder / RUN_IDS_FILE, {"tracking_uri": uri, "runs": dict(runs)})


def read_run_ids(run_folder: Path, uri: str) -> dict[str, str]:
    """The noted ids, or none if they belong to another store than ``uri``."""
    path = run_folder / RUN_IDS_FILE
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(content["runs"]) if content["tracking_uri"] == uri else {}


def open_tracked_runs(config: Config) -> dict[str, TrackedRun]:
    """The runs of a finished training, for a later stage to write into.

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
    client, _ = connect(config)
    return {name: TrackedRun(client, run_id) for name, run_id in run_ids.items()}


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
