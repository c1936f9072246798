"""Use of the machine while a run goes on: processor, memory, disk, network, GPU.

MLflow's own monitors look, and give the names that its pages show as system metrics. Its thread is
not used: it asks the server at each look, and ends for good when that is away.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medkd.progress import warn

if TYPE_CHECKING:
    from medkd.tracking.runs import TrackedRun


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
            monitors = _monitors()
            # What the processor did since the last look: the first one tells nothing.
            psutil.cpu_percent()
            while not self._stopped.wait(self._interval_s):
                metrics = {**_read(monitors), **_gpu_memory()}
                self._run.log_metrics(
                    {f"system/{key}": value for key, value in metrics.items()},
                    step=round(time.time() - self._began_ms / 1000),
                )
        # The system's and the driver's libraries raise errors of their own; none may be silent.
        except Exception as error:
            warn(f"system metrics end here: {error}")


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    if _has_nvml():
        monitors.append(GPUMonitor())
    return monitors


def _read(monitors: list[Any]) -> Mapping[str, float]:
    metrics: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics.update(monitor.aggregate_metrics())
        monitor.clear_metrics()
    return metrics


def _has_nvml() -> bool:
    """Whether NVIDIA's management library can be asked, for the use and power of every GPU."""
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("pynvml") is not None


def _gpu_memory() -> dict[str, float]:
    """Memory of the GPU that trains, in MLflow's names, where NVIDIA's library is not installed.

    Empty before training began to use it: looking at a GPU takes memory on it.
    """
    import torch

    if _has_nvml() or not torch.cuda.is_initialized():
        return {}
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    used_bytes = total_bytes - free_bytes
    return {
        "gpu_0_memory_usage_megabytes": round(used_bytes / 1e6, 1),
        "gpu_0_memory_usage_percentage": round(100 * used_bytes / total_bytes, 1),
    }
