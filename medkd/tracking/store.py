"""Where the MLflow store is, and how to reach it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from medkd.config import Config
from medkd.errors import TrackingError
from medkd.files import atomic_path, make_folder, remove_stale_temporaries

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        raise TrackingError(
            f"the MLflow store cannot be used: {told(error)}",
            where=uri,
            remedy="See that the disk has space and that the file can be written, then start again."
            if uri.startswith("sqlite:")
            else "Start the server, or unset MLFLOW_TRACKING_URI and mlflow.tracking_uri to "
            "track in the output folder.",
        ) from error


def told(error: Exception) -> str:
    """An error of the store in one line; of a database its own words, without the statement."""
    words = str(getattr(error, "orig", None) or error).partition("[SQL:")[0]
    return shorten(words, 300, placeholder=" ...")


def new_client(uri: str) -> MlflowClient:
    """A client of the store ``uri``, without asking a server anything yet."""
    # A server that is down should be told within seconds, not after MLflow's default minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Only one line of MLflow's is of interest here, and it is told by the command line.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Runs end in a thread, where a line on standard output would fall into a table.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def connect(config: Config) -> tuple[MlflowClient, str]:
    """Connect to the store and return its client and the id of the configured experiment.

    The store is made if it is the default one and does not exist.

    Raises:
        TrackingError: the store does not answer.
    """
    uri = tracking_uri(config)
    local = uri.startswith("sqlite:")
    if local:
        make_folder(config.output)
    with store_errors(uri):
        if uri.startswith("sqlite:///"):
            _make_store(Path(uri.removeprefix("sqlite:///")))
        client = new_client(uri)
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
    if path.exists():
        return
    remove_stale_temporaries(path.parent)
    with atomic_path(path) as temporary:
        new_client(f"sqlite:///{temporary.resolve()}").search_experiments()
