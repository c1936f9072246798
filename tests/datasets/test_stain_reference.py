"""A reference of the training patients alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.config import Config
from medkd.datasets.stain import PUBLISHED_MACENKO, MacenkoStains, ReinhardColour, fit
from medkd.datasets.stain_reference import (
    fit_training_reference,
    stain_reference,
    tiles_in_turn,
)
from medkd.errors import StageError
from medkd.slides.store import (
    RANGE_COLUMNS,
    StoredTile,
    TileStore,
    encode_tile,
    with_ranges,
    writing_store,
)
from medkd.training.data import load_tile_table
from tests.conftest import Cohort


def test_tiles_are_drawn_from_each_in_turn() -> None:
    tiles = pd.DataFrame({"patient_id": list("aaaaaaaabbbc"), "tile": range(12)})
    drawn = tiles_in_turn(tiles, "patient_id", 6, seed=1)
    assert sorted(drawn["patient_id"][:3]) == ["a", "b", "c"]
    assert sorted(drawn["patient_id"][3:5]) == ["a", "b"]
    assert drawn["patient_id"].iloc[5] in "ab"
    assert drawn["tile"].is_unique
    assert tiles_in_turn(tiles, "patient_id", 6, seed=1).equals(drawn)
    assert not tiles_in_turn(tiles, "patient_id", 6, seed=2).equals(drawn)
    assert len(tiles_in_turn(tiles, "patient_id", 99, seed=1)) == 12


def replace_tiles(cohort: Cohort, tiles: pd.DataFrame, level: int) -> None:
    """Every tile of these rows becomes one flat grey."""
    for slide, rows in tiles.groupby("slide_id"):
        jpeg = encode_tile(np.full((64, 64, 3), level, np.uint8), 90)
        with writing_store(cohort.config.tiles_folder / f"{slide}.zip") as store:
            for x, y in zip(rows["x"], rows["y"], strict=True):
                store.add(StoredTile(int(x), int(y), 1.0, 1.0), jpeg)


def test_only_training_patients_are_looked_at(cohort: Cohort) -> None:
    config, tiles = cohort.config, load_tile_table(cohort.config, cohort.rows).tiles
    before = fit_training_reference(config, tiles, "macenko", count=24)
    assert isinstance(before, MacenkoStains)
    assert isinstance(fit_training_reference(config, tiles, "reinhard", count=8), ReinhardColour)
    replace_tiles(cohort, tiles[tiles["role"] != "train"], 90)
    assert fit_training_reference(config, tiles, "macenko", count=24) == before

    # The whole of them is what the stores hold, read by hand.
    train = tiles[tiles["role"] == "train"].groupby("slide_id").head(2)
    whole = fit_training_reference(config, train, "macenko")
    stored = []
    for slide, rows in train.groupby("slide_id"):
        with TileStore(config.tiles_folder / f"{slide}.zip") as store:
            stored += [
                store.read(int(x), int(y)).transpose(2, 0, 1)
                for x, y in zip(rows["x"], rows["y"], strict=True)
            ]
    expected = fit(stored, "macenko")
    assert isinstance(expected, MacenkoStains)
    assert isinstance(whole, MacenkoStains)
    np.testing.assert_allclose(whole.mixing, expected.mixing)
    np.testing.assert_allclose(whole.densities, expected.densities)


def test_training_tiles_without_stain_are_told(cohort: Cohort) -> None:
    config, tiles = cohort.config, load_tile_table(cohort.config, cohort.rows).tiles
    replace_tiles(cohort, tiles[tiles["role"] == "train"], 250)
    # In these stores they lie elsewhere.
    tiles = with_ranges(tiles.drop(columns=list(RANGE_COLUMNS)), config.tiles_folder)
    with pytest.raises(StageError) as told:
        fit_training_reference(config, tiles, "reinhard", count=5)
    assert str(told.value) == (
        f"{config.tiles_folder}: none of 5 tiles of training patients holds enough stain to fit a "
        "reference. Look at tiles/report.html for what was taken for tissue, or set stain.reference"
        " to published or image."
    )


def test_the_reference_is_the_one_that_is_asked_for(cohort: Cohort) -> None:
    tiles = load_tile_table(cohort.config, cohort.rows).tiles
    assert stain_reference(cohort.config, tiles) is None
    published = cohort.variant("stain.normalise=macenko", "stain.reference=published")
    assert stain_reference(published, tiles) == PUBLISHED_MACENKO
    fitted = cohort.variant("stain.normalise=reinhard", "stain.reference_tiles=6")
    expected = fit_training_reference(fitted, tiles, "reinhard", count=6)
    assert stain_reference(fitted, tiles) == expected
    with TileStore(next(cohort.config.tiles_folder.glob("*.zip"))) as store:
        first = store.tiles()[0]
        tile = store.read(first.x, first.y)
    Image.fromarray(tile).save(cohort.folder / "mine.png")
    mine = of_image(cohort, cohort.folder / "mine.png")
    assert stain_reference(mine, tiles) == fit([tile.transpose(2, 0, 1)], "macenko")


def of_image(cohort: Cohort, path: Path) -> Config:
    return cohort.variant(
        "stain.normalise=macenko", "stain.reference=image", f"stain.reference_image={path}"
    )


def test_an_image_that_is_no_reference_is_told(cohort: Cohort) -> None:
    path, tiles = cohort.folder / "mine.png", pd.DataFrame()
    with pytest.raises(StageError) as told:
        stain_reference(of_image(cohort, path), tiles)
    assert str(told.value).startswith(f"{path}: cannot be read as an image: ")
    assert "Set stain.reference_image to a PNG, TIFF or JPEG of stained tissue." in str(told.value)
    path.write_bytes(b"no image")
    with pytest.raises(StageError, match="cannot be read as an image"):
        stain_reference(of_image(cohort, path), tiles)
    Image.new("RGB", (32, 32), "white").save(path)
    with pytest.raises(StageError) as told:
        stain_reference(of_image(cohort, path), tiles)
    assert str(told.value) == (
        f"{path}: holds too little stain to be a reference. Take an image that tissue with "
        "haematoxylin and eosin fills."
    )
