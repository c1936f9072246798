from __future__ import annotations

import math

import numpy as np
import pytest

from medkd.slides.quality import area_mm2
from medkd.slides.tissue import find_tissue

MPP = 8.0
GLASS = (243, 243, 243)
PINK = (215, 150, 190)


def slide(size: int = 250) -> np.ndarray:
    """Glass of 2 x 2 mm with the noise of a scanner."""
    noise = np.random.default_rng(0).normal(0, 2, (size, size, 3))
    return np.clip(GLASS + noise, 0, 255).astype(np.uint8)


def disc(radius_um: float, size: int = 250) -> np.ndarray:
    y, x = (np.indices((size, size)) - size // 2) * MPP
    return x**2 + y**2 <= radius_um**2


def tissue_mm2(image: np.ndarray) -> float:
    return area_mm2(int(find_tissue(image, MPP).sum()), MPP)


@pytest.mark.parametrize("colour", [PINK, (120, 70, 150), (232, 215, 228), (200, 60, 110)])
def test_area_of_a_disc(colour):
    """Pale eosin, haematoxylin, very pale and very dark tissue: pi r squared, to 5 per cent."""
    image = slide()
    image[disc(600)] = colour
    assert tissue_mm2(image) == pytest.approx(math.pi * 0.6**2, rel=0.05)


def test_area_does_not_depend_on_resolution():
    image = np.repeat(np.repeat(slide(125), 2, 0), 2, 1)
    image[disc(600)] = PINK
    coarse = image[::2, ::2]
    fine_mm2 = area_mm2(int(find_tissue(image, 8.0).sum()), 8.0)
    coarse_mm2 = area_mm2(int(find_tissue(coarse, 16.0).sum()), 16.0)
    assert coarse_mm2 == pytest.approx(fine_mm2, rel=0.05)


def test_holes_stay_holes():
    image = slide()
    image[disc(800)] = PINK
    image[disc(200)] = GLASS
    mask = find_tissue(image, MPP)
    assert not mask[125, 125]
    expected = math.pi * (0.8**2 - 0.2**2)
    assert area_mm2(int(mask.sum()), MPP) == pytest.approx(expected, rel=0.05)


def test_loose_tissue_is_joined():
    """Fibres of 8 um, 16 um apart, are tissue throughout."""
    image = slide()
    image[50:200, 50:200:3] = (180, 90, 150)
    mask = find_tissue(image, MPP)
    assert mask[60:190, 60:190].mean() > 0.99


def test_dust_is_left_out():
    image = slide()
    image[100:108, 100:108] = PINK  # 64 um square: 0.004 mm2
    assert tissue_mm2(image) == 0
    image[100:116, 100:116] = PINK  # 128 um square: 0.016 mm2
    assert tissue_mm2(image) == pytest.approx(0.0164, rel=0.3)


@pytest.mark.parametrize("level", [255, 243, 225, 200])
def test_blank_glass_is_no_tissue(level):
    image = np.clip(slide().astype(int) + level - 243, 0, 255).astype(np.uint8)
    assert tissue_mm2(image) == 0


def test_tinted_glass_is_no_tissue():
    image = np.clip(slide() - np.array([0, 4, 6]), 0, 255).astype(np.uint8)
    assert tissue_mm2(image) == 0


def test_grey_shadows_are_no_tissue():
    image = slide()
    image[:, 100:110] = (90, 90, 92)  # the edge of a cover slip
    image[:, :100] = (222, 221, 221)
    assert tissue_mm2(image) == 0


def test_tissue_without_glass_is_all_tissue():
    noise = np.random.default_rng(0).normal(0, 12, (250, 250, 1))
    image = np.clip(PINK + noise, 0, 255).astype(np.uint8)
    assert find_tissue(image, MPP).mean() > 0.99


def test_black_and_fluorescence_are_no_tissue():
    black = np.zeros((250, 250, 3), np.uint8)
    assert tissue_mm2(black) == 0
    for stain in ((0, 0, 220), (10, 190, 20), (200, 20, 40)):
        image = black.copy()
        image[disc(500)] = stain
        assert tissue_mm2(image) == 0


def test_black_beside_the_scan_is_no_tissue():
    image = slide()
    image[disc(600)] = PINK
    image[:, :30] = 0
    assert tissue_mm2(image) == pytest.approx(math.pi * 0.6**2, rel=0.05)


@pytest.mark.parametrize(
    "ink", [(40, 160, 130), (60, 110, 200), (200, 15, 20), (30, 28, 32)], ids=str
)
def test_ink_is_no_tissue(ink):
    image = slide()
    image[20:60, :] = ink
    assert tissue_mm2(image) == 0
    image[disc(400)] = PINK
    assert tissue_mm2(image) == pytest.approx(math.pi * 0.4**2, rel=0.05)


def test_a_single_pixel_and_a_thin_strip_work():
    assert not find_tissue(np.full((1, 1, 3), 243, np.uint8), MPP).any()
    assert find_tissue(np.full((1, 400, 3), PINK, np.uint8), MPP).shape == (1, 400)
