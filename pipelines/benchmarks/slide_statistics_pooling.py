"""What pooling a long file of tile predictions costs, in time and memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.slide_level.streaming import pool_predictions

NETWORKS = ("teacher", "student_0", "student_1", "student_2")
STUDENTS = NETWORKS[1:]
# As pandas writes by default.
GROUP_ROWS = 1024 * 1024


def pooling_figures(rows: int, slides: int, resamples: int, confidence: float) -> dict[str, Any]:
    """Write a file, pool it in a process of its own, and compare all means with those written.

    Returns:
        ``s``: wall-clock seconds of pooling; ``cpu_s``: the same in CPU time; ``peak_mb``: largest
        resident memory of that process, libraries included; ``right``: whether every slide's mean
        is that of what was written, to 1e-12.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictions.parquet"
        began = time.perf_counter()
        expected, written = _write(path, rows, slides)
        print(
            f"{written:,} predictions of {slides:,} slides by {len(NETWORKS)} networks: "
            f"{path.stat().st_size / 1e6:.0f} MB, written in {time.perf_counter() - began:.0f} s"
        )
        command = [sys.executable, __file__, str(path), str(resamples), str(confidence)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    scores = found.pop("scores")
    right = scores.keys() == expected.keys() and all(
        abs(scores[key] - mean) < 1e-12 for key, mean in expected.items()
    )
    print(
        f"  pooled in {found['s']:.1f} s ({found['cpu_s']:.1f} s of CPU time), "
        f"{found['peak_mb']:.0f} MB at most"
    )
    return {**found, "right": right}


def _write(path: Path, rows: int, slides: int) -> tuple[dict[str, float], int]:
    """One network after another, as predict does; means of slides and networks, and the rows."""
    random = np.random.default_rng(0)
    share = random.lognormal(0, 0.6, slides)
    tiles = np.maximum(1, share / share.sum() * rows / len(NETWORKS)).astype(np.int64)
    ends = np.cumsum(tiles)
    slide_of_row = np.repeat(np.arange(slides, dtype=np.int32), tiles)
    place = np.arange(ends[-1]) - (ends - tiles)[slide_of_row]
    names = {
        "slide_id": pa.array([f"TCGA-AA-{n:04d}-01Z-00-DX1" for n in range(slides)]),
        # One patient in ten has two slides.
        "patient_id": pa.array([f"TCGA-AA-{n - (n % 10 == 9):04d}" for n in range(slides)]),
        "role": pa.array(["test"] * slides),
    }
    expected: dict[str, float] = {}
    writer = None
    for network in NETWORKS:
        for start in range(0, len(slide_of_row), GROUP_ROWS):
            part = slice(start, start + GROUP_ROWS)
            of = pa.array(slide_of_row[part])
            probability = random.random(len(of), np.float32)
            columns = {
                name: pa.DictionaryArray.from_arrays(of, values).cast(pa.large_string())
                for name, values in names.items()
            }
            columns |= {
                "x": pa.array((place[part] % 60 * 448).astype(np.int32)),
                "y": pa.array((place[part] // 60 * 448).astype(np.int32)),
                "network": pa.array([network] * len(of), pa.large_string()),
                "probability": pa.array(probability),
            }
            sums = np.bincount(slide_of_row[part], probability.astype(np.float64), slides)
            for slide in np.unique(slide_of_row[part]):
                key = f"{names['slide_id'][int(slide)]} {network}"
                expected[key] = expected.get(key, 0.0) + sums[slide] / tiles[slide]
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=GROUP_ROWS)
    if writer is not None:
        writer.close()
    return expected, len(slide_of_row) * len(NETWORKS)


def _measure(path: Path, resamples: int, confidence: float) -> dict[str, Any]:
    began, began_cpu = time.perf_counter(), time.process_time()
    pooled = pool_predictions(path, STUDENTS, resamples=resamples, confidence=confidence)
    took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    slides = pooled.slides[pooled.slides["network"].isin(NETWORKS)]
    keys = slides["slide_id"] + " " + slides["network"]
    return {
        "s": round(took, 1),
        "cpu_s": round(took_cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "scores": dict(zip(keys, slides["score"], strict=True)),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
