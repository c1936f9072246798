"""Two hundred slides, twenty of them bad, while something kills a worker every 1.5 seconds."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medkd.slides.synthetic import SlideSpec, write_slide

GOOD, BAD = 180, 20


def draw(folder: Path) -> Path:
    folder.mkdir()
    templates = []
    for seed in range(6):
        path = folder / f"template-{seed}.svs"
        write_slide(SlideSpec("MSI", seed=seed, width_px=1024, height_px=1024), path)
        templates.append(path)
    rows = []
    for number, template in zip(range(GOOD), itertools.cycle(templates)):
        shutil.copy(template, folder / f"good-{number:03}.svs")
        rows.append(f"good-{number:03}")
    ways = [empty, text, cut_short, blank, absent]
    for number, way in zip(range(BAD), itertools.cycle(ways)):
        way(templates[0], folder / f"bad-{number:02}.svs")
        rows.append(f"bad-{number:02}")
    random.Random(1).shuffle(rows)
    table = folder / "slides.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide_id", "path", "patient_id", "label"))
        writer.writerows((name, f"{name}.svs", f"p-{name}", "MSI") for name in rows)
    return table


def empty(_: Path, path: Path) -> None:
    path.touch()


def text(_: Path, path: Path) -> None:
    path.write_text("this is no slide" * 100)


def cut_short(template: Path, path: Path) -> None:
    path.write_bytes(template.read_bytes()[:100_000])


def blank(_: Path, path: Path) -> None:
    tifffile.imwrite(
        path, np.full((1024, 1024, 3), 243, np.uint8), tile=(256, 256), photometric="rgb",
        compression="zlib", metadata=None,
        description="Aperio Image Library v10.0.0\r\nblank|MPP = 0.5",
    )  # fmt: skip


def absent(_: Path, path: Path) -> None:
    pass


def tile(table: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medkd.cli", "tile", "--set", f"data.slides={table}"]
    return subprocess.Popen(
        [*command, "--set", f"output={output}", "--set", "tile.mpp=1", "--set", "tile.size_px=96"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.zip")
    }


def test_the_run_ends_with_180_whole_slides_and_20_reasons(tmp_path):
    table = draw(tmp_path / "slides")
    calm = tile(table, tmp_path / "calm")
    calm.communicate()
    assert calm.returncode == 1

    disturbed = tile(table, tmp_path / "disturbed")
    stop = threading.Event()
    killed = []

    def disturb() -> None:
        done = 0
        while not stop.wait(1.5):
            # On a slow machine a process may need longer than that to begin: then no slide would
            # ever be done, and each would have lost its three tries.
            before, done = done, len(list((tmp_path / "disturbed" / "tiles").glob("*.json")))
            # A slide is given up when the third process with it is gone, so two may go one after
            # the other; then the slides that they had must be through.
            if done < before + (3 if len(killed) % 2 else 25):
                done = before
                continue
            workers = [pid for pid in children_of(disturbed.pid) if is_python_worker(pid)]
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(workers), signal.SIGKILL)
                killed.append(time.monotonic())

    killer = threading.Thread(target=disturb)
    killer.start()
    try:
        out, err = disturbed.communicate()
    finally:
        stop.set()
        killer.join()
    assert disturbed.returncode == 1, err
    assert len(killed) >= 2
    assert f"{GOOD} slides tiled, 0 were there already, {BAD} failed." in out
    stores = digests(tmp_path / "disturbed" / "tiles")
    assert len(stores) == GOOD
    assert stores == digests(tmp_path / "calm" / "tiles")
    with (tmp_path / "disturbed" / "tiles" / "report.csv").open(newline="") as file:
        failed = {row["slide_id"]: row for row in csv.DictReader(file) if row["status"] == "failed"}
    assert set(failed) == {f"bad-{number:02}" for number in range(BAD)}
    assert all(row["message"] for row in failed.values())
    assert {row["reason"] for row in failed.values()} == {
        "empty_file",
        "unknown_format",
        "no_such_file",
        "no_tissue",
    }
    assert not [p for p in (tmp_path / "disturbed" / "tiles").iterdir() if p.name.startswith(".")]


def is_python_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    table = draw(tmp_path / "slides")
    calm = tile(table, tmp_path / "calm")
    calm.communicate()
    for seconds in (1.2, 1.9, 2.6):
        killed = tile(table, tmp_path / "killed")
        time.sleep(seconds)
        killed.kill()
        killed.communicate()
    resumed = tile(table, tmp_path / "killed")
    out, _ = resumed.communicate()
    assert resumed.returncode == 1
    assert f"{BAD} failed." in out
    assert f" {GOOD} slides tiled, 0 were there" not in f" {out}"
    assert digests(tmp_path / "killed" / "tiles") == digests(tmp_path / "calm" / "tiles")
    index = "tiles/index.parquet"
    assert (tmp_path / "killed" / index).read_bytes() == (tmp_path / "calm" / index).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_stops_cleanly(tmp_path, number, status):
    table = draw(tmp_path / "slides")
    stopped = tile(table, tmp_path / "stopped")
    folder = tmp_path / "stopped" / "tiles"
    while not list(folder.glob("*.json")):
        time.sleep(0.05)
    workers = [pid for pid in children_of(stopped.pid) if is_python_worker(pid)]
    stopped.send_signal(number)
    _, err = stopped.communicate(timeout=30)
    assert stopped.returncode == status
    assert err.splitlines()[-1] == "stopped; what was finished is kept."
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert not [pid for pid in workers if is_python_worker(pid)]
