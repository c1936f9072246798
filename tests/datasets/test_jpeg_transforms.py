"""Compression as JPEG, against Pillow; the conventions are in test_colour_transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medkd.config import load_config
from medkd.datasets.jpeg_transforms import RandJpeg, compress_jpeg
from medkd.errors import ConfigError
from tests.datasets.test_stain import drawn


def tile() -> np.ndarray:
    return drawn(side=48).round().astype(np.uint8)


def by_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("quality", [10, 40, 75, 95])
def test_it_loses_what_pillow_loses(quality: int) -> None:
    """Two builds of libjpeg round some coefficients otherwise; the loss is as large."""
    ours, theirs = compress_jpeg(tile(), quality), by_pillow(tile(), quality)
    lost = np.abs(theirs - tile()).mean()
    np.testing.assert_allclose(np.abs(ours - tile()).mean(), lost, rtol=0.02)
    assert np.abs(ours - theirs).mean() < 0.25 * lost


def test_floats_are_rounded_and_flat_grey_survives() -> None:
    grey = np.full((3, 20, 27), 127.6, np.float32)
    done = compress_jpeg(grey, 90)
    assert done.dtype == np.float32
    np.testing.assert_array_equal(done, np.full((3, 20, 27), 128))
    beyond = np.full((3, 16, 16), 300.0)
    np.testing.assert_array_equal(compress_jpeg(beyond, 90), np.full((3, 16, 16), 255))


def test_every_quality_of_the_interval_is_drawn() -> None:
    transform = RandJpeg(prob=1.0, quality=(60, 63))
    transform.set_random_state(seed=0)
    drawn_qualities = set()
    for _ in range(60):
        done = transform(tile())
        drawn_qualities.add(transform.quality)
        np.testing.assert_array_equal(done, compress_jpeg(tile(), transform.quality))
    assert drawn_qualities == {60, 61, 62, 63}


def test_the_key_needs_the_loader() -> None:
    with pytest.raises(ConfigError, match="'jpeg_p' needs 'where: loader'"):
        load_config(None, ("train.augment.jpeg_p=0.5",))
    config = load_config(None, ("train.augment.jpeg_p=0.5", "train.augment.where=loader"))
    assert config.train.augment.jpeg_quality == (40, 95)
    with pytest.raises(ConfigError, match="give the least, then the largest"):
        load_config(None, ("train.augment.jpeg_quality=[90, 40]",))
