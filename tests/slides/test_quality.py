from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medkd.config import TileConfig
from medkd.slides.quality import (
    COARSE_MPP,
    black_mask,
    disc_of,
    find_pen,
    focus_score,
    pen_mask,
    resample,
    without_small_objects,
)
from medkd.slides.tissue import find_tissue

TILE_MPP = 0.5


def load(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def usable(pixels: np.ndarray, mpp: float = TILE_MPP) -> bool:
    """Whether a tile by itself passes every test with the default thresholds."""
    parameters = TileConfig()
    coarse = resample(pixels, mpp, COARSE_MPP)
    return bool(
        find_tissue(coarse, COARSE_MPP, smallest_mm2=0).mean() >= parameters.min_tissue
        and find_pen(coarse, COARSE_MPP).mean() <= parameters.max_pen
        and focus_score(pixels, mpp) >= parameters.min_focus
    )


@pytest.mark.parametrize(
    "colour", [(40, 160, 130), (110, 200, 180), (60, 110, 200), (200, 15, 20), (30, 28, 32)]
)
def test_inks_are_ink(colour):
    assert pen_mask(np.full((4, 4, 3), colour, np.uint8)).all()


@pytest.mark.parametrize(
    "colour",
    [
        (243, 243, 243),  # glass
        (215, 140, 180),  # eosin
        (205, 60, 100),  # dense eosin
        (105, 53, 106),  # haematoxylin, the darkest twentieth of a real dense tile
        (58, 24, 66),  # haematoxylin, the darkest real epithelium of 1,500 tiles
        (90, 80, 150),  # bluish haematoxylin
        (190, 55, 80),  # red blood cells
        (222, 221, 221),  # a shadow
    ],
)
def test_stain_and_glass_are_no_ink(colour):
    assert not pen_mask(np.full((4, 4, 3), colour, np.uint8)).any()


def test_strokes_gain_their_rim_and_specks_are_left():
    image = np.full((100, 100, 3), 243, np.uint8)
    image[10:14, 10:14] = (40, 160, 130)  # 32 um square: 0.001 mm2
    assert not find_pen(image, 8.0).any()
    image[50:60, :] = (40, 160, 130)
    pen = find_pen(image, 8.0)
    assert pen[45:65].all()
    assert not pen[:44].any()
    assert not pen[66:].any()


def test_small_objects_are_measured_in_mm2():
    mask = np.zeros((60, 60), bool)
    mask[:10, :10] = True
    mask[40:60, 40:60] = True
    kept = without_small_objects(mask, 0.01, 8.0)  # 156 px
    assert kept.sum() == 400
    assert without_small_objects(mask, 0.01, 16.0).sum() == 500  # 39 px


def test_disc_of():
    assert disc_of(16, 8).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert disc_of(24, 8).all()  # a radius of 1.5 px reaches the corners of 3 x 3
    assert disc_of(4, 8).tolist() == [[True]]


def test_black():
    assert black_mask(np.full((2, 2, 3), 39, np.uint8)).all()
    assert not black_mask(np.full((2, 2, 3), (0, 0, 40), np.uint8)).any()


@pytest.mark.parametrize("shape", [(224, 224), (112, 448), (448, 112), (256, 320), (223, 223)])
@pytest.mark.parametrize("to_mpp", [1.0, 2.0, 3.0, 8.0])
def test_resampling_is_the_same_to_the_last_bit_by_whichever_way(shape, to_mpp):
    """The short cut for halves, quarters ... rounds as Pillow's box filter does."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    size = [max(round(side * 0.5 / to_mpp), 1) for side in shape]
    expected = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX)
    np.testing.assert_array_equal(resample(pixels, 0.5, to_mpp), np.asarray(expected))


def test_a_finer_image_is_not_made_up():
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert resample(pixels, 1.0, 0.5) is pixels


def test_focus_is_detail_over_contrast():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    detail = ndimage.laplace(grey, mode="nearest").std() / 4
    assert focus_score(pixels, 1.0) == pytest.approx(detail / grey.std(), rel=1e-5)


def test_focus_by_hand():
    """Alternating columns of -a and +a: the Laplacian is 4a everywhere, so the score is 1."""
    columns = np.where(np.arange(64) % 2, 180, 60).astype(np.uint8)
    image = np.broadcast_to(columns[None, :, None], (64, 64, 3)).copy()
    assert focus_score(image, 1.0) == pytest.approx(1.0, abs=0.02)
    assert focus_score(np.full((64, 64, 3), 128, np.uint8), 1.0) == 0


def test_focus_falls_with_blur_and_not_with_contrast(tissue):
    image = tissue(224, 224)
    scores = [
        focus_score(ndimage.gaussian_filter(image, (sigma / TILE_MPP,) * 2 + (0,)), TILE_MPP)
        for sigma in (0, 1, 2, 3, 4)
    ]
    assert scores == sorted(scores, reverse=True)
    pale = (255 - (255 - image.astype(float)) * 0.4).astype(np.uint8)
    assert focus_score(pale, TILE_MPP) == pytest.approx(scores[0], rel=0.1)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "almost-white-1",
        "almost-white-2",
        "no-tissue",
        "no-tissue2",
        "no-tissue-line",
        "no-tissue-green-pen",
        "no-tissue-red-pen",
        "tcga-green-pen",
        "tcga-red-pen",
    ],
)
def test_real_blank_and_inked_images_are_refused(real_data, name):
    assert not usable(load(real_data / "qc_tiles" / f"{name}.png"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "high-nuclei-score-level0",
        "medium-nuclei-score-level0",
        "very-low-nuclei-score-level0",
        "tcga-lung-rgb",
        "tissue-level0-4302-10273-4814-10785",
        "tissue-level0-7352-11762-7864-12274",
    ],
)
def test_real_tissue_is_kept(real_data, name):
    assert usable(load(real_data / "qc_tiles" / f"{name}.png"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "mpp", "lower", "upper"),
    [("diagnostic-slide-thumb-rgb", 30.0, 0.15, 0.45), ("wsi-blue-pen", 30.0, 0.02, 0.08)],
)
def test_ink_on_real_whole_slides(real_data, name, mpp, lower, upper):
    """The share that is inked, with rims, judged by eye: a quarter, and two short strokes."""
    image = load(real_data / "qc_tiles" / f"{name}.png")
    assert lower < find_pen(image, mpp).mean() < upper


@pytest.mark.real_data
def test_real_colorectal_tiles_pass_and_their_blurred_copies_do_not(real_data):
    """Every tenth of 1,500 tiles; defocus of 3 um (sigma) leaves nuclei without an outline."""
    paths = sorted((real_data / "crc_tiles").rglob("*.jpg"))[::10]
    tiles = [load(path) for path in paths]
    assert len(tiles) >= 100
    assert np.mean([usable(tile) for tile in tiles]) > 0.97
    blurred = [ndimage.gaussian_filter(tile, (3 / TILE_MPP,) * 2 + (0,)) for tile in tiles]
    focus = np.array([focus_score(tile, TILE_MPP) for tile in blurred])
    assert (focus < TileConfig().min_focus).mean() > 0.97
