"""What augmentation does to a tile, and the MONAI transforms that do it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from monai.transforms import (
    RandAffined,
    RandAxisFlipd,
    RandRotate90d,
    ScaleIntensityRanged,
    Transform,
)

from medkd.datasets.colour_transforms import (
    RandCutoutd,
    RandGaussianBlurd,
    RandPhotometricJitterd,
    RandStainJitterd,
)
from medkd.datasets.transforms import RandColourJitterd

# Counts and pixels.
_WHOLE = ("cutout_holes", "cutout_px")


def _within(low: float, high: float, default: Any) -> Any:
    """A setting of a dataclass, and what it may be."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class AugmentationSettings:
    """What is done to a tile, in this order. Without arguments: what every training does.

    Attributes:
        flip_p: probability of a mirror image, up-down or left-right.
        turn_p: probability of one to three quarter turns; 0.75 makes all four equally likely.
        affine_p: probability of the four below; beyond its rim the tile is mirrored.
        affine_degrees: turn by up to this, either way.
        affine_scale: height and width each by a factor from 1 ± this.
        affine_shear: rows along the columns, then columns along the rows, each by up to this.
        affine_shift_px: each axis by up to this.
        colour_p: probability that each channel is scaled and shifted by itself.
        colour_scale: factor from 1 ± this.
        colour_shift: up to this many levels of 255, either way.
        photometric_p: probability of the four below.
        brightness: factor from 1 ± this, on all channels.
        contrast: factor from 1 ± this, on the distance from the tile's mean luma.
        saturation: factor from 1 ± this, on the distance from each pixel's luma.
        hue: turn about the grey axis by up to this share of a full turn, either way.
        stain_p: probability that haematoxylin, eosin and DAB are each scaled and shifted.
        stain_scale: factor from 1 ± this on the stain's optical density.
        stain_shift: up to this much optical density, either way.
        blur_p: probability of a Gaussian blur.
        blur_sigma_px: least and largest sigma.
        cutout_p: probability that rectangles are covered.
        cutout_holes: how many.
        cutout_px: least and largest side of each.
        cutout_fill: their level of 255.

    Raises:
        ValueError: a setting is outside its range.
    """

    flip_p: float = _within(0, 1, 0.5)
    turn_p: float = _within(0, 1, 0.75)
    affine_p: float = _within(0, 1, 0.0)
    affine_degrees: float = _within(0, 180, 10.0)
    affine_scale: float = _within(0, 0.9, 0.1)
    affine_shear: float = _within(0, 0.9, 0.05)
    affine_shift_px: float = _within(0, 4096, 8.0)
    colour_p: float = _within(0, 1, 1.0)
    colour_scale: float = _within(0, 1, 0.1)
    colour_shift: float = _within(0, 255, 12.0)
    photometric_p: float = _within(0, 1, 0.0)
    brightness: float = _within(0, 1, 0.1)
    contrast: float = _within(0, 1, 0.1)
    saturation: float = _within(0, 1, 0.1)
    hue: float = _within(0, 0.5, 0.02)
    stain_p: float = _within(0, 1, 0.0)
    stain_scale: float = _within(0, 1, 0.05)
    stain_shift: float = _within(0, 6, 0.02)
    blur_p: float = _within(0, 1, 0.0)
    blur_sigma_px: tuple[float, float] = _within(0.01, 32, (0.25, 1.5))
    cutout_p: float = _within(0, 1, 0.0)
    cutout_holes: int = _within(1, 64, 1)
    cutout_px: tuple[int, int] = _within(1, 65536, (16, 64))
    cutout_fill: float = _within(0, 255, 0.0)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            low, high = one.metadata["range"]
            pair = isinstance(one.default, tuple)
            numbers = value if isinstance(value, tuple | list) else (value,)
            if len(numbers) != 1 + pair or list(numbers) != sorted(numbers):
                wanted = "the least, then the largest" if pair else "one number"
                raise ValueError(f"{one.name} is {value}; give {wanted}")
            # Written so that NaN, which compares with nothing, is refused too.
            if not all(low <= number <= high for number in numbers):
                raise ValueError(f"{one.name} is {value}; it must lie within {low} to {high}")
            if one.name in _WHOLE and any(number != int(number) for number in numbers):
                raise ValueError(f"{one.name} is {value}; it must be whole")


def monai_transforms(settings: AugmentationSettings, keys: str = "image") -> list[Transform]:
    """The dictionary transforms of these settings: uint8 3 x H x W to float32 in [0, 1]."""
    s = settings
    transforms = [
        RandAxisFlipd(keys, s.flip_p),
        RandRotate90d(keys, s.turn_p, max_k=3),
        RandAffined(
            keys,
            prob=s.affine_p,
            rotate_range=math.radians(s.affine_degrees),
            shear_range=(s.affine_shear,) * 2,
            translate_range=(s.affine_shift_px,) * 2,
            scale_range=(s.affine_scale,) * 2,
            mode="bilinear",
            padding_mode="reflection",
        ),
        RandColourJitterd(keys, s.colour_p, s.colour_scale, s.colour_shift),
        RandPhotometricJitterd(
            keys, s.photometric_p, s.brightness, s.contrast, s.saturation, s.hue
        ),
        RandStainJitterd(keys, s.stain_p, s.stain_scale, s.stain_shift),
        RandGaussianBlurd(keys, s.blur_p, s.blur_sigma_px),
        RandCutoutd(keys, s.cutout_p, s.cutout_holes, s.cutout_px, s.cutout_fill),
    ]
    chosen = [transform for transform in transforms if transform.prob > 0]
    return [*chosen, ScaleIntensityRanged(keys, a_min=0, a_max=255, b_min=0, b_max=1)]
