"""Processes that load tiles: they change no number, and one that dies costs no more than a line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from medkd.config import Config
from medkd.errors import StageError, TrainingError
from medkd.slides.tile_stage import run_tile_stage
from medkd.training import loop
from medkd.training.data import (
    epoch_batches,
    evaluation_batches,
    load_tile_table,
    training_loader,
)
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort

GO_ON = "Then start the same command again; a training goes on from its last checkpoint."


def quick(cohort: Cohort, *assignments: str) -> Config:
    """Two students and no teacher, a handful of steps."""
    return cohort.variant(
        "train.method=dml", "train.batch_size=16", "train.max_tiles_per_slide=6", *assignments
    )


def curves(config: Config, cohort: Cohort) -> pd.DataFrame:
    run_train_stage(config, cohort.rows)
    return pd.read_csv(config.run_folder / "curves.csv")


@pytest.mark.parametrize("where", ["device", "loader"])
@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_one_seed_gives_one_curve_for_any_number_of_workers(
    cohort: Cohort, where: str, workers: int
) -> None:
    """Of two epochs, every row of curves.csv exactly; and it would show if tiles were others."""
    by_count = [
        curves(
            quick(
                cohort,
                f"train.augment.where={where}",
                f"train.loader_workers={count}",
                f"train.name=with-{count}",
            ),
            cohort,
        )
        for count in (0, workers)
    ]
    assert sorted(by_count[0]["epoch"].unique()) == [1, 2]
    pd.testing.assert_frame_equal(*by_count, check_exact=True)


def batches_of(config: Config, tiles: pd.DataFrame, epochs: int = 2) -> list[dict[str, Any]]:
    loader, sampler = training_loader(config, tiles, views=2)
    return [
        batch for epoch in range(epochs) for batch in epoch_batches(loader, sampler, config, epoch)
    ]


@pytest.mark.parametrize("store", ["jpeg", "coordinates"])
def test_workers_bring_the_same_batches_whatever_was_open_when_they_were_forked(
    cohort: Cohort, store: str
) -> None:
    """The cache of this process is half full, so stores or slides are open in it."""
    config = cohort.variant(
        f"tile.store={store}",
        f"train.cache_mb={20 * 3 * 64**2 / 1e6}",
        "train.batch_size=16",
        "train.max_tiles_per_slide=40",
    )
    if store == "coordinates":
        run_tile_stage(cohort.rows, config.tile, config.tiles_folder)
    tiles = load_tile_table(config, cohort.rows).tiles.head(70)
    alone = batches_of(config, tiles)
    helped = batches_of(config.model_copy(update={"train": config.train.model_copy(
        update={"loader_workers": 2})}), tiles)  # fmt: skip
    assert len(alone) == len(helped) > 2
    for one, other in zip(alone, helped, strict=True):
        assert set(one) == set(other) == {"image", "label", "seed"}
        assert all(torch.equal(one[key], other[key]) for key in one)
    half = len(alone) // 2
    assert not torch.equal(alone[0]["seed"], alone[half]["seed"])  # another epoch


_before: set[int | None] = set()


@pytest.fixture(autouse=True)
def nothing_of_other_tests() -> None:
    """A loader that a failed training's traceback still holds keeps its processes; torch's own
    loaders leave a handler behind.
    """
    _before.clear()
    _before.update(process.pid for process in multiprocessing.active_children())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def loader_processes() -> list[int]:
    """Of this test."""
    found = (process.pid for process in multiprocessing.active_children())
    return [pid for pid in found if pid is not None and pid not in _before]


def test_processes_stay_from_one_epoch_to_the_next_and_end_with_the_loader(cohort: Cohort) -> None:
    config = quick(cohort, "train.loader_workers=2", "train.cache_mb=0")
    tiles = load_tile_table(config, cohort.rows).tiles.head(40)
    loader, sampler = training_loader(config, tiles)
    ids = []
    for epoch in range(2):
        list(epoch_batches(loader, sampler, config, epoch))
        ids.append(set(loader_processes()))
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
    del loader
    assert not loader_processes()


def after_batches(monkeypatch: pytest.MonkeyPatch, count: int, happens: Callable[[], None]) -> None:
    """Let something happen in the midst of a training, once so many batches are on the device."""
    seen = []
    real = loop.device_images

    def counting(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(1)
        if len(seen) == count:
            happens()
        return real(*args, **options)

    monkeypatch.setattr(loop, "device_images", counting)


def kill_one() -> None:
    """As a system does that is short of memory."""
    os.kill(min(loader_processes()), signal.SIGKILL)


def test_a_killed_worker_ends_the_training_with_one_line_and_it_goes_on(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(cohort, "train.loader_workers=2", "train.save_minutes=0", "train.cache_mb=0")
    handler = signal.getsignal(signal.SIGCHLD)
    with monkeypatch.context() as patch:
        after_batches(patch, 2, kill_one)
        with pytest.raises(TrainingError) as caught:
            run_train_stage(config, cohort.rows)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("train.loader_workers: a process that loads tiles is gone (")
    assert told.endswith(
        ", SIGKILL). Mostly that is the system, short of memory: lower train.loader_workers, "
        f"train.cache_mb or train.batch_size. {GO_ON}"
    )
    assert signal.getsignal(signal.SIGCHLD) == handler

    resumed = run_train_stage(config, cohort.rows)
    assert resumed.resumed_from is not None
    assert resumed.resumed_from[0] * 100 + resumed.resumed_from[1] >= 2  # epochs, steps
    once = quick(cohort, "train.name=once")
    pd.testing.assert_frame_equal(
        pd.read_csv(config.run_folder / "curves.csv"), curves(once, cohort), check_exact=True
    )
    for path in (once.run_folder / "networks").iterdir():
        mine, theirs = load_file(config.run_folder / "networks" / path.name), load_file(path)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_torchs_own_loaders_in_this_process_change_nothing(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave a handler behind that raises in whatever line is being run."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    list(DataLoader(range(4), num_workers=1))
    assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
    config = quick(cohort, "train.loader_workers=1", "train.cache_mb=0")
    loader, sampler = training_loader(config, load_tile_table(config, cohort.rows).tiles)
    batches = iter(epoch_batches(loader, sampler, config, 0))
    next(batches)
    kill_one()
    time.sleep(1)  # in which a handler would raise
    with pytest.raises(TrainingError, match="a process that loads tiles is gone"):
        list(batches)


def test_full_shared_memory_is_told_by_its_signal(cohort: Cohort) -> None:
    """A process that finds /dev/shm full dies of SIGBUS, which must not be taken for memory."""
    config = quick(cohort, "train.loader_workers=1", "train.cache_mb=0")
    loader, sampler = training_loader(config, load_tile_table(config, cohort.rows).tiles)
    batches = iter(epoch_batches(loader, sampler, config, 0))
    next(batches)
    (pid,) = loader_processes()
    os.kill(pid, signal.SIGBUS)
    with pytest.raises(TrainingError, match=r", SIGBUS\). Shared memory \(/dev/shm\) is full: "):
        list(batches)


@pytest.mark.parametrize(("harm", "workers"), [("cut short", 1), ("removed", 0)])
def test_a_store_harmed_during_a_training_is_named_in_one_line(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, workers: int, harm: str
) -> None:
    config = quick(
        cohort,
        f"train.loader_workers={workers}",
        "train.cache_mb=0",
        "train.epochs=1",
        # A process that loads is at most three batches ahead; the epoch has many more.
        "train.batch_size=2",
    )
    tiles = load_tile_table(config, cohort.rows).tiles
    stores = [
        config.tiles_folder / f"{slide}.zip"
        for slide in tiles.loc[tiles["role"] == "train", "slide_id"].unique()
    ]

    def harm_all() -> None:
        for path in stores:
            if harm == "removed":
                path.unlink()
            else:
                os.truncate(path, 100)

    with monkeypatch.context() as patch:
        if harm == "removed":
            # What is open can be read though it is removed; so before any is.
            patch.setattr("medkd.training.phase.set_up", harming(harm_all))
        else:
            after_batches(patch, 1, harm_all)
        with pytest.raises(TrainingError) as caught:
            run_train_stage(config, cohort.rows)
    error = caught.value
    assert Path(error.where) in stores
    assert str(error) == f"{error.where}: {error.what}. {error.remedy}"
    assert "\n" not in str(error)
    assert "'medkd tile' again." in error.remedy
    assert error.remedy.endswith(GO_ON)
    if harm == "removed":
        assert error.what == "no such tile store"


def harming(happens: Callable[[], None]) -> Callable[..., Any]:
    from medkd.training.engine import set_up

    def first(*args: Any, **options: Any) -> Any:
        happens()
        return set_up(*args, **options)

    return first


def test_validation_tells_a_lost_tile_too(cohort: Cohort) -> None:
    config = quick(cohort)
    tiles = load_tile_table(config, cohort.rows).tiles.head(3)
    batches = evaluation_batches(config, tiles, cache=False)
    (config.tiles_folder / f"{tiles.iloc[0].slide_id}.zip").write_bytes(b"not a zip")
    with pytest.raises(TrainingError, match="ends before the tile") as caught:
        list(batches)
    assert caught.value.exit_status == 1
    with pytest.raises(StageError, match="ends before the tile"):
        evaluation_batches(config, tiles, cache=True)


def test_other_errors_of_a_worker_stay_what_they_are(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault in the code")

    config = quick(cohort, "train.loader_workers=1", "train.cache_mb=0")
    batches = evaluation_batches(
        config, load_tile_table(config, cohort.rows).tiles.head(3), cache=False
    )
    monkeypatch.setattr("medkd.datasets.patches.PatchDataset._transform", broken)
    with pytest.raises(RuntimeError, match="a fault in the code"):
        list(batches)
