"""What an index of many tiles costs: opening it, and holding it in a loader's worker."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.config import load_config
from medkd.datasets.patches import PatchItems, patch_items
from medkd.datasets.tables import read_slides
from medkd.files import write_json
from medkd.slides.store import INDEX_COLUMNS, INDEX_NAME, RANGE_COLUMNS
from medkd.training.data import load_tile_table

SLIDES = 500
OPENINGS = 5
ROLES = ("train", "train", "validation", "test")


def index_figures(tiles: int) -> dict[str, Any]:
    """Measure in processes of their own.

    Returns:
        ``index_open_s``: wall-clock seconds, median of some openings, of reading the index and
        joining labels and split; ``index_open_cpu_s``: the same in CPU time; ``index_mb``: memory
        (proportional set size) that a worker holds more than with an index of 500 tiles, the
        larger of a forked and a spawned one, each after every item was asked for; ``worker_mb``:
        all that such a worker holds.
    """
    found = {}
    for count in (SLIDES, tiles):
        with tempfile.TemporaryDirectory() as name:
            _write(Path(name), count)
            command = [sys.executable, __file__, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[count] = json.loads(done.stdout.splitlines()[-1])
    large, small = found[tiles], found[SLIDES]
    more = {way: large["mb"][way] - small["mb"][way] for way in large["mb"]}
    print(f"\nan index of {tiles:,} tiles of {SLIDES} slides")
    print(f"  opened in {large['open_s']:.2f} s ({large['open_cpu_s']:.2f} s of CPU time)")
    for way, value in more.items():
        print(f"  {way} worker: {value:.0f} MB more, {large['mb'][way]:.0f} MB in all")
    return {
        "index_tiles": tiles,
        "index_open_s": round(large["open_s"], 2),
        "index_open_cpu_s": round(large["open_cpu_s"], 2),
        "index_mb": round(max(more.values())),
        "worker_mb": round(max(large["mb"].values())),
    }


def _write(folder: Path, tiles: int) -> None:
    """Index, records of the slides, table and split, as the stages before write them."""
    (folder / "medkd.yaml").write_text(
        "output: .\ndata: {slides: slides.csv}\ntrain: {cache_mb: 0}\n"
    )
    config = load_config(folder / "medkd.yaml")
    numbers = np.arange(SLIDES)
    rows = pd.DataFrame({"slide_id": [f"TCGA-AA-{n:04d}-01Z-00-DX1" for n in numbers]})
    rows["path"] = rows["slide_id"] + ".svs"
    rows["patient_id"] = rows["slide_id"].str.slice(0, 12)
    rows["label"] = [config.data.classes[n % 2] for n in numbers]
    rows["site"] = [f"site {n % 20}" for n in numbers]
    rows.to_csv(folder / "slides.csv", index=False)
    roles = [ROLES[n // 2 % len(ROLES)] for n in numbers]
    rows[["patient_id", "label"]].assign(role=roles).to_parquet(config.splits_file)
    each = tiles // SLIDES
    place = np.tile(np.arange(each), SLIDES)
    index = rows.loc[np.repeat(numbers, each), ["slide_id", "patient_id"]].reset_index(drop=True)
    index = index.assign(
        x=place % 60 * 448,
        y=place // 60 * 448,
        mpp=config.tile.mpp,
        size_px=config.tile.size_px,
        tissue_fraction=np.random.default_rng(0).random(len(index)),
        focus=0.1,
        offset_bytes=place * 15_037,
        length_bytes=15_000,
    )
    config.tiles_folder.mkdir()
    index.astype(INDEX_COLUMNS | RANGE_COLUMNS).to_parquet(config.tiles_folder / INDEX_NAME)
    for slide in rows["slide_id"]:
        record = {"parameters": config.tile.recorded(), "slide": {"synthetic": True}}
        write_json(config.tiles_folder / f"{slide}.json", record)


def _measure(folder: Path) -> dict[str, Any]:
    config = load_config(folder / "medkd.yaml")
    rows = read_slides(config.data.slides, config.data.classes)
    wall, cpu = [], []
    for _ in range(OPENINGS):
        began, began_cpu = time.perf_counter(), time.process_time()
        tiles = load_tile_table(config, rows).tiles
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    # All tiles, where a training hands on those of one role.
    items = patch_items(tiles, config.tiles_folder, config.data.classes)
    return {
        "open_s": statistics.median(wall),
        "open_cpu_s": statistics.median(cpu),
        "mb": {way: _worker_mb(items, way) for way in ("fork", "spawn")},
    }


def _worker_mb(items: PatchItems, way: Any) -> float:
    context = multiprocessing.get_context(way)
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(items, there))
    process.start()
    held = here.recv()
    process.join()
    return float(held)


def _hold(items: PatchItems, answer: Connection) -> None:
    for item in items:
        assert item["label"] in (0, 1)
    kilobytes = next(
        int(line.split()[1])
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
    answer.send(kilobytes * 1024 / 1e6)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
