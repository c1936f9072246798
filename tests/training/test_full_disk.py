"""A disk that is full while training: a file that may not grow is refused like one without room."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

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
        (200_000, "mlflow.db: the MLflow store cannot be used: disk I/O error. See that the disk"),
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
