"""Use of the machine while a run goes on: processor, memory, disk, network, GPU.

MLflow's own monitors look, and give the names that its pages show as system metrics. Its thread is
not used: it asks the server at each look, and ends for good when that is away.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from medkd.progress import warn

if TYPE_CHECKING:
    from medkd.tracking.runs import TrackedRun

_Reader = Callable[[], dict[str, float]]


class SystemMetrics:
    """Logs ``system/...`` to a run every ``interval_s`` seconds, until :meth:`stop`.

    The step is the number of seconds since the run began (``began_ms``, milliseconds since 1970),
    so that a resumed run's curve goes on.
    """

    def __init__(self, run: TrackedRun, began_ms: int, *, interval_s: float = 10.0) -> None:
        self._run, self._began_ms, self._interval_s = run, began_ms, interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; nothing is logged after this."""
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        try:
            readers = _readers()
            # What the processor did since the last look: the first one tells nothing.
            psutil.cpu_percent()
            while not self._stopped.wait(self._interval_s):
                self._run.log_metrics(
                    {f"system/{key}": value for read in readers for key, value in read().items()},
                    step=round(time.time() - self._began_ms / 1000),
                )
        # The system's and the driver's libraries raise errors of their own; none may be silent.
        except Exception as error:
            warn(f"system metrics end here: {error}")


def _readers() -> list[_Reader]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = (CPUMonitor(), DiskMonitor(), NetworkMonitor())
    return [*(partial(_read, monitor) for monitor in monitors), _gpu_reader()]


def _gpu_reader() -> _Reader:
    """Use, memory and power of every NVIDIA GPU; without NVIDIA's library the memory of one."""
    import torch

    if torch.cuda.is_available() and importlib.util.find_spec("pynvml") is not None:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        try:
            return partial(_read, GPUMonitor())
        except RuntimeError as error:
            warn(f"only the GPU's memory is among the system metrics: {error}")
    return _gpu_memory


def _read(monitor: Any) -> dict[str, float]:
    monitor.collect_metrics()
    metrics = dict(monitor.aggregate_metrics())
    monitor.clear_metrics()
    return metrics


def _gpu_memory() -> dict[str, float]:
    """Memory of the GPU that trains, under MLflow's names.

    Empty before training began to use it: looking at a GPU takes memory on it.
    """
    import torch

    if not torch.cuda.is_initialized():
        return {}
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    used_bytes = total_bytes - free_bytes
    return {
        "gpu_0_memory_usage_megabytes": round(used_bytes / 1e6, 1),
        "gpu_0_memory_usage_percentage": round(100 * used_bytes / total_bytes, 1),
    }
