"""How much memory a co-training step takes at its peak, each way in a process of its own.

    python pipelines/benchmarks/cotrain_memory.py medkd --sizes small

prints megabytes: on a GPU what torch held at most, on a CPU by how much the process grew over what
it was before the networks and their batch were made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from cotrain_ways import SIZES, Settings, Sizes, Step, hand_loop, joint_step, random_batch

WAYS = ("hand_loop", "medkd", "medkd_recompute")
STEPS = 3


def peak_mb(way: str, sizes: str, batch: int) -> float:
    """Of one way, measured in a process of its own."""
    command = [sys.executable, str(Path(__file__)), way, "--sizes", sizes, "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def grown_mb(way: str, name: str, batch: int, device: torch.device) -> float:
    """By how much this process grows in a few steps."""
    sizes = replace(SIZES[name], batch=batch)
    # What torch makes once in a process, for whatever it computes.
    small = replace(sizes, side_px=32, batch=2)
    for_once = _step(way, small, device)
    for_once()
    before = most_mb()
    step = _step(way, sizes, device)
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return most_mb() - before


def most_mb() -> float:
    """The most memory that this process ever had."""
    # Not getrusage's ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _step(way: str, sizes: Sizes, device: torch.device) -> Step:
    shown = random_batch(sizes, device)
    if way == "hand_loop":
        return hand_loop(sizes, shown)
    return joint_step(sizes, shown, Settings(recompute=way == "medkd_recompute"))


def main() -> None:
    """Measure one way and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--sizes", choices=tuple(SIZES), default="small")
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = arguments.batch or SIZES[arguments.sizes].batch
    print(f"{grown_mb(arguments.way, arguments.sizes, batch, device):.1f}")


if __name__ == "__main__":
    main()
