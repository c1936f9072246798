"""Golden results on real files: counts, places and fates.

The maps were held against the pictures of the slides, by eye, before they were written down.
"""

from __future__ import annotations

import numpy as np
import openslide
import pytest
from PIL import Image

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.openslide_reader import open_openslide
from medkd.slides.tiling import TileCounts, open_slide_for_tiling

pytestmark = pytest.mark.real_data

# One letter a tile, row by row: u used, b background, k black.
CMU_1 = [
    "bbbbbbbbb",
    "bbbbuubbb",
    "bbbbuuubb",
    "bbbbuuubb",
    "bbbbuuuub",
    "bbbbuuuub",
    "bbbbuuuub",
    "bbbbuuubb",
    "bbbuuuuub",
    "bbbuuuuub",
    "bbbuuuuub",
    "bbbuuuuub",
    "bbuuuuuub",
]

TCGA_CR_7395 = [
    "bbbbbbbub",
    "bbbuuuuub",
    "buuuuuuuu",
    "uuuuuuuuu",
    "uuuuuuuuu",
    "buuuuuuuu",
    "bbuuuuuuu",
]


def scan(path, **options):
    with open_slide_for_tiling(path, TileConfig(), **options) as slide:
        return slide, list(slide.tiles())


def fate_map(tiles) -> list[str]:
    letters = {"used": "u", "background": "b", "black": "k", "pen": "p", "out_of_focus": "o"}
    rows: dict[int, str] = {}
    for tile in tiles:
        rows[tile.y] = rows.get(tile.y, "") + letters[tile.fate]
    return list(rows.values())


def refused(path, **options) -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_slide_for_tiling(path, TileConfig(), **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_aperio_jpeg(real_slides):
    slide, tiles = scan(real_slides / "CMU-1-Small-Region.svs")
    properties = slide.properties
    assert (properties.width_px, properties.height_px) == (2220, 2967)
    assert (properties.mpp, properties.mpp_source, properties.vendor) == (
        0.499,
        "metadata",
        "aperio",
    )
    assert not properties.synthetic
    assert slide.warnings == ()
    assert fate_map(tiles) == CMU_1
    # 112 um at 0.499 um are 224.449 px.
    assert [tile.x for tile in tiles[:9]] == [0, 224, 449, 673, 898, 1122, 1347, 1571, 1796]
    assert sorted({tile.y for tile in tiles})[-1] == round(12 * 112 / 0.499) == 2693
    assert slide.tissue_area_mm2 == pytest.approx(0.63, abs=0.03)
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert (counts.candidate, counts.used, counts.unreadable) == (117, 49, 0)


def test_tiles_are_where_they_say(real_slides):
    """A tile at 0.499 wanted at 0.499 is the slide's own pixels, by OpenSlide alone."""
    path = real_slides / "CMU-1-Small-Region.svs"
    with open_slide_for_tiling(path, TileConfig(mpp=0.499)) as slide:
        used = [tile for tile in slide.tiles() if tile.pixels is not None]
    handle = openslide.OpenSlide(path)
    for tile in used[::7]:
        expected = handle.read_region((tile.x, tile.y), 0, (224, 224)).convert("RGB")
        np.testing.assert_array_equal(tile.pixels, np.asarray(expected))


def test_label_and_macro_are_never_read(real_slides, monkeypatch):
    def never(self):
        raise AssertionError("the label and macro images hold names")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(never))
    _, tiles = scan(real_slides / "CMU-1-Small-Region.svs")
    assert len(tiles) == 117


def test_aperio_jpeg_2000_without_mpp(real_slides):
    path = real_slides / "TCGA-CR-7395-01A-01-TS1.svs"
    error = refused(path)
    assert error.reason == "missing_mpp"
    assert "slides.csv" in error.remedy
    assert "--mpp" in error.remedy
    slide, tiles = scan(path, table_mpp=0.25)
    assert slide.properties.mpp_source == "slides.csv"
    assert fate_map(tiles) == TCGA_CR_7395
    assert [tile.x for tile in tiles[:9]] == list(range(0, 4032, 448))


def test_fluorescence_is_no_tissue(real_slides):
    slide, tiles = scan(real_slides / "test3-DAPI-2-387.ndpi")
    assert slide.properties.vendor == "hamamatsu"
    assert slide.properties.mpp == pytest.approx(0.22818, abs=1e-5)
    assert slide.tissue_area_mm2 == 0
    assert {tile.fate for tile in tiles} == {"black", "background"}
    assert len(tiles) == 8 * 9  # 3968 and 4864 px; a tile is 490.8 px


def test_exact_pixels_of_drawn_boxes(real_slides):
    """Level 0 as Pillow decodes it; the coarser levels where no edge is near."""
    path = real_slides / "openslide_boxes.tiff"
    expected = np.asarray(Image.open(path).convert("RGB"))
    reader = open_openslide(path, TileConfig(), override_mpp=0.5)
    np.testing.assert_array_equal(reader.read_region(0, 0, 300, 250, 0.5), expected)
    np.testing.assert_array_equal(
        reader.read_region(41, 23, 199, 200, 0.5), expected[23:223, 41:240]
    )
    for factor in (2, 3, 4, 8):
        size = (300 // factor, 250 // factor)
        region = reader.read_region(0, 0, *size, 0.5 * factor)
        for x, y in ((50, 50), (130, 130), (240, 160), (10, 10), (280, 230), (170, 50)):
            at = np.s_[y // factor, x // factor]
            assert region[at].tolist() == expected[y, x].tolist(), (factor, x, y)


@pytest.mark.parametrize(
    ("name", "reason", "what"),
    [
        ("broken.svs", "unknown_format", "is not a slide in a format that OpenSlide knows"),
        ("kidney-48-5.tif", "untiled_tiff", "is an untiled TIFF"),
        ("highdicom_sm_image_grayscale.dcm", "openslide_refused", "BitsAllocated value 16 != 8"),
        ("pathml_small_dicom.dcm", "openslide_refused", "Couldn't get image flavor"),
        ("panimg_valid_tiff.tif", "implausible_mpp", "its mpp 1000 is outside"),
        ("openslide_boxes.tiff", "implausible_mpp", "its mpp 352.8 is outside"),
        ("ezwsi_multiframe_camelyon_challenge_image.dcm", "implausible_mpp", "its mpp 28.97 is"),
        ("highdicom_sm_image.dcm", "smaller_than_one_tile", "(50 x 50 px, 25 x 25 um)"),
    ],
)
def test_files_that_cannot_be_used_say_why(real_slides, name, reason, what):
    error = refused(real_slides / name)
    assert error.reason == reason
    assert what in str(error)
    assert error.remedy.endswith(".")
