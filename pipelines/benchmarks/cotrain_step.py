"""How long a co-training step takes: medkd's joint step against networks alone and hand loops.

    python pipelines/benchmarks/cotrain_step.py                            # all cores, wall clock
    python pipelines/benchmarks/cotrain_step.py --threads 1 --clock cpu    # on a machine in use
    python pipelines/benchmarks/cotrain_step.py --sizes issue --no-compile

A teacher and three students under KD+ML on random images that lie on the device. All ways run in
this one process, once in each round, in an order drawn anew; the first steps do not count. Times
are medians over the rounds, ratios the medians of each round's quotient, so that what else the
machine does weighs on both sides. Other processes make steps of several threads wait at every
operation; the CPU time of one thread is what hardly changes then.

Where there is a GPU, its joint step is held against the floor of memory traffic and arithmetic. The
last line is a JSON object, null for what could not be measured. Ends with status 1 where the ways
do not compute the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from cotrain_floor import H200_BYTES_PER_S, H200_FLOP_PER_S, step_cost
from cotrain_memory import WAYS as MEMORY_WAYS
from cotrain_memory import peak_mb
from cotrain_ways import (
    SIZES,
    Batch,
    Settings,
    Sizes,
    Step,
    hand_loop,
    joint_step,
    kdlib_pattern,
    loop_and_bare_step,
    random_batch,
    solo_steps,
)

FLOOR_BATCHES = (256, 32)
WARM_UP_STEPS = 3
# Of an epoch through the loop: what it does once in an epoch is spread over these.
EPOCH_STEPS = {"loop": 4, "bare": 4, "tiny_loop": 20, "tiny_bare": 20}
# The joint step's settings that can be chosen, by the suffix of their figures; "" is what the
# training loop makes. Those in SOLO are held against the networks alone, too.
SETTINGS = {
    "": Settings(),
    "fused": Settings(fused=True),
    "bf16": Settings(fused=True, bf16=True),
    "compiled": Settings(fused=True, compiled=True),
    "bf16_compiled": Settings(fused=True, bf16=True, compiled=True),
    "recompute": Settings(fused=True, recompute=True),
}
SOLO = ("", "bf16", "compiled")
# Of the first step's summed losses, which differ by rounding and by the order of updates.
MOST_LOSS_DIFFERENCE = {False: 1e-3, True: 5e-2}

Times = dict[str, list[float]]


class Clock:
    """Seconds of a step.

    Args:
        kind: ``wall``, or ``cpu``: of this process on all its threads.
        device: is waited for on both sides of the step.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self._now: Callable[[], float] = time.process_time if kind == "cpu" else time.perf_counter
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(self, step: Step) -> float:
        """How long one step takes."""
        self._wait()
        began = self._now()
        step()
        self._wait()
        return self._now() - began


def named(way: str, setting: str) -> str:
    """A way's name with that of its settings."""
    return f"{way}_{setting}" if setting else way


def chosen_settings(*, compiled: bool, mode: str) -> dict[str, Settings]:
    """The settings that can be measured here."""
    if compiled:
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
        except Exception as error:
            compiled = False
            print(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    return {
        name: replace(setting, mode=mode)
        for name, setting in SETTINGS.items()
        if compiled or not setting.compiled
    }


def ways_of(
    sizes: Sizes, batch: Batch, settings: dict[str, Settings], closing: ExitStack
) -> dict[str, Step]:
    """Every way, by its name; what they open is closed with ``closing``."""
    loop, bare = loop_and_bare_step(sizes, batch, closing, EPOCH_STEPS["loop"])
    ways = {"hand_loop": hand_loop(sizes, batch), "kdlib_pattern": kdlib_pattern(sizes, batch)}
    for name, setting in settings.items():
        ways[named("medkd", name)] = joint_step(sizes, batch, setting)
        if name in SOLO:
            ways[named("solo", name)] = solo_steps(sizes, batch, setting)
    # Hardly any arithmetic, so that what the loop adds can be seen.
    tiny = replace(sizes, side_px=32, batch=2)
    tiny_batch = random_batch(tiny, batch.labels.device)
    tiny_loop, tiny_bare = loop_and_bare_step(tiny, tiny_batch, closing, EPOCH_STEPS["tiny_loop"])
    return ways | {"loop": loop, "bare": bare, "tiny_loop": tiny_loop, "tiny_bare": tiny_bare}


def timed(ways: dict[str, Step], steps: int, clock: Clock) -> tuple[Times, dict[str, float]]:
    """The times of every way, and the losses of its first step."""
    losses = {}
    for name, way in ways.items():
        began = time.perf_counter()
        losses[name] = float(way())
        for _ in range(WARM_UP_STEPS - 1):
            way()
        print(f"  {name:<22} warm after {time.perf_counter() - began:6.1f} s", flush=True)
    times: Times = {name: [] for name in ways}
    order, dice = list(ways), random.Random(0)
    for _ in range(steps):
        # Who runs before whom matters a little: it leaves its memory in the caches.
        dice.shuffle(order)
        for name in order:
            times[name].append(clock.seconds(ways[name]) / EPOCH_STEPS.get(name, 1))
    return times, losses


def quotients(times: Times, over: str, under: str) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def ratio(times: Times, over: str, under: str) -> float | None:
    """The median quotient, or None where one side was not measured."""
    if over not in times or under not in times:
        return None
    return round(statistics.median(quotients(times, over, under)), 3)


def print_times(times: Times) -> None:
    """A table of medians, and of ratios to the hand loop with their quartiles."""
    print(f"\n  {'way':<22} {'median ms':>10} {'hand loop / it':>15}   quartiles")
    for name, values in times.items():
        own = quotients(times, "hand_loop", name)
        low, _, high = statistics.quantiles(own, n=4)
        print(
            f"  {name:<22} {statistics.median(values) * 1e3:10.1f} {statistics.median(own):15.3f}"
            f"   {low:.3f} to {high:.3f}"
        )


def best_of(times: Times, settings: dict[str, Settings], *, bf16: bool) -> str:
    """The fastest joint step; without ``bf16`` the fastest in float32."""
    names = [named("medkd", name) for name, one in settings.items() if bf16 or not one.bf16]
    return min(names, key=lambda name: statistics.median(times[name]))


def figures(times: Times, settings: dict[str, Settings]) -> dict[str, Any]:
    """What the last line tells of the ways."""
    best, best_float32 = (best_of(times, settings, bf16=bf16) for bf16 in (True, False))
    added = [a - b for a, b in zip(times["tiny_loop"], times["tiny_bare"], strict=True)]
    overhead = ratio(times, "loop", "bare")
    assert overhead is not None
    found: dict[str, Any] = {
        named("rho", name): ratio(times, named("medkd", name), named("solo", name)) for name in SOLO
    }
    return found | {
        "vs_hand_loop": ratio(times, "hand_loop", best),
        "vs_hand_loop_float32": ratio(times, "hand_loop", best_float32),
        "vs_kdlib_pattern": ratio(times, "kdlib_pattern", best),
        "vs_kdlib_pattern_float32": ratio(times, "kdlib_pattern", best_float32),
        "best": best,
        "best_float32": best_float32,
        "overhead": round(overhead - 1, 4),
        "overhead_tiny_ms": round(statistics.median(added) * 1e3, 2),
    }


def different_losses(losses: dict[str, float], settings: dict[str, Settings]) -> str | None:
    """Which way does not compute the hand loop's losses, or None."""
    expected = losses["hand_loop"]
    bf16_of = {named("medkd", name): setting.bf16 for name, setting in settings.items()}
    for name in ("kdlib_pattern", "loop", *bf16_of):
        most = MOST_LOSS_DIFFERENCE[bf16_of.get(name, False)]
        if not abs(losses[name] - expected) <= most * abs(expected):
            return f"{name} starts from a loss of {losses[name]:.5f}, hand_loop from {expected:.5f}"
    return None


def memory_figures(sizes: str, batch: int) -> dict[str, Any]:
    """Peak memory of the joint step, and of that with activation checkpointing, over the hand's."""
    peaks = {way: peak_mb(way, sizes, batch) for way in MEMORY_WAYS}
    told = ", ".join(f"{way} {peak:.0f} MB" for way, peak in peaks.items())
    print(f"\npeak memory of a step in float32: {told}")
    hand = peaks.pop("hand_loop")
    return {
        "memory_vs_hand_loop": round(peaks["medkd"] / hand, 3),
        "memory_recompute_vs_hand_loop": round(peaks["medkd_recompute"] / hand, 3),
    }


def floor_ratios(steps: int, device: torch.device, sizes: Sizes, mode: str) -> dict[str, Any]:
    """The joint step with the best settings over its floor, by batch; null without a GPU."""
    rates = f"{H200_BYTES_PER_S / 1e12:g} TB/s and {H200_FLOP_PER_S / 1e12:g} TFLOP/s"
    print(f"\nfloor of a step of the issue's sizes, at an H200's {rates} (datasheet)")
    found: dict[str, Any] = {}
    for count in FLOOR_BATCHES:
        now = replace(sizes, batch=count)
        cost = step_cost(now)
        seconds = best_on_gpu(now, steps, device, mode) if device.type == "cuda" else None
        times_floor = None if seconds is None else round(seconds / cost.floor_s, 2)
        told = "no GPU" if seconds is None else f"{seconds * 1e3:.1f} ms, {times_floor} x the floor"
        print(
            f"  batch {count:<4} {cost.bytes / 1e9:6.1f} GB in {cost.traffic_s * 1e3:5.1f} ms,"
            f" {cost.flop / 1e12:6.2f} TFLOP in {cost.arithmetic_s * 1e3:5.1f} ms; measured: {told}"
        )
        found[f"floor_ratio_b{count}"] = times_floor
    return found


def best_on_gpu(sizes: Sizes, steps: int, device: torch.device, mode: str) -> float:
    """Median seconds of the joint step in bfloat16, compiled."""
    settings = Settings(fused=True, compiled=True, bf16=True, mode=mode)
    step, clock = joint_step(sizes, random_batch(sizes, device), settings), Clock("wall", device)
    for _ in range(WARM_UP_STEPS):
        step()
    return statistics.median(clock.seconds(step) for _ in range(steps))


def print_profile(name: str, step: Step, device: torch.device) -> None:
    """The operators in which three steps spend most of their own time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            step()
    print(f"\n{name}, three steps")
    sort_by = f"self_{device.type}_time_total"
    print(profile.key_averages().table(sort_by=sort_by, row_limit=15, max_name_column_width=50))


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line."""
    parser.add_argument("--steps", type=int, default=30, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--sizes", choices=tuple(SIZES), help="small on a CPU, issue on a GPU")
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile")
    parser.add_argument("--profile", action="store_true", help="print where the joint step goes")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    if arguments.clock == "cpu" and arguments.threads != 1:
        # Threads that wait for one another spin, and that is CPU time, too.
        parser.error("--clock cpu needs --threads 1")
    if arguments.clock == "cpu" and torch.cuda.is_available():
        parser.error("--clock cpu does not see what the GPU does")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]))
    torch.set_num_threads(arguments.threads)
    # Networks of one class are compiled one by one.
    torch._dynamo.config.recompile_limit = 64
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = arguments.sizes or ("issue" if device.type == "cuda" else "small")
    sizes = SIZES[chosen]
    sizes = replace(sizes, batch=arguments.batch or sizes.batch)
    settings = chosen_settings(compiled=not arguments.no_compile, mode=arguments.compile_mode)
    told = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "torch": torch.__version__,
        "networks": [f"{spec.name} x {spec.width:g}" for spec in sizes.specs],
        "side_px": sizes.side_px,
        "batch": sizes.batch,
        "steps": arguments.steps,
        "compile_mode": arguments.compile_mode,
    }
    print(", ".join(f"{key} {value}" for key, value in told.items()), flush=True)
    load_before = os.getloadavg()[0]
    with ExitStack() as closing:
        ways = ways_of(sizes, random_batch(sizes, device), settings, closing)
        times, losses = timed(ways, arguments.steps, Clock(arguments.clock, device))
    told["load"] = [round(load, 1) for load in (load_before, os.getloadavg()[0])]
    print_times(times)
    found = figures(times, settings)
    if arguments.profile:
        for name in settings:
            print_profile(named("medkd", name), ways[named("medkd", name)], device)
    ways.clear()  # the memory is wanted for the largest batch
    found |= memory_figures(chosen, sizes.batch)
    if "recompute" in settings:
        found["recompute_time"] = ratio(times, "medkd_recompute", "medkd_fused")
    found |= floor_ratios(arguments.steps, device, SIZES["issue"], arguments.compile_mode)
    print(json.dumps(found | {"settings": told}))
    sys.exit(different_losses(losses, settings))


if __name__ == "__main__":
    main()
