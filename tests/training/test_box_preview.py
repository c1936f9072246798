"""The preview of boxes shows training images, and what training really sees of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageColor
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config, load_config
from medkd.datasets.box_drawing import BOX_COLOURS
from medkd.datasets.box_summary import NO_BOX
from medkd.errors import ConfigError, MethodError, StageError
from medkd.importers.box_table import SCHEMA
from medkd.training.box_preview import draw_boxed_images, write_box_preview
from medkd.training.box_set import load_box_set
from medkd.training.data import epoch_batches
from tests.training.box_cohort import box_cohort


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Forty images of 64 px, of which 20 train; read by all tests."""
    return box_cohort(tmp_path_factory.mktemp("boxes") / "experiment")


def variant(config: Config, *assignments: str) -> Config:
    return load_config(config.output / "medkd.yaml", assignments)


def test_the_draws_are_those_of_the_training(experiment: Config) -> None:
    """Every batch of two epochs, as the training gets them, holds the previewed images."""
    config = variant(experiment, "train.balance=none", "train.augment.photometric_p=0.5")
    seen = draw_boxed_images(config, images=6, draws=2)
    assert seen.columns == ("stored", "epoch 1", "epoch 2")
    loader, sampler = load_box_set(config).training_loader(1)
    turned = 0
    for epoch in range(2):
        sampler.epoch, sampler.skip = epoch, 0
        order = [index for _, index in sampler]
        batches = list(epoch_batches(loader, sampler, config, epoch))
        images, labels = (
            torch.cat([batch[key] for batch in batches]) for key in ("image", "label")
        )
        found = 0
        for n, place in enumerate(seen.places):
            if order.index(place) >= len(images):
                continue  # of the last batch, which is dropped
            at = order.index(place)
            np.testing.assert_array_equal(
                seen.images[epoch + 1, n], np.rint(images[at].numpy() * 255)
            )
            np.testing.assert_array_equal(seen.boxes[epoch + 1, n], labels[at].numpy())
            found += 1
            turned += not np.array_equal(seen.boxes[epoch + 1, n], seen.boxes[0, n])
        assert found >= 3
    assert turned


def test_the_first_column_is_the_stored_image_with_its_boxes_resized(experiment: Config) -> None:
    seen = draw_boxed_images(experiment, images=6, draws=1)
    items = load_box_set(experiment).items["train"]
    squares = 0
    for n, place in enumerate(seen.places.tolist()):
        item = items[place]
        assert item["name"] == seen.names[n]
        real = seen.boxes[0, n][seen.boxes[0, n][:, 0] >= 0]
        # Files are 64 x 64 or 80 x 60, and the square has 64 px.
        scale = 64 / max(item["size_px"])
        np.testing.assert_allclose(real[:, 1:], item["boxes"] * scale, atol=1e-5)
        if scale == 1:
            stored = np.asarray(Image.open(item["image"])).transpose(2, 0, 1)
            np.testing.assert_array_equal(seen.images[0, n], stored)
            squares += 1
    assert squares


def test_one_image_shows_nothing_and_the_others_something(experiment: Config) -> None:
    seen = draw_boxed_images(experiment, images=6, draws=1)
    assert seen.labels == ("polyp",) * 5 + (NO_BOX,)
    assert ((seen.boxes[:, :5, :, 0] >= 0).any(axis=2)).all()
    assert (seen.boxes[:, 5, :, 0] == -1).all()
    assert len(set(seen.names)) == 6
    # A single row is of a box; more rows than there are boxes are without.
    assert draw_boxed_images(experiment, images=1, draws=1).labels == ("polyp",)
    everything = draw_boxed_images(experiment, images=50, draws=1)
    counts = load_box_set(experiment).items["train"].counts
    assert len(everything.labels) == len(counts) == 20
    assert everything.labels.count(NO_BOX) == (counts == 0).sum() > 1


def test_each_class_has_its_turn_and_its_colour(tmp_path: Path) -> None:
    config = box_cohort(tmp_path / "experiment")
    table = pq.read_table(config.detection.boxes)
    # Boxes of the first 34 images are polyps, others cancers; of images with two the second is.
    labels = [
        ["polyp" if n < 34 and k == 0 else "cancer" for k in range(len(boxes))]
        for n, boxes in enumerate(table["boxes"].to_pylist())
    ]
    at, field = table.column_names.index("labels"), SCHEMA.field("labels")
    pq.write_table(
        table.set_column(at, field, pa.array(labels, field.type)), config.detection.boxes
    )
    config = variant(config, "detection.classes=[polyp, cancer]", "train.augment.enabled=false")
    path = tmp_path / "sheet.png"
    seen = write_box_preview(config, path, images=5, draws=1)
    showing = [sum(name in label for label in seen.labels) for name in ("polyp", "cancer")]
    assert min(showing) >= 2
    assert seen.labels[-1] == NO_BOX
    np.testing.assert_array_equal(seen.boxes[1], seen.boxes[0])
    # The last row has no boxes: what is coloured below it is the key.
    written = np.asarray(Image.open(path).convert("RGB"))
    for number in range(2):
        colour = (written == ImageColor.getrgb(BOX_COLOURS[number])).all(-1)
        assert colour.any()
        assert colour[-40:].any()


def test_the_picture_is_the_same_twice_and_is_drawn_upon_at_the_boxes_alone(
    experiment: Config, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    seen = write_box_preview(experiment, first, images=4, draws=2)
    write_box_preview(experiment, second, images=4, draws=2)
    assert first.read_bytes() == second.read_bytes()
    written = np.asarray(Image.open(first).convert("RGB"))
    colour = np.array(ImageColor.getrgb(BOX_COLOURS[0]))
    assert not (written[-40:] == colour).all(-1).any()  # one class needs no key
    # Images of 64 px are shown twice as large; the last row, without boxes, as it is.
    plain = np.kron(seen.images[0, 3].transpose(1, 2, 0), np.ones((2, 2, 1), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(written[:, :, 0], (8, 8))
    ((top, left),) = np.argwhere((windows == plain[:8, :8, 0]).all((2, 3)))
    np.testing.assert_array_equal(written[top : top + 128, left : left + 128], plain)
    for row in range(3):
        begins = top - (3 - row) * (128 + 6)
        for column, across in enumerate((0, 128 + 24, 128 + 24 + 128 + 6)):
            shown = written[begins : begins + 128, left + across : left + across + 128][::2, ::2]
            wanted = seen.images[column, row].transpose(1, 2, 0)
            differs = (shown != wanted).any(-1)
            boxes = seen.boxes[column, row]
            near = np.zeros((64, 64), bool)
            for _, x1, y1, x2, y2 in boxes[boxes[:, 0] >= 0]:
                rows, columns = np.mgrid[:64, :64]
                inside = (
                    (columns >= x1 - 3) & (columns <= x2 + 3) & (rows >= y1 - 3) & (rows <= y2 + 3)
                )
                hollow = (columns > x1 + 3) & (columns < x2 - 3) & (rows > y1 + 3) & (rows < y2 - 3)
                near |= inside & ~hollow
                middle = min(max(round((y1 + y2) / 2), 0), 63)
                assert (shown[middle, max(0, int(x1) - 2) : int(x1) + 4] == colour).all(-1).any()
            assert differs.any()
            assert not (differs & ~near).any()


def preview(config: Config, *options: str):
    return CliRunner().invoke(
        app, ["preview", "--config", str(config.output / "medkd.yaml"), *options]
    )


def test_the_command_writes_the_picture(experiment: Config, tmp_path: Path) -> None:
    out = tmp_path / "boxes.png"
    done = preview(experiment, "--out", str(out), "--tiles", "50", "--draws", "1")
    assert done.exit_code == 0
    assert "There are only 20 training images.\n" in done.output
    assert "train.augment: flip 0.5, turn 0.75, colour 1\n" in done.output
    assert f"Preview of 20 training images, 1 draws each: {out}" in done.output
    assert out.exists()


def test_what_is_wrong_is_told_in_a_line_and_nothing_is_written(
    experiment: Config, tmp_path: Path
) -> None:
    out = tmp_path / "boxes.png"
    picture = preview(experiment, "--out", str(tmp_path / "boxes.jpg"))
    assert isinstance(picture.exception, ConfigError)
    assert str(picture.exception).endswith("is no PNG. Name a file such as tiles.png.")
    views = preview(experiment, "--out", str(out), "-s", "train.method=kdcl")
    assert isinstance(views.exception, MethodError)
    assert "each network a view of its own" in str(views.exception)
    elsewhere = f"detection.boxes={tmp_path / 'none.parquet'}"
    without = preview(experiment, "--out", str(out), "-s", elsewhere)
    assert isinstance(without.exception, StageError)
    assert str(without.exception) == (
        f"{tmp_path / 'none.parquet'}: no boxes are there yet. Import the data set first: medkd "
        "import kvasir, coco or yolo."
    )
    early = preview(experiment, "--out", str(out), "-s", f"output={tmp_path / 'new'}")
    assert isinstance(early.exception, StageError)
    assert str(early.exception).endswith("no split yet. Run 'medkd split' first.")
    assert list(tmp_path.iterdir()) == []
