"""A disk that is full while training: a file that may not grow is refused like one without room."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medkd.errors import OutputError
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def train(folder: Path, largest_file_bytes: int | None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if largest_file_bytes is not None:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, hard))

    return subprocess.run(
        [sys.executable, "-m", "medkd.cli", "train", "--config", "medkd.yaml"],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("largest_file_bytes", "message"),
    [
        pytest.param(
            200_000,
            "mlflow.db: the MLflow store cannot be used: disk I/O error. See that the disk",
            marks=pytest.mark.slow,
        ),
        (1_150_000, "last.pt: the file grew larger than this account or this disk allows. Raise"),
    ],
    ids=["while the store is made", "while a checkpoint is written"],
)
def test_one_line_nothing_half_written_and_the_run_goes_on(
    cohort: Cohort, largest_file_bytes: int, message: str
) -> None:
    failed = train(cohort.folder, largest_file_bytes)
    assert failed.returncode == 2
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, failed.stderr
    assert message in errors[0]
    assert "Traceback" not in failed.stderr
    assert not list(cohort.folder.rglob("*.medkd-tmp"))
    assert not (cohort.config.model_folder / "model.json").exists()

    again = train(cohort.folder, None)
    assert again.returncode == 0, again.stderr
    assert (cohort.config.model_folder / "model.json").exists()


@pytest.fixture
def small_filesystem(cohort: Cohort) -> Iterator[Path]:
    """A real one of 4 MB, where the runs are."""
    folder = cohort.config.run_folder.parent
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_filesystem_costs_one_line_and_no_state(
    cohort: Cohort, small_filesystem: Path
) -> None:
    """Two states of 1.2 MB fit; the third is written beside them before one goes."""
    with pytest.raises(OutputError) as caught:
        run_train_stage(cohort.variant("train.save_steps=1"), cohort.rows)
    last = cohort.config.run_folder / "checkpoints" / "last.pt"
    assert str(caught.value) == (
        f"{last}: no space left on the disk. Free some space, or choose another output folder, "
        "and start again; what was finished is kept."
    )
    kept = torch.load(last, weights_only=True)["progress"]
    assert kept["steps_done"] == 2
    assert not list(small_filesystem.rglob("*.medkd-tmp"))

    more = ["mount", "-o", "remount,size=64m", str(small_filesystem)]
    subprocess.run(more, check=True)
    result = run_train_stage(cohort.variant("train.save_steps=1"), cohort.rows)
    assert result.resumed_from == (0, 2)
    once = cohort.variant("train.name=once")
    run_train_stage(once, cohort.rows)
    for path in (once.run_folder / "networks").iterdir():
        mine = load_file(cohort.config.run_folder / "networks" / path.name)
        assert all(torch.equal(mine[key], value) for key, value in load_file(path).items())
