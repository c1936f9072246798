"""The demo, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medkd.demo import run_demo


def test_a_small_demo_leaves_everything_it_names(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "medkd.cli", "demo", "--out", str(out), "--patients", "12"]
    smaller = ["--set", "train.epochs=1", "--set", "train.max_tiles_per_slide=10"]
    done = subprocess.run([*command, *smaller], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = [line.split("│")[1].strip() for line in done.stdout.splitlines() if "│" in line]
    assert table == ["teacher", "student_0", "student_1", "ensemble"]
    for line in ("Report of the new slide", "Tiling report", "Model package"):
        named = next(text for text in done.stdout.splitlines() if text.startswith(line))
        assert Path(named.removeprefix(line).strip()).exists()
    assert "Synthetic slides: no figure here says anything about real tissue." in done.stdout
    assert "to go" in done.stderr or "left" in done.stderr or "took" in done.stderr

    result = json.loads((out / "results" / "new-slide" / "result.json").read_text())
    assert result["synthetic"] == {"slide": True, "model": True}
    assert (out / "mlflow.db").exists()
    for page in (out / "results/new-slide/report.html", out / "tiles/report.html"):
        assert "synthetic" in page.read_text().lower()

    # Every stage goes on by itself from what the demo left.
    stages = [
        subprocess.run(
            [
                sys.executable,
                "-m",
                "medkd.cli",
                stage,
                "--config",
                str(out / "medkd.yaml"),
                *smaller,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        for stage in ("tile", "aggregate")
    ]
    assert [stage.returncode for stage in stages] == [0, 0], stages
    assert "0 slides tiled, 15 were there already, 0 failed." in stages[0].stdout
    assert "15 of the slides are synthetic" in stages[0].stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_ensemble_learns_and_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    learnt = [run_demo(tmp_path / f"{seed}", seed=seed)["ensemble"] for seed in seeds]
    assert min(learnt) >= 0.9, learnt
    chance = [
        run_demo(tmp_path / f"shuffled-{seed}", seed=seed, shuffle_labels=True)["ensemble"]
        for seed in seeds
    ]
    # An AUROC of 36 test patients without signal has a standard error of some 0.1.
    assert 0.25 < np.mean(chance) < 0.75, chance
