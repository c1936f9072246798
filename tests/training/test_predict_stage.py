"""Prediction slide by slide: resumed exactly, whatever the batches; embeddings beside it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import load_config
from medkd.datasets.tables import read_slides
from medkd.errors import OutputError, StageError
from medkd.files import sha256_of_file
from medkd.slide_level.feature_file import FEATURE_FILE, read_features
from medkd.slides.store import TileStore
from medkd.training.data import load_tile_table, slide_batches
from medkd.training.predict_stage import run_predict_stage
from medkd.training.prediction_parts import PredictionParts
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def test_no_batch_has_tiles_of_two_slides(cohort: Cohort) -> None:
    config = cohort.variant("train.batch_size=4")
    tiles = load_tile_table(config, cohort.rows).tiles.groupby("slide_id").head(11).iloc[5:60]
    tiles = tiles.reset_index(drop=True)
    found = [len(batch["image"]) for batch in slide_batches(config, tiles)]
    assert sum(found) == 55
    expected = []
    for _, own in tiles.groupby("slide_id", sort=False):
        expected += [8] * (len(own) // 8) + [len(own) % 8] * (len(own) % 8 > 0)
    assert found == expected
    first = next(iter(slide_batches(config, tiles)))["image"][3].numpy()
    with TileStore(config.tiles_folder / f"{tiles.at[3, 'slide_id']}.zip") as store:
        stored = store.read(int(tiles.at[3, "x"]), int(tiles.at[3, "y"]))
    np.testing.assert_array_equal(first, stored.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def trained_template(cohort_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cohort after one epoch; tests copy it."""
    folder = tmp_path_factory.mktemp("trained") / "experiment"
    shutil.copytree(cohort_template, folder)
    path = folder / "medkd.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 1"))
    config = load_config(path)
    run_train_stage(config, read_slides(config.data.slides, config.data.classes))
    return folder


@pytest.fixture
def trained(trained_template: Path, tmp_path: Path) -> Cohort:
    folder = tmp_path / "experiment"
    shutil.copytree(trained_template, folder)
    config = load_config(folder / "medkd.yaml")
    return Cohort(folder, config, read_slides(config.data.slides, config.data.classes))


def test_an_interrupted_prediction_goes_on_with_the_other_slides(
    trained: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = trained.config, trained.rows
    whole = run_predict_stage(config, rows, embeddings=True)
    assert whole.slides_before == 0
    assert whole.embeddings == ("student_0", "student_1")
    folder = config.run_folder
    files = [whole.path, folder / FEATURE_FILE, *sorted((folder / "embeddings").iterdir())]
    expected = {path: sha256_of_file(path) for path in files}
    assert pq.ParquetFile(whole.path).num_row_groups == len(rows)
    assert not (folder / "predictions.parts").exists()
    whole.path.unlink()

    written: list[str] = []
    write = PredictionParts.write

    def full_disk(self: PredictionParts, slide_id: str, *what: Any) -> None:
        if len(written) == 7:
            raise OutputError("no space left on the disk", where="here", remedy="Free some.")
        written.append(slide_id)
        write(self, slide_id, *what)

    monkeypatch.setattr(PredictionParts, "write", full_disk)
    with pytest.raises(OutputError):
        run_predict_stage(config, rows, embeddings=True)
    assert not whole.path.exists()
    assert len(list((folder / "predictions.parts").glob("*.parquet"))) == 7

    first = list(written)
    written.append("so that the disk is not full again")
    again = run_predict_stage(config, rows, embeddings=True)
    assert again.slides_before == 7
    assert not set(first) & set(written[8:])
    assert len(written[8:]) == len(rows) - 7
    assert {path: sha256_of_file(path) for path in files} == expected


def test_parts_of_other_weights_or_networks_are_not_taken(
    trained: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = trained.config, trained.rows

    def killed(self: PredictionParts) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionParts, "assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            run_predict_stage(config, rows)
    # Students alone are another prediction.
    assert run_predict_stage(config, rows, students_only=True).slides_before == 0
    with monkeypatch.context() as patch:
        patch.setattr(PredictionParts, "assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            run_predict_stage(config, rows)
    weights = config.run_folder / "networks" / "teacher.safetensors"
    save_file({key: value + 1e-3 for key, value in load_file(weights).items()}, weights)
    assert run_predict_stage(config, rows).slides_before == 0


def test_students_alone_say_what_they_say_beside_the_teacher(trained: Cohort) -> None:
    config, rows = trained.config, trained.rows
    keys = ["network", "slide_id", "x", "y"]
    everyone = pd.read_parquet(run_predict_stage(config, rows).path)
    assert set(everyone["network"]) == {"teacher", "student_0", "student_1"}
    done = run_predict_stage(config, rows, students_only=True)
    assert done.networks == ("student_0", "student_1")
    alone = pd.read_parquet(done.path).astype({"network": str, "slide_id": str})
    both = alone.merge(
        everyone.astype({"network": str, "slide_id": str}), on=keys, validate="one_to_one"
    )
    assert len(both) == len(alone) == 2 * done.tiles
    np.testing.assert_allclose(both["probability_x"], both["probability_y"], atol=1e-6)


def test_a_disk_too_small_for_embeddings_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"slide_id": ["a", "b"], "patient_id": "p", "role": "test", "x": 0, "y": 0}
    parts = PredictionParts(tmp_path, pd.DataFrame(columns), {})

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("medkd.training.prediction_parts.os.posix_fallocate", full)
        with pytest.raises(OutputError, match=r"student_0\.npy: no space left on the disk"):
            parts.embeddings({"student_0": 4})
    assert not list((tmp_path / "embeddings").iterdir())
    assert parts.embeddings({"student_0": 4})["student_0"].shape == (2, 4)


def test_embeddings_are_what_the_package_gives(trained: Cohort) -> None:
    """Of a tile read by hand, through the exported network, in half precision."""
    config, rows = trained.config, trained.rows
    run_predict_stage(config, rows, students_only=True, embeddings=True)
    folder = config.run_folder / "embeddings"
    kept = np.load(folder / "student_0.npy", mmap_mode="r")
    tiles = pd.read_parquet(folder / "tiles.parquet")
    session = onnxruntime.InferenceSession(config.model_folder / "students" / "student_0.onnx")
    assert kept.shape == (len(tiles), session.get_outputs()[1].shape[1])
    for row in (0, len(tiles) // 2, len(tiles) - 1):
        tile = tiles.iloc[row]
        with TileStore(config.tiles_folder / f"{tile['slide_id']}.zip") as store:
            pixels = store.read(tile["x"], tile["y"])
        (found,) = session.run(["embeddings"], {"tiles": pixels[None]})[0]
        np.testing.assert_allclose(kept[row], found, rtol=2e-3, atol=1e-4)


def test_what_slides_look_like_is_kept_without_embeddings(trained: Cohort) -> None:
    """Mean and variance of what each tile's embedding, kept beside, says, in half precision."""
    config, rows = trained.config, trained.rows
    run_predict_stage(config, rows)
    path = config.run_folder / FEATURE_FILE
    assert not (config.run_folder / "embeddings").exists()
    alone = read_features(path, ["student_0", "student_1"])
    run_predict_stage(config, rows, students_only=True, embeddings=True)
    beside = read_features(path, ["student_0", "student_1"])
    tiles = pd.read_parquet(config.run_folder / "embeddings" / "tiles.parquet")
    assert alone.slides["slide_id"].tolist() == sorted(row.slide_id for row in rows)
    assert alone.slides["tiles"].tolist() == tiles.groupby("slide_id").size().tolist()
    for student in ("student_0", "student_1"):
        kept = np.load(config.run_folder / "embeddings" / f"{student}.npy").astype(np.float64)
        by_slide = pd.DataFrame(kept).groupby(tiles["slide_id"])
        for found in (alone, beside):
            np.testing.assert_allclose(found.means[student], by_slide.mean(), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(
                found.variances[student], by_slide.var(ddof=0), rtol=5e-3, atol=1e-5
            )
    # The colours of one slide, tile by tile from the store: strength of the mean density.
    slide_id = tiles.at[0, "slide_id"]
    strengths = []
    with TileStore(config.tiles_folder / f"{slide_id}.zip") as store:
        for tile in tiles[tiles["slide_id"] == slide_id].itertuples():
            density = np.log(240) - np.log(store.read(tile.x, tile.y)[::4, ::4] + 1.0)
            strengths.append(np.log(density.mean((0, 1))).sum() / np.sqrt(3))
    assert alone.means["stain"][0, 0] == pytest.approx(np.mean(strengths), rel=1e-5)
    np.testing.assert_array_equal(alone.means["stain"], beside.means["stain"])


def test_networks_without_pooled_features_have_no_embeddings(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = cohort.rows
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n\n\ndef flat(classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = cohort.variant(
        "train.epochs=1", "train.students=[{network: 'mynets:flat'}]", "train.method=kd"
    )
    run_train_stage(config, rows)
    with pytest.raises(StageError) as told:
        run_predict_stage(config, rows, embeddings=True)
    assert str(told.value) == (
        "--embeddings: student_0 has no pooled features that could be kept. Leave the option out, "
        "or train students that have stages ('medkd networks' says which)."
    )
    assert run_predict_stage(config, rows).networks == ("teacher", "student_0")
    found = read_features(config.run_folder / FEATURE_FILE, ["student_0"])
    assert list(found.means) == ["stain"]


def test_the_command_tells_what_it_did(trained: Cohort) -> None:
    call = ["predict", "--config", str(trained.folder / "medkd.yaml")]
    done = CliRunner().invoke(app, [*call, "--students", "--embeddings"])
    assert done.exit_code == 0, done.output
    assert "2 networks. Predictions: " in done.output
    assert "Embeddings of student_0, student_1: " in done.output


@pytest.mark.slow
def test_killed_it_goes_on(trained: Cohort) -> None:
    config, rows = trained.config, trained.rows
    expected = sha256_of_file(run_predict_stage(config, rows).path)
    (config.run_folder / "predictions.parquet").unlink()
    call = [sys.executable, "-m", "medkd", "predict", "--config", trained.folder / "medkd.yaml"]
    options = ["-s", "train.batch_size=2"]
    process = subprocess.Popen([*map(str, call), *options], env={**os.environ})
    parts = config.run_folder / "predictions.parts"
    while process.poll() is None and len(list(parts.glob("*.parquet"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list(parts.glob("*.parquet")))
    assert 3 <= before < len(rows)
    done = run_predict_stage(config, rows)
    assert done.slides_before == before
    assert sha256_of_file(done.path) == expected
