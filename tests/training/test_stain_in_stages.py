"""Stain normalisation is the same in training, in prediction and in inference of one slide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.config import Config, load_config
from medkd.datasets.stain import MacenkoStains, normalise
from medkd.datasets.stain_reference import stain_reference
from medkd.errors import ConfigError, StageError, TrainingError
from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.slides.store import TileStore
from medkd.training.data import epoch_batches, load_tile_table, training_loader
from medkd.training.predict_stage import run_predict_stage
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def predictions_of_slide(path: Path, slide_id: str) -> pd.Series:
    table = pd.read_parquet(path)
    students = table[(table["slide_id"] == slide_id) & table["network"].str.match("student_")]
    return students.groupby(["x", "y"])["probability"].mean()


def called(config: Config, path: Path) -> dict[tuple[int, int], float]:
    package = load_package(config.model_folder, needs_operating_point=False)
    return {
        (tile.x, tile.y): tile.probability
        for tile in infer_slide(path, package, Students(package)).tiles
    }


def test_a_slide_gets_the_colours_of_training(cohort: Cohort) -> None:
    config = cohort.variant("stain.normalise=macenko", "train.epochs=1")
    run_train_stage(config, cohort.rows)
    table = load_tile_table(config, cohort.rows)
    reference = stain_reference(config, table.tiles)
    package = load_package(config.model_folder, needs_operating_point=False)
    assert isinstance(reference, MacenkoStains)
    assert package.manifest.preprocessing.stain == reference
    assert "Macenko's method" in (config.model_folder / "model_card.md").read_text()

    path = run_predict_stage(config, cohort.rows).path
    slide = cohort.rows[0]
    expected = predictions_of_slide(path, slide.slide_id)
    found = called(config, slide.path)
    assert len(found) == len(expected) > 5
    for place, probability in found.items():
        assert probability == pytest.approx(expected[place], abs=1e-4)

    # Without its reference the same package says something else.
    manifest = config.model_folder / "model.json"
    content = json.loads(manifest.read_text())
    content["preprocessing"]["stain"] = None
    manifest.write_text(json.dumps(content))
    raw = called(config, slide.path)
    assert max(abs(raw[place] - found[place]) for place in found) > 0.01


@pytest.mark.parametrize("where", ["device", "loader"])
def test_training_sees_normalised_tiles(cohort: Cohort, where: str) -> None:
    """Bytes to be augmented on the device, or what the loader makes of them."""
    config = cohort.variant(
        "stain.normalise=macenko",
        "stain.reference=published",
        f"train.augment.where={where}",
        "train.augment.flip_p=0",
        "train.augment.turn_p=0",
        "train.augment.colour_p=0",
        "train.balance=none",
        "train.batch_size=8",
    )
    table = load_tile_table(config, cohort.rows).tiles
    training = table[table["role"] == "train"].reset_index(drop=True)
    reference = stain_reference(config, table)
    assert reference is not None
    loader, sampler = training_loader(config, training, stain=reference)
    batch = next(iter(epoch_batches(loader, sampler, config, 0)))
    images = batch["image"].numpy()
    for (_, index), image in zip(sampler, images, strict=False):
        row = training.loc[index]
        with TileStore(config.tiles_folder / f"{row['slide_id']}.zip") as store:
            stored = store.read(row["x"], row["y"]).transpose(2, 0, 1)
        expected = normalise(stored, reference)
        if where == "loader":
            np.testing.assert_allclose(image * 255, expected, atol=1e-4)
        else:
            np.testing.assert_array_equal(image, expected)


def test_another_normalisation_is_another_run(cohort: Cohort) -> None:
    config = cohort.variant("train.epochs=1")
    run_train_stage(config, cohort.rows)
    other = cohort.variant("train.epochs=1", "stain.normalise=reinhard")
    with pytest.raises(TrainingError, match="was begun with other settings"):
        run_train_stage(other, cohort.rows)
    with pytest.raises(StageError) as told:
        run_predict_stage(other, cohort.rows)
    assert str(told.value) == (
        f"{config.run_folder}: was trained with another stain normalisation than that in 'stain'. "
        "Bring the earlier settings back, or train again with --restart."
    )


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["reference=image"], "'reference: image' and the key 'reference_image' need each other"),
        (["reference_image=a.png"], "'reference: image' and the key 'reference_image' need each"),
        (
            ["normalise=reinhard", "reference=published"],
            "'reference: published' is of 'normalise: macenko' alone",
        ),
        (["normalise=vahadane"], "'stain.normalise' (it is 'vahadane')"),
    ],
)
def test_settings_that_do_not_go_together(assignments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, tuple(f"stain.{assignment}" for assignment in assignments))
    assert told in str(error.value)


def test_the_image_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "medkd.yaml"
    path.write_text("stain: {normalise: macenko, reference: image, reference_image: mine.png}")
    assert load_config(path).stain.reference_image == tmp_path / "mine.png"
