"""The MONAI transforms that augment a tile."""

from __future__ import annotations

import math

from monai.transforms import (
    RandAffined,
    RandAxisFlipd,
    RandRotate90d,
    ScaleIntensityRanged,
    Transform,
)

from medkd.config import AugmentConfig
from medkd.datasets.colour_transforms import (
    RandColourJitterd,
    RandCutoutd,
    RandGaussianBlurd,
    RandPhotometricJitterd,
    RandStainJitterd,
)
from medkd.datasets.jpeg_transforms import RandJpegd


def monai_transforms(settings: AugmentConfig, keys: str = "image") -> list[Transform]:
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
        RandJpegd(keys, s.jpeg_p, s.jpeg_quality),
        RandCutoutd(keys, s.cutout_p, s.cutout_holes, s.cutout_px, s.cutout_fill),
    ]
    chosen = [transform for transform in transforms if transform.prob > 0]
    return [*chosen, ScaleIntensityRanged(keys, a_min=0, a_max=255, b_min=0, b_max=1)]
