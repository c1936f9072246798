"""A thread that sends what waits in an outbox to MLflow, so that no training waits for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.progress import warn
from medkd.tracking.outbox import Entry, Kind, Outbox, count_metrics
from medkd.tracking.store import new_client, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

# MLflow refuses more in one request.
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100

# The answers of a store that asking again does not change. "No such endpoint" is not among them: a
# proxy says so while the server behind it starts. Nor is "who are you": a token may be renewed.
_FOR_GOOD = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

# A batch is gathered from so many entries; those of one run go in one request.
_ENTRIES_PER_ROUND = 1000

# Time that a file on its way is given when the run ends, beyond that of any other request.
_SLOWEST_UPLOAD_BYTES_PER_S = 1e6


class Sender:
    """Hands entries over at once, and sends them from a thread of its own.

    Entries go in the order in which they came. While the store is away they wait in the outbox's
    file and the store is asked again after 1, 2, 4 ... ``longest_pause_s`` seconds. A batch whose
    answer was lost is sent again; MLflow's stores keep one row for the same name, step, time and
    value, and the time is when the metric was made, so nothing is there twice.

    What the store refuses for good (its run was deleted) stays in the file, is told in one line,
    and is tried again by the next process only.
    """

    def __init__(self, uri: str, outbox: Outbox, *, longest_pause_s: float = 15.0) -> None:
        self._uri, self._outbox, self._longest_pause_s = uri, outbox, longest_pause_s
        self._client: MlflowClient | None = None
        self._wake = threading.Event()
        self._closing = self._abandoned = False
        self._is_away = False
        self._refused: set[int] = set()
        self._refused_runs: set[str] = set()
        self._moved_on = time.monotonic()
        self._uploading_bytes = 0
        # It must not keep a process alive whose server hangs.
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    def put(self, run_id: str, kind: Kind, content: Mapping[str, Any]) -> None:
        """Hand an entry over; see :class:`Entry`. Does not wait for the store.

        Raises:
            OutputError: the outbox cannot be written.
        """
        self._outbox.add(run_id, kind, content)
        if not self._is_away:
            self._wake.set()

    def close(self, patience_s: float = 5.0) -> None:
        """Wait until all is sent, but not for a store that is away.

        Args:
            patience_s: how long the store may take over one request. A file gets a second more for
                each megabyte.
        """
        self._closing = True
        self._moved_on = time.monotonic()
        self._wake.set()
        while self._thread.is_alive():
            allowed_s = patience_s + self._uploading_bytes / _SLOWEST_UPLOAD_BYTES_PER_S
            if time.monotonic() - self._moved_on > allowed_s:
                break
            self._thread.join(0.05)
        # A request may still be under way; the thread ends when that does.
        self._abandoned = True
        self._outbox.close()
        waiting = self._outbox.waiting(but=self._refused)
        if waiting:
            others = sum(entry.kind != "metrics" for entry in waiting)
            warn(
                f"{self._outbox.path}: {count_metrics(waiting)} metrics"
                + (f", {others} files, parameters and states" if others else "")
                + f" wait for MLflow ({self._uri}); the next 'medkd train', 'predict' or "
                "'aggregate' of this run sends them"
            )

    def _run(self) -> None:
        pause_s = 1.0
        while not self._abandoned:
            self._wake.clear()
            entries = self._outbox.waiting(but=self._refused, most=_ENTRIES_PER_ROUND)
            if entries:
                try:
                    self._send_first(entries)
                # A store's own library may raise anything, and the thread must outlive it: what
                # was not sent is still in the outbox, and the user is told.
                except Exception as error:
                    self._went_away(error)
                    if self._closing:
                        return
                    self._wake.wait(pause_s)
                    pause_s = min(2 * pause_s, self._longest_pause_s)
                else:
                    pause_s = 1.0
                continue
            if self._closing:
                return
            self._wake.wait()

    def _send_first(self, entries: list[Entry]) -> None:
        """Send the first entry, with what may go in the same request."""
        first = entries[0]
        if first.kind == "metrics":
            for batch in _by_run(entries):
                self._try(batch)
        else:
            self._try([first])

    def _try(self, entries: list[Entry]) -> None:
        """Send entries of one run, and note that they were sent or refused.

        Raises:
            Exception: whatever the store raises while it is away.
        """
        run_id = entries[0].run_id
        if self._abandoned:
            return
        if run_id in self._refused_runs:
            self._refused.update(entry.number for entry in entries)
            return
        if entries[0].kind == "file" and not Path(entries[0].content["path"]).exists():
            path = entries[0].content["path"]
            warn(f"{path}: is not there any more, so the MLflow run {run_id} goes without it")
            self._outbox.settle(entries)
            return
        try:
            self._request(entries)
        except Exception as error:
            if getattr(error, "error_code", "") not in _FOR_GOOD and entries[0].kind != "file":
                raise
            if not self._is_active(run_id):
                self._refused_runs.add(run_id)
            elif len(entries) > 1:
                # One wrong name must not cost the metrics that were sent with it.
                for entry in entries:
                    self._try([entry])
                return
            self._refuse(entries, error)
            return
        self._came_back()
        self._outbox.settle(entries)
        self._moved_on = time.monotonic()

    def _request(self, entries: list[Entry]) -> None:
        if self._client is None:
            self._client = new_client(self._uri)
        client, first = self._client, entries[0]
        match first.kind:
            case "metrics":
                client.log_batch(first.run_id, metrics=list(_metrics(entries)))
            case "params":
                client.log_batch(first.run_id, params=_params(first))
            case "file":
                self._upload(client, first)
            case "status":
                if first.content["status"] == "RUNNING":
                    client.update_run(first.run_id, status="RUNNING")
                else:
                    client.set_terminated(first.run_id, first.content["status"], first.time_ms)

    def _upload(self, client: MlflowClient, entry: Entry) -> None:
        path = Path(entry.content["path"])
        self._uploading_bytes = path.stat().st_size
        try:
            client.log_artifact(entry.run_id, str(path), entry.content["folder"])
        finally:
            self._uploading_bytes = 0

    def _is_active(self, run_id: str) -> bool:
        """Whether the store still has the run.

        Raises:
            Exception: whatever the store raises while it is away.
        """
        from mlflow.exceptions import MlflowException

        if self._client is None:
            self._client = new_client(self._uri)
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _refuse(self, entries: list[Entry], error: Exception) -> None:
        self._refused.update(entry.number for entry in entries)
        run_id = entries[0].run_id
        if run_id in self._refused_runs:
            what = f"MLflow ({self._uri}) has no run {run_id} any more"
            remedy = "Restore the run in MLflow, or remove the file."
        else:
            what = f"MLflow ({self._uri}) refuses {_named(entries[0])} of run {run_id}"
            remedy = "The next command of this run tries again."
        warn(f"{what}: {told(error)}. It is kept in {self._outbox.path}. {remedy}")

    def _went_away(self, error: Exception) -> None:
        if not self._is_away and not self._closing:
            warn(
                f"MLflow ({self._uri}) does not take what is logged: {told(error)}. The work goes "
                f"on; what is logged waits in {self._outbox.path}."
            )
        self._is_away = True

    def _came_back(self) -> None:
        if self._is_away:
            waiting = count_metrics(self._outbox.waiting(but=self._refused))
            warn(f"MLflow ({self._uri}) takes it again; {waiting} metrics that waited are sent")
        self._is_away = False


def _by_run(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The metrics at the head, each run's together, as many as one request takes."""
    batches: dict[str, list[list[Entry]]] = {}
    for entry in takewhile(lambda one: one.kind == "metrics", entries):
        own = batches.setdefault(entry.run_id, [[]])
        if count_metrics([*own[-1], entry]) > METRICS_PER_REQUEST:
            own.append([])
        own[-1].append(entry)
    for own in batches.values():
        yield from own


def _metrics(entries: Iterable[Entry]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for entry in entries:
        for key, value in entry.content["values"].items():
            yield Metric(key, float(value), entry.time_ms, entry.content["step"])


def _params(entry: Entry) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in entry.content.items()]


def _named(entry: Entry) -> str:
    match entry.kind:
        case "file":
            return f"the file {Path(entry.content['path']).name}"
        case "status":
            return "the status"
        case _:
            values = entry.content["values"] if entry.kind == "metrics" else entry.content
            return f"{entry.kind} such as {next(iter(values))}"
