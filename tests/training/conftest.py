"""What tests of training may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.box_cohort import box_cohort


@pytest.fixture(scope="session")
def trained_boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small detection experiment, split and trained; tests copy it, none writes.

    A copy is tracked where the original was: give it ``mlflow.tracking_uri``.
    """
    from medkd.training.train_stage import run_train_stage

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("trained_boxes") / "experiment"
        run_train_stage(box_cohort(folder), ())
    return folder
