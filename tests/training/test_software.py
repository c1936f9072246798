"""A run that goes on with other code says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import medkd
from medkd.config import Config, load_config
from medkd.training import software as module
from medkd.training.software import continued_by, software
from medkd.training.train_stage import run_train_stage
from tests.training.box_cohort import box_cohort


def test_it_names_versions_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = software()
    assert known.startswith(f"medkd {medkd.__version__} (code ")
    assert known.endswith(f"), torch {torch.__version__}")
    for part in ("distill", "slide_level"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(medkd, "__file__", str(tmp_path / "__init__.py"))
    told = []
    for name, content in (
        ("slide_level", "x = 2\n"),
        ("distill", "x = 2\n"),
        ("distill", "x = 1\n"),
    ):
        told.append(software.__wrapped__())
        (tmp_path / name / "a.py").write_text(content)
    told.append(software.__wrapped__())
    # Pages and calls are made after the training; distillation is what it computes.
    assert told[0] == told[1] == told[3]
    assert told[2] != told[1]


def test_other_software_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "software", lambda: "medkd 2")
    assert continued_by([], "a") == ["medkd 2"]
    assert continued_by(["medkd 1", "medkd 2"], "a") == ["medkd 1", "medkd 2"]
    assert capsys.readouterr().err == ""
    assert continued_by(["medkd 1"], "a") == ["medkd 1", "medkd 2"]
    assert capsys.readouterr().err == (
        "warning: run 'a' was trained by medkd 1 and goes on with medkd 2: its figures may differ "
        "from those of either. --restart begins anew.\n"
    )
    assert continued_by(["medkd 1"], "a", speaks=False) == ["medkd 1", "medkd 2"]
    assert capsys.readouterr().err == ""


def trained_by(config: Config) -> list[str]:
    found: list[str] = json.loads((config.run_folder / "training.json").read_text())["trained_by"]
    return found


def test_a_resumed_run_lists_what_it_was_trained_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medkd.training import phase

    box_cohort(tmp_path / "drawn", images=16)
    tracking = f"mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    config = load_config(
        tmp_path / "drawn" / "medkd.yaml",
        (tracking, "train.method=dml", "mlflow.system_metrics=false"),
    )
    validated, epochs = phase._validated, []

    def stops(*arguments: object) -> object:
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return validated(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(phase, "_validated", stops)
        patch.setattr(module, "software", lambda: "medkd 1")
        with pytest.raises(KeyboardInterrupt):
            run_train_stage(config, ())
    capsys.readouterr()
    run_train_stage(config, ())
    assert "was trained by medkd 1 and goes on with medkd " in capsys.readouterr().err
    assert trained_by(config) == ["medkd 1", software()]
    # Nothing is left to train: whoever writes the results anew has trained nothing.
    monkeypatch.setattr(module, "software", lambda: "medkd 3")
    run_train_stage(config, ())
    assert trained_by(config) == ["medkd 1", software()]
