"""The names are those that MLflow's page of system metrics shows, the values this machine's."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import pytest
import torch

from medkd.tracking.system_metrics import SystemMetrics


@dataclass
class Run:
    """Keeps what it is told."""

    told: list[tuple[dict[str, float], int]] = field(default_factory=list)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.told.append((dict(metrics), step))


def test_the_machine_is_looked_at_until_the_end() -> None:
    run = Run()
    system = SystemMetrics(run, int(time.time() * 1000) - 60_000, interval_s=0.2)
    while len(run.told) < 3:
        time.sleep(0.01)
    system.stop()
    count = len(run.told)
    metrics, step = run.told[0]
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/disk_usage_percentage",
        "system/network_receive_megabytes",
    } <= set(metrics)
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    used = psutil.virtual_memory().used / 1e6
    assert metrics["system/system_memory_usage_megabytes"] == pytest.approx(used, rel=0.5)
    assert 60 <= step <= 120
    time.sleep(0.5)
    assert len(run.told) == count


def test_the_memory_of_a_gpu_is_told_once_training_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pynvml" else find_spec(name)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3_000_000_000, 4_000_000_000))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    run = Run()
    system = SystemMetrics(run, 0, interval_s=0.05)
    while not run.told:
        time.sleep(0.01)
    assert not [key for key in run.told[0][0] if "gpu" in key]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    count = len(run.told)
    while len(run.told) < count + 2:
        time.sleep(0.01)
    system.stop()
    assert {key: value for key, value in run.told[-1][0].items() if "gpu" in key} == {
        "system/gpu_0_memory_usage_megabytes": 1000.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
    }


def test_an_error_while_looking_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PermissionError("no /proc")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    run = Run()
    system = SystemMetrics(run, 0, interval_s=0.01)
    while not (told := capsys.readouterr().err):
        time.sleep(0.01)
    system.stop()
    assert told == "warning: system metrics end here: no /proc\n"
    assert not run.told
