"""Tracking in MLflow: the store, the runs, and what they are told, which never waits for either."""

from medkd.tracking.outbox import OUTBOX_FILE
from medkd.tracking.runs import (
    TrackedRun,
    flatten,
    open_run,
    open_sender,
    read_beginning_ms,
    read_run_ids,
    sending_leftovers,
    tracked_runs,
    write_run_ids,
)
from medkd.tracking.store import connect, store_errors, told, tracking_uri
from medkd.tracking.system_metrics import SystemMetrics

__all__ = [
    "OUTBOX_FILE",
    "SystemMetrics",
    "TrackedRun",
    "connect",
    "flatten",
    "open_run",
    "open_sender",
    "read_beginning_ms",
    "read_run_ids",
    "sending_leftovers",
    "store_errors",
    "told",
    "tracked_runs",
    "tracking_uri",
    "write_run_ids",
]
