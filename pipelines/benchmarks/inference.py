"""How fast a slide is called: reading and students together, each alone, and by other ways.

    python pipelines/benchmarks/inference.py                    # all cores, wall clock
    python pipelines/benchmarks/inference.py --clock cpu        # on a machine in use
    python pipelines/benchmarks/inference.py --run RUN          # a finished run: AUROC, too

Two ensembles, of configs/msi_mss.yaml (two ResNet-18, teacher ResNet-50) and of configs/demo.yaml
(two ResNet-10 at a quarter width, teacher ResNet-18 at half width; its keys end in ``_small``),
with random weights: what they cost does not depend on what they have learnt. All ways take turns
in several rounds, after one that does not count; figures are medians over the rounds, ratios
medians of each round's. By the wall clock every way has all cores that the process may use; CPU
time is that of one thread of torch and of all threads and processes of a way together, and says
nothing of overlap. The last line is a JSON object. Ends with status 1 where the overlapped pass
gives another score than one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

VNNI_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
SLIDE_PX = 6144
LARGE_SLIDE_PX = 100_000
POOLED_TILES = 10_000

_FIRST_TILE = """
import os, sys, time
from medkd.inference.students import Students
predict = Students.__call__
def first(self, tiles):
    predict(self, tiles)
    print(time.time(), flush=True)
    os._exit(0)
Students.__call__ = first
from medkd.cli import app
app(["infer", *sys.argv[1:]])
"""


def cpu_s() -> float:
    """CPU time of this process and of its children that ended, seconds."""
    return sum(os.times()[:4])


def timed(
    ways: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Seconds of each way in each round, (rounds,)."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if number:
                seconds[name].append(clock() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def of_ensemble(
    ensemble: Any, title: str, slide: Path, folder: Path, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Measure an ensemble on a slide and print it."""
    import torch
    from inference_ways import build, eager, eager_pass, peer_pass, predict, read_tiles

    from medkd.inference.engine import infer_slide
    from medkd.inference.students import Students

    places, tiles = read_tiles(slide)
    built = build(ensemble, folder, tiles[:: max(len(tiles) // 64, 1)])
    float32, int8 = Students(built.float32), Students(built.int8)
    teacher = Students(built.teacher_alone)
    in_turn = float32.score(float32(tiles)).score
    scores: dict[str, float] = {}

    def whole(name: str, package: Any, students: Students) -> Callable[[], None]:
        def way() -> None:
            found = infer_slide(slide, package, students).raw_score
            assert found is not None
            scores[name] = found

        return way

    ways: dict[str, Callable[[], Any]] = {
        "reading alone": lambda: read_tiles(slide),
        "students alone": lambda: predict(float32, tiles),
        "students alone, int8": lambda: predict(int8, tiles),
        "whole pass": whole("float32", built.float32, float32),
        "whole pass, int8": whole("int8", built.int8, int8),
        "teacher, whole pass by the same engine": whole("teacher", built.teacher_alone, teacher),
        "teacher in torch, medkd's reading": lambda: eager_pass([built.teacher], slide),
        "students in torch, planes": lambda: eager(built.students, tiles, torch.contiguous_format),
        "students in torch, channels last": lambda: eager(
            built.students, tiles, torch.channels_last
        ),
        "peers' pattern": lambda: peer_pass(built.students, slide, places),
    }
    seconds = timed(ways, rounds, clock)
    print(f"\n{title}: {len(tiles)} tiles")
    for name, values in seconds.items():
        print(f"  {name:<40} {statistics.median(values):7.2f} s")
    print(f"  slide score in int8 less that in float32: {scores['int8'] - scores['float32']:+.5f}")
    sys.stdout.flush()
    if abs(scores["float32"] - in_turn) > 1e-9:
        sys.exit(f"the overlapped pass gave {scores['float32']}, one after the other {in_turn}")

    def ratio(of: np.ndarray, to: np.ndarray) -> float:
        return round(statistics.median(of / to), 2)

    passed, passed_int8 = seconds["whole pass"], seconds["whole pass, int8"]
    in_torch = np.minimum(
        seconds["students in torch, planes"], seconds["students in torch, channels last"]
    )
    reading = seconds["reading alone"]
    peers = seconds["peers' pattern"]
    by_torch = seconds["teacher in torch, medkd's reading"]
    students, students_int8 = seconds["students alone"], seconds["students alone, int8"]
    overlap: dict[str, Any] = {
        "overlap": ratio(passed, np.maximum(reading, students)),
        "overlap_int8": ratio(passed_int8, np.maximum(reading, students_int8)),
        "in_turn_vs_overlapped": ratio(reading + students, passed),
    }
    if clock is cpu_s:
        overlap = dict.fromkeys(overlap)
    return {
        **overlap,
        "onnx_vs_eager": ratio(in_torch, seconds["students alone"]),
        "int8_vs_fp32": ratio(seconds["students alone"], seconds["students alone, int8"]),
        "int8_score_change": round(scores["int8"] - scores["float32"], 5),
        "vs_teacher": ratio(by_torch, passed),
        "vs_teacher_int8": ratio(by_torch, passed_int8),
        "vs_teacher_same_engine": ratio(seconds["teacher, whole pass by the same engine"], passed),
        "vs_peer_pattern": ratio(peers, passed),
        "vs_peer_pattern_int8": ratio(peers, passed_int8),
    }


def peak_mb(package: Path, slide: Path) -> float:
    """Largest memory of a process that infers the slide, its libraries included."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", str(package), str(slide)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def infer_and_tell_peak(package: Path, slide: Path) -> None:
    """Infer the slide in this process and print the peak, megabytes."""
    from medkd.inference.infer_stage import infer_slides
    from medkd.inference.package import load_package

    with tempfile.TemporaryDirectory() as folder:
        failed = infer_slides([slide], load_package(package), Path(folder)).failed
    assert not failed, failed
    # Not getrusage: it counts what the parent had when it began this process.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def cold_start_s(package: Path, slide: Path, rounds: int) -> float:
    """From the start of ``medkd infer`` to its first predicted batch, seconds, median."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            began = time.time()
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_TILE, slide, "--model", package, "--out", folder],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).resolve().parents[2],
            )
            found.append(float(done.stdout.splitlines()[-1]) - began)
    return statistics.median(found)


def pooling_s(rounds: int) -> float:
    """Score and interval of a slide of many tiles by two students, seconds, median."""
    from medkd.config import SlideLevelConfig
    from medkd.slide_level.pooling import pool_slide
    from medkd.slide_level.score_interval import Interval

    config = SlideLevelConfig()
    random = np.random.default_rng(0)
    seen = {name: random.random(POOLED_TILES, np.float32) for name in ("student_0", "student_1")}
    interval = Interval(config.confidence, config.interval)
    resamples = config.bootstrap_resamples
    ways = {"pool": lambda: pool_slide(seen, resamples=resamples, interval=interval)}
    return statistics.median(timed(ways, rounds, time.perf_counter)["pool"])


def auroc_difference(run: Path) -> dict[str, Any]:
    """Students' slide AUROC less the teacher's on the run's test patients, with its interval."""
    import pandas as pd

    from medkd.slide_level.resampling import bootstrap_difference
    from medkd.slide_level.statistics import AUROC

    calls = pd.read_parquet(run / "slide_calls.parquet")
    calls = calls[calls["role"] == "test"]
    scores = calls.pivot_table(index="slide_id", columns="network", values="score")
    slides = calls.drop_duplicates("slide_id").set_index("slide_id").loc[scores.index]
    manifest = json.loads((run / "model" / "model.json").read_text())
    compared = bootstrap_difference(
        (slides["label"] == manifest["positive"]).to_numpy(),
        scores["ensemble"].to_numpy(),
        scores["teacher"].to_numpy(),
        (AUROC, AUROC),
        resamples=2000,
        confidence=0.95,
        patients=slides["patient_id"].to_numpy(),
    )
    difference = compared.difference
    print(f"\nslide AUROC: students {compared.first}, teacher {compared.second}; {difference}")
    return {
        "auroc_difference": difference.value,
        "auroc_difference_interval": [difference.lower, difference.upper],
    }


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit integers four at a time."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].splitlines()[0]
    return bool(VNNI_FLAGS.intersection(flags.split()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, help="folder of a finished run with a teacher")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--peak-of", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        infer_and_tell_peak(*arguments.peak_of)
        return
    import torch
    from inference_ways import DEMO, MSI_MSS
    from tiling import sparse_slide

    from medkd.inference.overlap import usable_cores
    from medkd.slides.synthetic import SlideSpec, write_slide

    torch.manual_seed(0)
    clock = cpu_s if arguments.clock == "cpu" else time.perf_counter
    torch.set_num_threads(1 if clock is cpu_s else usable_cores())
    found: dict[str, Any] = {
        "clock": arguments.clock,
        "cores": usable_cores(),
        "load_before": round(os.getloadavg()[0], 1),
        "vnni": has_vnni(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = folder / "slide.svs"
        write_slide(SlideSpec("MSI", 1, SLIDE_PX, SLIDE_PX, 0.25), slide)
        for ensemble, title, suffix in (
            (MSI_MSS, "two ResNet-18", ""),
            (DEMO, "two ResNet-10 at a quarter width", "_small"),
        ):
            at = folder / f"ensemble{suffix}"
            ratios = of_ensemble(ensemble, title, slide, at, arguments.rounds, clock)
            found |= {f"{key}{suffix}": value for key, value in ratios.items()}
        package = folder / "ensemble" / "float32"
        found["cold_start_s"] = round(cold_start_s(package, slide, arguments.rounds), 2)
        print(f"\nfirst batch after {found['cold_start_s']} s")
        large = folder / "large.svs"
        sparse_slide(large, LARGE_SLIDE_PX)
        found["peak_mb"] = peak_mb(package, large)
        print(f"peak memory, slide of {LARGE_SLIDE_PX:,} px: {found['peak_mb']:.0f} MB")
        found["pooling_s"] = round(pooling_s(arguments.rounds), 2)
        print(f"score and interval of {POOLED_TILES:,} tiles: {found['pooling_s']} s")
    found |= {"auroc_difference": None, "auroc_difference_interval": None}
    if arguments.run:
        found |= auroc_difference(arguments.run)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
