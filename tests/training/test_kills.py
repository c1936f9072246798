"""SIGKILL at random moments, again and again: the run ends as if it had never been killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medkd.config import Config, load_config
from tests.conftest import Cohort

KILLS = 20
SETTINGS = (
    "train.method=pcl",  # means of weights, views, shared stages
    "train.epochs=150",
    "train.batch_size=16",
    "train.accumulate=2",
    "train.ema_decay=0.9",
    "train.clip_norm=1.0",
    "train.save_steps=1",
)


def train(folder: Path, name: str) -> None:
    """In a process of its own, so that it can be killed."""
    from medkd.datasets.tables import read_slides
    from medkd.training.train_stage import run_train_stage

    torch.set_num_threads(1)
    with (folder / f"{name}.txt").open("a", buffering=1) as told:
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    config = configured(folder, name)
    run_train_stage(config, read_slides(config.data.slides, config.data.classes))


def configured(folder: Path, name: str) -> Config:
    return load_config(folder / "medkd.yaml", (*SETTINGS, f"train.name={name}"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times_it_ends_as_if_never_killed(cohort: Cohort) -> None:
    # A server process that has imported everything, so that a start takes no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medkd.training.train_stage", "mlflow", "tests.conftest"])
    folder = cohort.folder
    folder_of_saves = configured(folder, "killed").run_folder / "checkpoints"

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(folder, name))
        process.start()
        return process

    began = time.monotonic()
    whole = start("whole")
    first_save = configured(folder, "whole").run_folder / "checkpoints" / "last.pt"
    while whole.is_alive() and not first_save.exists():
        time.sleep(0.01)
    starting_s = time.monotonic() - began
    whole.join(600)
    assert whole.exitcode == 0, (folder / "whole.txt").read_text()[-2000:]
    training_s = time.monotonic() - began - starting_s

    dice = random.Random(0)
    in_a_save = 0
    position: list[tuple[int, int]] = []
    for kill in range(KILLS):
        process = start("killed")
        assert process.pid is not None
        if kill % 2:  # at any moment, before the first step too
            process.join(dice.uniform(0, starting_s + training_s / (2 * KILLS)))
        else:  # in the middle of a save
            process.join(dice.uniform(0, starting_s))
            deadline = time.monotonic() + 20
            while process.is_alive() and time.monotonic() < deadline:
                if any(folder_of_saves.glob(".*")) or any(folder_of_saves.glob("*.medkd-tmp")):
                    break
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        in_a_save += bool(
            any(folder_of_saves.glob(".*")) or any(folder_of_saves.glob("*.medkd-tmp"))
        )
        position.append(progress_of(folder_of_saves))
    assert len(position) == KILLS, (folder / "killed.txt").read_text()[-2000:]
    assert in_a_save >= 3
    assert position == sorted(position)  # nothing that was saved is lost
    last = start("killed")
    last.join(600)
    assert last.exitcode == 0, (folder / "killed.txt").read_text()[-2000:]

    assert_same_ending(
        configured(folder, "whole").run_folder, configured(folder, "killed").run_folder
    )


def assert_same_ending(one: Path, other: Path) -> None:
    names = sorted(path.name for path in (one / "networks").iterdir())
    assert names == sorted(path.name for path in (other / "networks").iterdir())
    for name in names:
        wanted, found = load_file(one / "networks" / name), load_file(other / "networks" / name)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[key], found[key]) for key in wanted), name
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (one, other)]
    for part in ("cohort", "average"):
        assert all(
            torch.equal(states[0][part][key], states[1][part][key]) for key in states[0][part]
        )
    pd.testing.assert_frame_equal(
        pd.read_csv(one / "curves.csv"), pd.read_csv(other / "curves.csv")
    )
    assert not list(other.rglob("*medkd-tmp"))
    assert not list(other.rglob(".*"))


def progress_of(folder: Path) -> tuple[int, int]:
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            found = torch.load(folder / name, weights_only=True)["progress"]
            return found["epochs_done"], found["steps_done"]
    return 0, 0
