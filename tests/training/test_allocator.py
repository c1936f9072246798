"""Freed memory stays with the process: its pages are not cleared again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from medkd.training.allocator import keep_freed_memory

SCRIPT = """
import resource, sys
import torch
from medkd.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    parts = [torch.zeros(40_000_000, dtype=torch.uint8) for _ in range(4)]
    del parts
for _ in range(6):  # Until the heap has room for them all: aligned blocks leave gaps at first.
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_a_step(how: str) -> int:
    """Pages that had to be cleared, in a process of its own: the setting lasts as long as it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_later_step_touches_no_new_page():
    # 160 MB are 39,000 pages of 4 KiB; where the system joins pages into larger ones, fewer.
    assert faults_of_a_step("as it is") > 70
    assert faults_of_a_step("kept") < 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
