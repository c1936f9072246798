from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from medkd.config import TileConfig
from medkd.slides.folds import UNKNOWN_STAIN, Stain, find_folds, typical_stain
from medkd.slides.openslide_reader import open_openslide
from medkd.slides.quality import resample
from medkd.slides.synthetic import SlideSpec, draw_slide, write_slide
from medkd.slides.tiling import TileCounts, open_slide_for_tiling
from medkd.slides.tissue import find_tissue

MPP = 8.0
PINK = (215, 140, 180)
DOUBLED = (165, 55, 105)
"""What two layers of another pink, (201, 116, 160), let through: 245 (T / 245)^2."""


def doubled(image: np.ndarray, glass: float = 245) -> np.ndarray:
    """Twice the tissue lets the square of the light through."""
    return np.rint(glass * np.minimum(image / glass, 1) ** 2).astype(np.uint8)


def section() -> np.ndarray:
    image = np.full((100, 100, 3), 245, np.uint8)
    image[10:90, 10:90] = PINK
    return image


def test_the_typical_stain_by_hand():
    image = section()
    stain = typical_stain(image, MPP, find_tissue(image, MPP))
    absorbed = np.log10(245 / np.array(PINK))
    assert stain.density == pytest.approx(absorbed.mean(), rel=0.01)
    assert stain.colour == pytest.approx(absorbed.max() - absorbed.min(), rel=0.01)
    assert typical_stain(image, MPP, np.zeros((100, 100), bool)) == UNKNOWN_STAIN


def test_a_fold_is_double_tissue():
    image = section()
    image[40:50, 10:90] = DOUBLED  # 80 um wide
    folds = find_folds(image, MPP, Stain(0.16, 0.19))
    assert folds[41:49, 15:85].all()
    assert not folds[:38].any()
    assert not folds[52:].any()


def test_what_is_typical_of_a_strongly_stained_slide_is_no_fold():
    image = np.full((100, 100, 3), DOUBLED, np.uint8)
    typical = typical_stain(image, MPP, np.ones((100, 100), bool))
    assert find_folds(image, MPP, Stain(0.16, 0.19)).all()
    assert not find_folds(image, MPP, typical).any()


@pytest.mark.parametrize(
    "colour",
    [
        (105, 53, 106),  # haematoxylin, the darkest twentieth of a real dense tile
        (70, 35, 85),  # darker still
        (90, 80, 150),  # bluish haematoxylin
        (215, 40, 60),  # blood
        (40, 160, 130),  # green ink
        (200, 15, 20),  # red ink
        (30, 28, 32),  # black ink
        (120, 118, 119),  # dirt
    ],
)
def test_dense_nuclei_blood_ink_and_dirt_are_no_fold(colour):
    image = section()
    image[40:60, 10:90] = colour
    assert not find_folds(image, MPP, Stain(0.16, 0.19)).any()


def test_a_single_dark_spot_is_no_fold():
    image = section()
    image[40:46, 40:46] = DOUBLED  # 48 um square: 0.0023 mm2
    assert not find_folds(image, MPP, Stain(0.16, 0.19)).any()
    image[40:52, 40:52] = DOUBLED
    assert find_folds(image, MPP, Stain(0.16, 0.19)).any()


@pytest.mark.parametrize("site", ["A", "B"])
@pytest.mark.parametrize(("label", "seed"), [("MSI", 3), ("MSS", 2)])
def test_synthetic_folds_are_refused_and_the_tissue_around_them_is_not(tmp_path, label, seed, site):
    """Where tissue was folded is known from the same slide drawn without the fold."""
    plain = SlideSpec(label, seed=seed, site=site)
    folded = dataclasses.replace(plain, artefacts=frozenset({"fold"}))
    before, after = draw_slide(plain), draw_slide(folded)
    # Where twice the tissue lies and the difference can be seen; lumina stay empty.
    changed = (before.astype(int).sum(-1) - after.sum(-1, dtype=int) > 60).astype(np.uint8)
    shares = np.asarray(Image.fromarray(255 * changed).reduce(224)) / 255
    fates = {}
    for name, spec in (("plain", plain), ("folded", folded)):
        write_slide(spec, tmp_path / f"{name}.svs")
        with open_slide_for_tiling(tmp_path / f"{name}.svs", TileConfig()) as slide:
            tiles = list(slide.tiles())
        counts = TileCounts.of(tile.fate for tile in tiles)
        assert counts.candidate == counts.used + sum(counts.rejected.values())
        fates[name] = {(tile.x // 224, tile.y // 224): tile.fate for tile in tiles}
    assert "fold" not in fates["plain"].values()
    mostly = [at for at in fates["folded"] if shares[at[1], at[0]] > 0.4]
    hardly = [at for at in fates["folded"] if shares[at[1], at[0]] < 0.02]
    assert len(mostly) >= 4
    assert np.mean([fates["folded"][at] in ("fold", "pen") for at in mostly]) >= 0.8
    for at in hardly:
        assert fates["folded"][at] == fates["plain"][at]


@pytest.mark.real_data
def test_real_slides_show_no_fold_until_their_tissue_is_doubled(real_slides):
    """A band of 160 um across dense, colourful tissue, doubled before it is made small."""
    for name, mpp in (("CMU-1-Small-Region.svs", None), ("TCGA-CR-7395-01A-01-TS1.svs", 0.25)):
        reader = open_openslide(real_slides / name, TileConfig(), override_mpp=mpp)
        fine, _ = reader.thumbnail(2.0)
        coarse = resample(fine, 2.0, MPP)
        stain = typical_stain(coarse, MPP, find_tissue(coarse, MPP))
        assert not find_folds(coarse, MPP, stain).any()
    band = slice(200, 280)
    fine = fine.copy()
    fine[band] = doubled(fine[band])
    coarse = resample(fine, 2.0, MPP)
    folds = find_folds(coarse, MPP, stain)
    tissue = find_tissue(coarse, MPP)
    assert folds[50:70][tissue[50:70]].mean() > 0.5
    assert not folds[:46].any()
    assert not folds[74:].any()
