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

from medkd.slide_level.score_interval import Interval
from medkd.slide_level.streaming import pool_predictions

NETWORKS = ("teacher", "student_0", "student_1", "student_2")
STUDENTS = NETWORKS[1:]


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
    """One slide after another, a row group each; means of slides and networks, and the rows."""
    random = np.random.default_rng(0)
    share = random.lognormal(0, 0.6, slides)
    tiles = np.maximum(1, share / share.sum() * rows / len(NETWORKS)).astype(np.int64)
    expected: dict[str, float] = {}
    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        {
            **dict.fromkeys(("slide_id", "patient_id", "role"), text),
            **dict.fromkeys(("x", "y"), pa.int32()),
            "network": text,
            "probability": pa.float32(),
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        for slide, count in enumerate(tiles.tolist()):
            slide_id = f"TCGA-AA-{slide:04d}-01Z-00-DX1"
            probabilities = random.random((len(NETWORKS), count), np.float32)
            place = np.tile(np.arange(count, dtype=np.int32), len(NETWORKS))
            constants = {
                "slide_id": slide_id,
                # One patient in ten has two slides.
                "patient_id": f"TCGA-AA-{slide - (slide % 10 == 9):04d}",
                "role": "test",
            }
            columns = {
                name: pa.DictionaryArray.from_arrays(np.zeros(len(place), np.int32), [value])
                for name, value in constants.items()
            } | {
                "x": place % 60 * 448,
                "y": place // 60 * 448,
                "network": pa.DictionaryArray.from_arrays(
                    np.repeat(np.arange(len(NETWORKS), dtype=np.int32), count), list(NETWORKS)
                ),
                "probability": probabilities.ravel(),
            }
            writer.write_table(pa.table(columns, schema=schema))
            means = probabilities.mean(1, dtype=np.float64)
            expected |= {
                f"{slide_id} {network}": float(mean)
                for network, mean in zip(NETWORKS, means, strict=True)
            }
    return expected, int(tiles.sum()) * len(NETWORKS)


def _measure(path: Path, resamples: int, confidence: float) -> dict[str, Any]:
    began, began_cpu = time.perf_counter(), time.process_time()
    pooled = pool_predictions(path, STUDENTS, resamples=resamples, interval=Interval(confidence))
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
