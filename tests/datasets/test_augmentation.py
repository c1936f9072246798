"""Settings of the augmentation, and the MONAI transforms that they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose

from medkd.datasets.augmentation import AugmentationSettings, monai_transforms
from medkd.datasets.transforms import tile_transforms


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)


def names(transforms: Any) -> list[str]:
    return [type(transform).__name__ for transform in transforms]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blur_p": 1.5}, "blur_p is 1.5; it must lie within 0 to 1"),
        ({"flip_p": -0.1}, "flip_p is -0.1; it must lie within 0 to 1"),
        ({"colour_scale": float("nan")}, "colour_scale is nan; it must lie within 0 to 1"),
        ({"hue": 0.6}, "hue is 0.6; it must lie within 0 to 0.5"),
        ({"blur_sigma_px": (2.0, 1.0)}, "give the least, then the largest"),
        ({"blur_sigma_px": 2.0}, "give the least, then the largest"),
        ({"blur_sigma_px": (0.0, 1.0)}, "it must lie within 0.01 to 32"),
        ({"cutout_px": (0, 4)}, "it must lie within 1 to 65536"),
        ({"cutout_px": (2.5, 4)}, "it must be whole"),
        ({"cutout_holes": 0}, "cutout_holes is 0; it must lie within 1 to 64"),
        ({"affine_degrees": (1, 2)}, "give one number"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentationSettings(**wrong)


def test_the_defaults_are_the_tile_transforms_draw_for_draw() -> None:
    ours = Compose(monai_transforms(AugmentationSettings()))
    theirs = Compose(tile_transforms(augment=True).transforms[1:-1])
    assert names(ours.transforms) == names(theirs.transforms)
    for seed in range(20):
        seen = []
        for chain in (ours, theirs):
            chain.set_random_state(seed=seed)
            seen.append(np.asarray(chain({"image": image()})["image"]))
        np.testing.assert_array_equal(*seen)


def test_what_is_switched_off_is_left_out() -> None:
    off = AugmentationSettings(flip_p=0, turn_p=0, colour_p=0)
    assert names(monai_transforms(off)) == ["ScaleIntensityRanged"]
    stained = AugmentationSettings(flip_p=0, turn_p=0, colour_p=0, stain_p=0.5)
    assert names(monai_transforms(stained)) == ["RandStainJitterd", "ScaleIntensityRanged"]


def test_everything_at_once_gives_floats_between_0_and_1_and_spares_the_input() -> None:
    settings = AugmentationSettings(
        affine_p=1, photometric_p=1, stain_p=1, blur_p=1, cutout_p=1, cutout_px=(2, 6)
    )
    chain = Compose(monai_transforms(settings))
    given = image()
    for seed in range(10):
        chain.set_random_state(seed=seed)
        done = np.asarray(chain({"image": given})["image"])
        assert done.dtype == np.float32
        assert 0 <= done.min() < done.max() <= 1
    np.testing.assert_array_equal(given, image())
