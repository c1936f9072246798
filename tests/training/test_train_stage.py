"""Training on a small real cohort: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medkd.config import Config
from medkd.errors import MethodError, StageError, TrainingError
from medkd.files import sha256_of_file
from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.slides.tile_stage import run_tile_stage
from medkd.training.predict_stage import run_predict_stage
from medkd.training.train_stage import build_cohort, run_train_stage
from tests.conftest import Cohort

NODES = ("teacher", "student_0", "student_1")


def weights(config: Config) -> dict[str, str]:
    return {
        name: sha256_of_file(config.run_folder / "networks" / f"{name}.safetensors")
        for name in NODES
    }


def test_a_run_leaves_everything_in_place(cohort: Cohort) -> None:
    config = cohort.config
    result = run_train_stage(config, cohort.rows)
    folder = config.run_folder
    assert result.run_folder == folder
    assert result.resumed_from is None
    assert set(result.best) == {*NODES, "ensemble"}

    curves = pd.read_csv(folder / "curves.csv")
    terms = curves[curves["metric"].str.startswith("train/")].groupby("network")["metric"].unique()
    assert set(terms["teacher"]) == {"train/supervised"}
    for student in NODES[1:]:
        assert set(terms[student]) == {
            "train/supervised", "train/kl_from_teacher", "train/kl_from_student"
        }  # fmt: skip
    assert sorted(curves["epoch"].unique()) == [1, 2]
    # The chosen epoch is the best of the ensemble on validation tiles.
    of_ensemble = curves[
        (curves["network"] == "ensemble") & (curves["metric"] == "validation/log_loss")
    ]
    best = of_ensemble.loc[of_ensemble["value"].idxmin(), "epoch"]
    completion = json.loads((folder / "training.json").read_text())
    assert completion["best_epoch"] == best == result.best_epoch
    assert completion["synthetic"] is True
    assert {name for name, net in completion["networks"].items() if net["deployed"]} == {
        "student_0",
        "student_1",
    }
    kept = [path.name for path in (folder / "checkpoints").glob("epoch-*")]
    assert kept == [f"epoch-{best:03d}"]
    for name in NODES:
        stored = load_file(folder / "networks" / f"{name}.safetensors")
        chosen = load_file(folder / "checkpoints" / kept[0] / f"{name}.safetensors")
        assert all(torch.equal(stored[key], chosen[key]) for key in chosen)


def test_the_package_holds_students_only_and_predicts_as_torch_does(cohort: Cohort) -> None:
    import onnxruntime

    from medkd.training.checkpoint import load_network

    config = cohort.config
    run_train_stage(config, cohort.rows)
    files = sorted(
        str(path.relative_to(config.model_folder))
        for path in config.model_folder.rglob("*")
        if path.is_file()
    )
    assert files == [
        "model.json",
        "model_card.md",
        "students/student_0.onnx",
        "students/student_0.safetensors",
        "students/student_1.onnx",
        "students/student_1.safetensors",
    ]
    from medkd.distill.graph import expand
    from medkd.distill.method import load_method

    networks = build_cohort(config, expand(load_method("kd_ml"), 2)).nodes
    tiles = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    for name in ("student_0", "student_1"):
        load_network(config.run_folder / "networks" / f"{name}.safetensors", networks[name])
        with torch.no_grad():
            expected = torch.softmax(networks[name].eval()(images), 1).numpy()
        session = onnxruntime.InferenceSession(config.model_folder / f"students/{name}.onnx")
        (probabilities,) = session.run(["probabilities"], {"tiles": tiles})
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def command(config: Config) -> list[str]:
    folder = config.output
    return [sys.executable, "-m", "medkd.cli", "train", "--config", str(folder / "medkd.yaml"),
            "--set", "train.epochs=5"]  # fmt: skip


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_never_killed(
    cohort: Cohort, tmp_path: Path
) -> None:
    five = cohort.variant("train.epochs=5")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    process = subprocess.Popen(
        command(five), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    second = five.run_folder / "checkpoints" / "previous.pt"
    deadline = time.monotonic() + 120
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.exists()
    assert not (five.run_folder / "training.json").exists()
    run_ids = json.loads((five.run_folder / "mlflow.json").read_text())["runs"]

    again = subprocess.run(
        command(five), env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "Resumed after epoch" in again.stdout
    assert json.loads((five.run_folder / "mlflow.json").read_text())["runs"] == run_ids
    assert (five.model_folder / "model.json").exists()
    assert not list(five.run_folder.rglob("*medkd-tmp"))

    elsewhere = cohort.variant("train.epochs=5", f"mlflow.tracking_uri=sqlite:///{tmp_path}/x.db")
    killed = weights(five)
    run_train_stage(elsewhere, cohort.rows, restart=True)
    assert weights(elsewhere) == killed


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_stopped_within_an_epoch_it_goes_on_from_the_step(
    cohort: Cohort, tmp_path: Path, number: signal.Signals
) -> None:
    """A signal ends it after the step and what was done is saved; SIGKILL loses what was not."""
    config = cohort.variant("train.epochs=2", "train.method=pcl", "train.batch_size=8")
    saving = f"train.save_minutes={0 if number == signal.SIGKILL else 0.005}"
    started = [*command(config)[:-1], "train.epochs=2", "--set", "train.method=pcl"]
    started += ["--set", "train.batch_size=8", "--set", saving]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    process = subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    wait_for(config.run_folder / "checkpoints" / "last.pt", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), told
    found = torch.load(config.run_folder / "checkpoints" / "last.pt", weights_only=True)
    assert found["progress"]["steps_done"] > 0
    if number != signal.SIGKILL:
        assert "stopped; what was finished is kept." in told

    result = run_train_stage(config, cohort.rows)
    assert result.resumed_from == (0, found["progress"]["steps_done"])
    once = cohort.variant(
        "train.epochs=2", "train.method=pcl", "train.batch_size=8", "train.name=once"
    )
    run_train_stage(once, cohort.rows)
    for path in sorted((once.run_folder / "networks").iterdir()):
        mine, theirs = load_file(config.run_folder / "networks" / path.name), load_file(path)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), path.name
    curves = [pd.read_csv(c.run_folder / "curves.csv") for c in (config, once)]
    pd.testing.assert_frame_equal(*curves)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def test_a_finished_run_is_not_trained_again(cohort: Cohort) -> None:
    config = cohort.variant("train.epochs=1")
    run_train_stage(config, cohort.rows)
    first = weights(config)
    result = run_train_stage(config, cohort.rows)
    assert result.resumed_from == (1, 0)
    assert weights(config) == first


def test_other_settings_are_refused(cohort: Cohort) -> None:
    run_train_stage(cohort.variant("train.epochs=1"), cohort.rows)
    with pytest.raises(TrainingError) as error:
        run_train_stage(cohort.variant("train.epochs=1", "train.learning_rate=0.1"), cohort.rows)
    assert str(error.value) == (
        f"{cohort.config.run_folder}: was begun with other settings or other data. Give this run "
        "another train.name, or begin anew with --restart."
    )


def test_a_loss_that_is_not_finite_stops_the_run(cohort: Cohort) -> None:
    config = cohort.variant("train.learning_rate=1e30", "train.warmup_epochs=0")
    with pytest.raises(TrainingError, match=r"not a finite number any more \(.*teacher\)"):
        run_train_stage(config, cohort.rows)
    assert not (config.run_folder / "training.json").exists()


def test_methods_start_from_the_same_weights(cohort: Cohort) -> None:
    from medkd.distill.graph import expand
    from medkd.distill.method import load_method

    starts = [
        build_cohort(cohort.config, expand(load_method(name), 2)).nodes["student_1"].state_dict()
        for name in ("kd_ml", "dml", "independent")
    ]
    assert all(torch.equal(starts[0][key], other[key]) for other in starts for key in starts[0])


def test_what_is_missing_is_named(cohort: Cohort) -> None:
    with pytest.raises(MethodError, match="needs at least two students"):
        run_train_stage(cohort.variant("train.students=[{network: resnet10}]"), cohort.rows)
    cohort.config.splits_file.unlink()
    with pytest.raises(StageError, match="medkd split"):
        run_train_stage(cohort.config, cohort.rows)


@pytest.mark.parametrize("store", ["jpeg", "coordinates"])
def test_infer_gives_a_tile_the_probability_that_predict_gave_it(
    cohort: Cohort, store: str
) -> None:
    """The same pixels on both ways, whether the store has JPEGs or places only."""
    config = cohort.variant(f"tile.store={store}", "train.epochs=1")
    if store == "coordinates":
        redone = run_tile_stage(cohort.rows, config.tile, config.tiles_folder).redone
        assert {why for _, why in redone} == {"tile.store was jpeg, is coordinates"}
    run_train_stage(config, cohort.rows)
    path = run_predict_stage(config, cohort.rows).path
    predictions = pd.read_parquet(path)
    slide = cohort.rows[0]
    students = predictions[
        (predictions["slide_id"] == slide.slide_id) & predictions["network"].str.match("student_")
    ]
    expected = students.groupby(["x", "y"])["probability"].mean()
    package = load_package(config.model_folder, needs_operating_point=False)
    found = infer_slide(slide.path, package, Students(package)).tiles
    assert len(found) == len(expected) > 5
    for tile in found:
        assert tile.probability == pytest.approx(expected[tile.x, tile.y], abs=1e-4)
