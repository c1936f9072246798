"""The MONAI transforms that a configuration gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms import Compose, RandAxisFlipd, RandRotate90d

from medkd.config import AugmentConfig
from medkd.datasets.augmentation import monai_transforms
from medkd.datasets.colour_transforms import RandColourJitterd


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)


def names(transforms: Any) -> list[str]:
    return [type(transform).__name__ for transform in transforms]


def test_the_defaults_are_those_of_every_training_so_far() -> None:
    chain = Compose(monai_transforms(AugmentConfig()))
    assert names(chain.transforms) == [
        "RandAxisFlipd", "RandRotate90d", "RandColourJitterd", "ScaleIntensityRanged"
    ]  # fmt: skip
    by_hand = Compose(
        [
            RandAxisFlipd("image", prob=0.5),
            RandRotate90d("image", prob=0.75, max_k=3),
            RandColourJitterd("image", prob=1.0, scale=0.1, shift=12.0),
        ]
    )
    for seed in range(20):
        chain.set_random_state(seed=seed)
        by_hand.set_random_state(seed=seed)
        done = np.asarray(chain({"image": image()})["image"])
        levels = np.asarray(by_hand({"image": image()})["image"])
        np.testing.assert_array_equal(done, levels / np.float32(255))


def test_what_is_switched_off_is_left_out() -> None:
    off = AugmentConfig(flip_p=0, turn_p=0, colour_p=0)
    assert names(monai_transforms(off)) == ["ScaleIntensityRanged"]
    stained = AugmentConfig(flip_p=0, turn_p=0, colour_p=0, stain_p=0.5)
    assert names(monai_transforms(stained)) == ["RandStainJitterd", "ScaleIntensityRanged"]


def test_everything_at_once_gives_floats_between_0_and_1_and_spares_the_input() -> None:
    settings = AugmentConfig(
        where="loader",
        affine_p=1,
        photometric_p=1,
        stain_p=1,
        blur_p=1,
        jpeg_p=1,
        cutout_p=1,
        cutout_px=(2, 6),
    )
    assert "RandJpegd" in names(monai_transforms(settings))
    chain = Compose(monai_transforms(settings))
    given = image()
    for seed in range(10):
        chain.set_random_state(seed=seed)
        done = np.asarray(chain({"image": given})["image"])
        assert done.dtype == np.float32
        assert 0 <= done.min() < done.max() <= 1
    np.testing.assert_array_equal(given, image())
