from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.config import TileConfig
from medkd.slides.judging import judge_tile
from medkd.slides.quality import white_mask


def load(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def noisy(colour, side: int = 224) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 2, (side, side, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("glass", [(243, 243, 243), (222, 221, 221), (246, 243, 240)])
def test_a_blank_tile_that_the_thumbnail_takes_for_tissue_is_white(glass):
    judged = judge_tile(noisy(glass), TileConfig(), tissue_fraction=0.8)
    assert judged[:2] == ("white", 0.8)
    assert math.isnan(judged.focus)


@pytest.mark.parametrize("value", [250, 252, 255])
def test_a_constant_bright_tile_where_there_is_tissue_was_lost_and_is_unreadable(value):
    pixels = np.full((224, 224, 3), value, np.uint8)
    assert judge_tile(pixels, TileConfig(), tissue_fraction=0.8).fate == "unreadable"


def test_the_share_that_may_be_white_is_a_setting(tissue):
    pixels = noisy((243, 243, 243))
    pixels[:, :32] = tissue(224, 32)  # a seventh of it: white by 6 / 7 = 0.857
    for most, fate in ((0.9, "used"), (0.85, "white"), (1.0, "used")):
        assert judge_tile(pixels, TileConfig(max_white=most), tissue_fraction=0.8).fate == fate


@pytest.mark.parametrize("colour", [(232, 215, 228), (215, 150, 190), (199, 199, 199)])
def test_pale_tissue_and_grey_are_not_white(colour):
    assert not white_mask(np.full((4, 4, 3), colour, np.uint8)).any()


def test_a_tile_of_which_nothing_was_known_is_judged_alone(tissue):
    image = tissue(224, 224)
    parameters = TileConfig()
    assert judge_tile(image, parameters)[:2] == ("used", 1.0)
    assert judge_tile(noisy((243, 243, 243)), parameters)[:2] == ("background", 0.0)
    inked = image.copy()
    inked[60:170] = (30, 150, 120)
    assert judge_tile(inked, parameters).fate == "pen"
    dotted = image.copy()
    dotted[40:150, 40:150] = (30, 150, 120)  # 0.003 mm2, less than a stroke on a slide
    assert judge_tile(dotted, parameters).fate == "pen"
    folded = np.rint(245 * (image / 245.0) ** 4).clip(0, 255).astype(np.uint8)
    image[60:160] = folded[60:160]
    assert judge_tile(image, parameters).fate == "fold"
    assert judge_tile(image, TileConfig(max_fold=0.6)).fate == "used"


BLANK = ("almost-white-1", "almost-white-2", "no-tissue", "no-tissue2", "no-tissue-line")
INKED = ("no-tissue-green-pen", "no-tissue-red-pen", "tcga-green-pen", "tcga-red-pen")
TISSUE = (
    "high-nuclei-score-level0",
    "medium-nuclei-score-level0",
    "very-low-nuclei-score-level0",
    "tcga-lung-rgb",
    "tissue-level0-4302-10273-4814-10785",
    "tissue-level0-7352-11762-7864-12274",
    "low-nuclei-score-level0",  # loose tissue, three quarters of it empty between the fibres
)
WHOLE_SLIDES = ("diagnostic-slide-thumb-rgb", "wsi-blue-pen")


@pytest.mark.real_data
def test_every_real_image_is_spoken_for(real_data):
    there = {path.stem for path in (real_data / "qc_tiles").glob("*.png")}
    assert there == {*BLANK, *INKED, *TISSUE, *WHOLE_SLIDES}


@pytest.mark.real_data
@pytest.mark.parametrize("name", BLANK)
def test_real_blank_tiles_are_refused_whatever_the_thumbnail_said(real_data, name):
    pixels = load(real_data / "qc_tiles" / f"{name}.png")
    assert judge_tile(pixels, TileConfig()).fate == "background"
    assert judge_tile(pixels, TileConfig(), tissue_fraction=1.0).fate == "white"


@pytest.mark.real_data
@pytest.mark.parametrize("name", INKED)
def test_real_inked_tiles_are_refused(real_data, name):
    assert judge_tile(load(real_data / "qc_tiles" / f"{name}.png"), TileConfig()).fate == "pen"


@pytest.mark.real_data
@pytest.mark.parametrize("name", TISSUE)
def test_real_tissue_tiles_are_kept_whatever_the_thumbnail_said(real_data, name):
    pixels = load(real_data / "qc_tiles" / f"{name}.png")
    assert judge_tile(pixels, TileConfig()).fate == "used"
    assert judge_tile(pixels, TileConfig(), tissue_fraction=1.0).fate == "used"


@pytest.mark.real_data
def test_real_whole_slides_are_refused_where_they_are_inked(real_data):
    """Parts of small pictures of slides, some 30 um/px, chosen by eye."""
    parameters = TileConfig(mpp=30.0)
    inked = load(real_data / "qc_tiles" / "diagnostic-slide-thumb-rgb.png")
    assert judge_tile(inked, parameters).fate == "pen"
    slide = load(real_data / "qc_tiles" / "wsi-blue-pen.png")
    assert judge_tile(slide[54:80, 142:], parameters).fate == "pen"
    assert judge_tile(slide[98:, 148:164], parameters).fate == "pen"
    assert judge_tile(slide[20:50, 90:115], parameters).fate == "used"


@pytest.mark.real_data
def test_no_real_colorectal_tile_is_taken_for_a_fold_or_for_white(real_data):
    """Every fifth of 1,500 tiles, each without its slide."""
    paths = sorted((real_data / "crc_tiles").rglob("*.jpg"))[::5]
    fates = [judge_tile(load(path), TileConfig()).fate for path in paths]
    assert len(fates) >= 300
    assert not {"fold", "white", "pen", "black"} & set(fates)
