"""Imported tiles go through the stages like those that were cut from slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.config import load_config
from medkd.datasets.split import run_split_stage
from medkd.datasets.tables import read_slides
from medkd.errors import StageError
from medkd.importers.class_folders import import_class_folders
from medkd.importers.names import compile_pattern
from medkd.importers.tcga_tiles import import_tcga_tiles
from medkd.slides.imported_tiles import slide_records
from medkd.slides.tile_stage import run_tile_stage
from medkd.training.data import evaluation_batches, load_tile_table

TRAINING = """
train:
  name: small
  teacher: {network: resnet10, width: 0.125}
  students: [{network: resnet10, width: 0.0625}, {network: resnet10, width: 0.0625}]
  epochs: 1
  batch_size: 8
  device: cpu
infer: {min_tiles: 2, min_tissue_mm2: 0.0001}
mlflow: {experiment: small, registered_model: null}
"""


def draw(path: Path, level: int, side_px: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(-9, 10, (side_px, side_px, 3))
    Image.fromarray((level + noise).astype(np.uint8)).save(path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Patients 1 to 12 in turn MSI (dark) and MSS; 8 train, 4 test; 3 tiles each."""
    root = tmp_path / "published"
    for number in range(1, 13):
        name = "MSIMUT" if number % 2 else "MSS"
        folder = root / f"CRC_DX_{'TEST' if number > 8 else 'TRAIN'}_{name}"
        for tile in "ABC":
            level = (60 if number % 2 else 160) + number
            draw(folder / f"blk-{tile}-TCGA-AA-{3500 + number}-01Z-00-DX1.png", level)
    return root


def test_the_loader_brings_the_pixels_of_the_files(published: Path, tmp_path: Path) -> None:
    import_tcga_tiles(published, tmp_path / "out")
    config = load_config(tmp_path / "out" / "medkd.yaml", ("train.device=cpu",))
    rows = read_slides(config.data.slides, config.data.classes)
    table = load_tile_table(config, rows)
    assert not table.synthetic
    assert table.tiles["role"].value_counts().to_dict() == {
        "train": 18,
        "validation": 6,
        "test": 12,
    }
    seen = 0
    for batch in evaluation_batches(config, table.tiles, cache=False):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            tile = table.tiles.iloc[seen]
            stored = np.asarray(Image.open(published / tile["image"]))
            assert np.array_equal(image.numpy().transpose(1, 2, 0), stored)
            assert config.data.classes[int(label)] == tile["label"]
            seen += 1
    assert seen == 36


def test_the_area_of_a_slide_is_that_of_its_tiles(published: Path, tmp_path: Path) -> None:
    import_tcga_tiles(published, tmp_path / "out")
    config = load_config(tmp_path / "out" / "medkd.yaml")
    slide = "TCGA-AA-3501-01Z-00-DX1"
    record = slide_records(config.tiles_folder, [slide], config.tile)[slide]
    # Three tiles of 32 px at 0.5 um: 16 um wide.
    assert record["tissue_area_mm2"] == pytest.approx(3 * 0.016**2)
    assert record["parameters"] == config.tile.recorded()


def test_what_does_not_fit_the_configuration_is_told(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    import_tcga_tiles(published, out)
    rows = read_slides(out / "slides.csv", ("MSS", "MSI"))
    for key, value in (("size_px", 64), ("mpp", 0.25)):
        config = load_config(out / "medkd.yaml", (f"tile.{key}={value}",))
        with pytest.raises(StageError) as caught:
            load_tile_table(config, rows)
        assert str(caught.value) == (
            f"{config.tiles_folder / 'import.json'}: the imported tiles have {key} "
            f"{ {'size_px': '32', 'mpp': '0.5'}[key] }, and tile.{key} is {value}. "
            f"Set tile.{key} to { {'size_px': '32', 'mpp': '0.5'}[key] }."
        )
    config = load_config(out / "medkd.yaml")
    with pytest.raises(StageError, match=r"index.parquet: holds no tile of slide 'absent'"):
        slide_records(config.tiles_folder, ["absent"], config.tile)
    index = (out / "tiles" / "index.parquet").read_bytes()
    with pytest.raises(StageError, match=r"were imported \('medkd import tcga-tiles'\), not cut"):
        run_tile_stage(rows, config.tile, config.tiles_folder)
    assert (out / "tiles" / "index.parquet").read_bytes() == index
    assert capsys.readouterr().err.count("warning") == 0


def test_an_unknown_resolution_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        for number in range(3):
            draw(tmp_path / "set" / name / f"p{name}{number}.png", 90)
    pattern = compile_pattern("p..", "--patient")
    import_class_folders(tmp_path / "set", tmp_path / "out", patient=pattern)
    config = load_config(tmp_path / "out" / "medkd.yaml")
    rows = read_slides(config.data.slides, config.data.classes)
    run_split_stage(rows, config)
    capsys.readouterr()
    load_tile_table(config, rows)
    assert capsys.readouterr().err == (
        "warning: nobody knows the resolution of the imported tiles; tile.mpp "
        f"{config.tile.mpp:g} um/px is taken for it.\n"
    )


@pytest.mark.slow
def test_from_the_published_tiles_to_calls(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkd.slide_level.aggregate_stage import run_aggregate_stage
    from medkd.training.predict_stage import run_predict_stage
    from medkd.training.train_stage import run_train_stage

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import_tcga_tiles(published, tmp_path / "out")
    path = tmp_path / "out" / "medkd.yaml"
    path.write_text(path.read_text() + TRAINING)
    config = load_config(path)
    rows = read_slides(config.data.slides, config.data.classes)
    run_train_stage(config, rows)
    run_predict_stage(config, rows)
    run_aggregate_stage(config)
    calls = pd.read_parquet(config.run_folder / "patient_calls.parquet")
    tested = calls[(calls["role"] == "test") & (calls["network"] == "ensemble")]
    assert set(tested["patient_id"]) == {f"TCGA-AA-{number}" for number in range(3509, 3513)}
