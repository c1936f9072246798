"""The preview shows training tiles, and what training really sees of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import AugmentConfig
from medkd.datasets.stain import PUBLISHED_MACENKO, normalise
from medkd.errors import ConfigError, StageError
from medkd.slides.store import TileStore
from medkd.training.augmentation import BatchAugmentation
from medkd.training.data import epoch_batches, load_tile_table, training_loader
from medkd.training.images import device_images
from medkd.training.preview_stage import augmentation_words, draw_tiles
from tests.conftest import Cohort


@pytest.mark.parametrize("where", ["device", "loader"])
def test_the_draws_are_those_of_the_training(cohort: Cohort, where: str) -> None:
    """Every batch of two epochs, as the training gets them, holds the previewed tiles."""
    config = cohort.variant(
        f"train.augment.where={where}", "train.max_tiles_per_slide=1000", "train.balance=none"
    )
    seen = draw_tiles(config, cohort.rows, tiles=4, draws=2)
    assert seen.names == ("epoch 1", "epoch 2")
    assert seen.synthetic
    table = load_tile_table(config, cohort.rows).tiles
    training = table[table["role"] == "train"].reset_index(drop=True)
    loader, sampler = training_loader(config, training)
    augment = BatchAugmentation(config.train.augment)
    for epoch in range(2):
        sampler.epoch, sampler.skip = epoch, 0
        order = [index for _, index in sampler]
        images = torch.cat(
            [
                device_images(batch, torch.device("cpu"), augment)
                for batch in epoch_batches(loader, sampler, config, epoch)
            ]
        )
        found = 0
        for n, index in enumerate(seen.tiles.index):
            if order.index(index) >= len(images):
                continue  # of the last batch, which is dropped
            expected = np.rint(images[order.index(index)].numpy() * 255)
            np.testing.assert_array_equal(seen.drawn[epoch, n], expected)
            found += 1
        assert found >= 2


def test_the_first_column_is_the_store_and_all_are_of_training_patients(cohort: Cohort) -> None:
    seen = draw_tiles(cohort.config, cohort.rows, tiles=4, draws=3)
    assert seen.drawn.shape == (3, 4, 3, 64, 64)
    assert set(seen.tiles["role"]) == {"train"}
    assert seen.tiles["label"].tolist() == ["MSI", "MSI", "MSS", "MSS"]
    assert seen.tiles["slide_id"].is_unique
    for n, row in enumerate(seen.tiles.itertuples()):
        with TileStore(cohort.config.tiles_folder / f"{row.slide_id}.zip") as store:
            np.testing.assert_array_equal(
                seen.stored[n], store.read(row.x, row.y).transpose(2, 0, 1)
            )


def test_normalised_tiles_are_shown_and_are_what_is_augmented(cohort: Cohort) -> None:
    assert draw_tiles(cohort.config, cohort.rows, tiles=2, draws=1).normalised is None
    config = cohort.variant(
        "stain.normalise=macenko", "stain.reference=published", "train.augment.enabled=false"
    )
    seen = draw_tiles(config, cohort.rows, tiles=4, draws=1)
    assert seen.normalised is not None
    for stored, shown in zip(seen.stored, seen.normalised, strict=True):
        np.testing.assert_array_equal(shown, normalise(stored, PUBLISHED_MACENKO))
        assert not np.array_equal(shown, stored)
    np.testing.assert_array_equal(seen.drawn[0], seen.normalised)


def test_views_are_columns_and_differ(cohort: Cohort) -> None:
    config = cohort.variant("train.method=pcl")
    seen = draw_tiles(config, cohort.rows, tiles=2, draws=3)
    assert seen.names == ("epoch 1, view 1", "epoch 1, view 2", "epoch 2, view 1")
    assert not np.array_equal(seen.drawn[0], seen.drawn[1])


def test_switched_off_it_shows_the_stored_tiles(cohort: Cohort) -> None:
    for method in ("kd_ml", "pcl"):
        config = cohort.variant("train.augment.enabled=false", f"train.method={method}")
        seen = draw_tiles(config, cohort.rows, tiles=2, draws=2)
        for drawn in seen.drawn:
            np.testing.assert_array_equal(drawn, seen.stored)


def test_what_is_switched_on_is_told_in_words() -> None:
    assert augmentation_words(AugmentConfig()) == "flip 0.5, turn 0.75, colour 1"
    nothing = AugmentConfig(flip_p=0, turn_p=0, colour_p=0)
    assert augmentation_words(nothing) == "nothing switched on"
    assert augmentation_words(AugmentConfig(enabled=False)) == "switched off"


def test_the_command_writes_the_picture(cohort: Cohort, tmp_path: Path) -> None:
    def preview(*options: str):
        config = str(cohort.folder / "medkd.yaml")
        return CliRunner().invoke(app, ["preview", "--config", config, *options])

    out = tmp_path / "tiles.png"
    done = preview("--out", str(out), "--tiles", "3", "--draws", "2")
    assert done.exit_code == 0
    assert f"Preview of 3 training tiles, 2 draws each: {out}" in done.output
    # Three columns of 128 px (tiles of 64, twice as large) and gaps of 24 and 6, and words beside.
    width, height = Image.open(out).size
    assert 414 < width < 600
    assert 396 < height < 520

    many = preview("--out", str(out), "--tiles", "50", "--draws", "1", "-s", "split.fold=0")
    assert many.exit_code == 0

    wrong = preview("--out", str(tmp_path / "tiles.jpg"))
    assert isinstance(wrong.exception, ConfigError)
    assert str(wrong.exception) == (
        f"--out {tmp_path / 'tiles.jpg'}: is no PNG. Name a file such as tiles.png."
    )
    cohort.config.splits_file.unlink()
    early = preview("--out", str(out))
    assert isinstance(early.exception, StageError)
    assert "no split yet. Run 'medkd split' first." in str(early.exception)
