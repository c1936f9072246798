"""Golden results on real files: counts, places and fates.

The maps were held against the pictures of the slides, by eye, before they were written down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import openslide
import pytest
from PIL import Image

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.readers import open_reader
from medkd.slides.tiling import TileCounts, open_slide_for_tiling

pytestmark = pytest.mark.real_data

# One letter a tile, row by row: u used, b background, k black, p pen.
CMU_1 = """
bbbbbbbbb
bbbbuubbb
bbbbuuubb
bbbbuuubb
bbbbuuuub
bbbbuuuub
bbbbuuuub
bbbbuuubb
bbbuuuuub
bbbuuuuub
bbbuuuuub
bbbuuuuub
bbuuuuuub
"""

TCGA_CR_7395 = """
bbbbbbbub
bbbuuuuub
buuuuuuuu
uuuuuuuuu
uuuuuuuuu
buuuuuuuu
bbuuuuuuu
"""

# Nuclei light up on black. Where they lie close together, most of a tile is not black.
DAPI = """
kkkkkkkk
kbkkkkbb
kbkkkkkk
kkkkbkbk
kkkkkkbb
kkkkkkkk
bbkbbbkk
kbbkbbbb
kkkkkbbb
"""

# A whole lymph node twice, which its file says is 29 um/px.
NODE = """
bbbbbbbbbbbbbbbbbb
bbubbbbbbbbubbbbbb
bbubbbbubbbubbbbub
bbuubbbubbuubbbbub
buuubbuubbuuubbuub
buuubbubbbuuubbubb
buuubuubbbuuububbb
bbubbbbbbbbubbbbbb
bbubbbbbbbbubbbbbb
bbbbbbbbbbbubbbbbb
"""

# The same as if it were 0.5 um/px, in tiles of 224 px.
NODE_AS_IF_FINE = """
bbbbb
uubub
bbbub
"""

# At 8 um/px the red and the green box are large enough to be ink, with a rim of 5 px. Pure blue is
# no ink that exists, and no tissue either.
BOXES = """
pppb
pppp
pbbp
"""

FATES = {"u": "used", "b": "background", "k": "black", "p": "pen"}
DICOM_NODE = "ezwsi_multiframe_camelyon_challenge_image.dcm"
NATIVE = "native JPEG, simplejpeg "
OPENSLIDE = "openslide "


@dataclass(frozen=True)
class Golden:
    """What comes of a slide.

    Attributes:
        name: of the file.
        fates: of its tiles, a letter each, row by row.
        step_px: from tile to tile, level-0 pixels, before it is rounded.
        reader, reason: of ``auto``.
        table_mpp: what slides.csv says.
        parameters: how it is tiled.
    """

    name: str
    fates: str
    step_px: float
    reader: str
    reason: str
    table_mpp: float | None = None
    parameters: TileConfig = field(default_factory=TileConfig)

    @property
    def rows(self) -> list[str]:
        return self.fates.split()


DEFLATED = "its tiles are compressed as ADOBE_DEFLATE, not JPEG"
GOLDEN = (
    Golden("CMU-1-Small-Region.svs", CMU_1, 112 / 0.499, NATIVE, "it is JPEG in tiles"),
    Golden(
        "TCGA-CR-7395-01A-01-TS1.svs",
        TCGA_CR_7395,
        112 / 0.25,
        OPENSLIDE,
        "its tiles are compressed as APERIO_JP2000_RGB, not JPEG",
        table_mpp=0.25,
    ),
    Golden(
        "test3-DAPI-2-387.ndpi",
        DAPI,
        112 / 0.22817506,
        OPENSLIDE,
        "hamamatsu slides are read through OpenSlide",
    ),
    Golden(
        DICOM_NODE,
        NODE,
        64,
        NATIVE,
        "it is JPEG in tiles",
        parameters=TileConfig(mpp=28.9685, size_px=64, mpp_range=(0.1, 30.0)),
    ),
    Golden(DICOM_NODE, NODE_AS_IF_FINE, 224, NATIVE, "it is JPEG in tiles", table_mpp=0.5),
    # Blank, but for a speck of three pixels.
    Golden(
        "highdicom_sm_image.dcm",
        "bbb bbb bbb",
        8 / 0.499,
        OPENSLIDE,
        "its frames are not compressed, not JPEG baseline",
        parameters=TileConfig(size_px=16),
    ),
    Golden(
        "openslide_boxes.tiff",
        BOXES,
        64,
        OPENSLIDE,
        DEFLATED,
        table_mpp=8.0,
        parameters=TileConfig(mpp=8.0, size_px=64),
    ),
    # Grey from edge to edge, with four paler lines.
    Golden(
        "panimg_valid_tiff.tif",
        "bbb bbb bbb",
        64,
        OPENSLIDE,
        "its tiles are compressed as NONE, not JPEG",
        table_mpp=0.5,
        parameters=TileConfig(size_px=64),
    ),
)

# Name, reason and a part of what is said, with the default parameters.
REFUSED = (
    ("broken.svs", "unknown_format", "is not a slide in a format that OpenSlide knows"),
    ("kidney-48-5.tif", "untiled_tiff", "is an untiled TIFF"),
    ("highdicom_sm_image_grayscale.dcm", "openslide_refused", "BitsAllocated value 16 != 8"),
    ("pathml_small_dicom.dcm", "openslide_refused", "Couldn't get image flavor"),
    ("panimg_valid_tiff.tif", "implausible_mpp", "its mpp 1000 is outside"),
    ("openslide_boxes.tiff", "implausible_mpp", "its mpp 352.8 is outside"),
    (DICOM_NODE, "implausible_mpp", "its mpp 28.97 is"),
    ("highdicom_sm_image.dcm", "smaller_than_one_tile", "(50 x 50 px, 25 x 25 um)"),
)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g.name}-{g.parameters.size_px}")
def test_fates_places_and_reader(real_slides, golden):
    path = real_slides / golden.name
    with open_slide_for_tiling(path, golden.parameters, table_mpp=golden.table_mpp) as slide:
        tiles = list(slide.tiles())
    properties = slide.properties
    assert properties.reader.startswith(golden.reader)
    assert properties.reader_reason == golden.reason
    rows = golden.rows
    places = [
        (round(column * golden.step_px), round(row * golden.step_px))
        for row, letters in enumerate(rows)
        for column in range(len(letters))
    ]
    assert [(tile.x, tile.y) for tile in tiles] == places
    # The grid leaves no room for one more row or column.
    assert len(rows) * golden.step_px <= properties.height_px < (len(rows) + 1) * golden.step_px
    columns = len(rows[0])
    assert columns * golden.step_px <= properties.width_px < (columns + 1) * golden.step_px
    letters = {fate: letter for letter, fate in FATES.items()}
    found = "".join(letters[tile.fate] for tile in tiles)
    assert [found[i : i + columns] for i in range(0, len(found), columns)] == rows
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert (counts.candidate, counts.unreadable) == (len(places), 0)
    assert counts.used == golden.fates.count("u")
    assert (slide.tissue_area_mm2 > 0) == (counts.used > 0)


def test_every_slide_is_spoken_for(real_slides):
    there = {path.name for path in real_slides.iterdir()}
    assert there == {golden.name for golden in GOLDEN} | {name for name, _, _ in REFUSED}


def scan(path, parameters=None, **options):
    with open_slide_for_tiling(path, parameters or TileConfig(), **options) as slide:
        return slide, list(slide.tiles())


def refused(path, **options) -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_slide_for_tiling(path, TileConfig(), **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_aperio_jpeg(real_slides):
    slide, _ = scan(real_slides / "CMU-1-Small-Region.svs")
    properties = slide.properties
    assert (properties.width_px, properties.height_px) == (2220, 2967)
    assert (properties.mpp, properties.mpp_source, properties.vendor) == (
        0.499,
        "metadata",
        "aperio",
    )
    assert not properties.synthetic
    assert slide.warnings == ()
    assert slide.tissue_area_mm2 == pytest.approx(0.63, abs=0.03)


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
    slide, _ = scan(path, table_mpp=0.25)
    assert slide.properties.mpp_source == "slides.csv"


def test_fluorescence_is_no_tissue(real_slides):
    slide, _ = scan(real_slides / "test3-DAPI-2-387.ndpi")
    assert slide.properties.vendor == "hamamatsu"
    assert slide.properties.mpp == pytest.approx(0.22818, abs=1e-5)
    assert slide.tissue_area_mm2 == 0


def test_a_table_s_mpp_that_the_file_contradicts_is_believed_and_told(real_slides):
    slide, _ = scan(real_slides / DICOM_NODE, table_mpp=0.5)
    assert (slide.properties.mpp, slide.properties.mpp_source) == (0.5, "slides.csv")
    assert slide.warnings == ("mpp 0.5 from slides.csv was believed; the file says 28.97",)
    error = refused(real_slides / DICOM_NODE, table_mpp=28.97)
    assert error.reason == "too_coarse"


def test_boxes_as_if_they_were_fine(real_slides):
    """150 um by 125 um: boxes so near to one another count as one loose piece of tissue."""
    slide, tiles = scan(real_slides / "openslide_boxes.tiff", TileConfig(size_px=64), table_mpp=0.5)
    assert [(tile.x, tile.y) for tile in tiles] == [
        (x, y) for y in (0, 64, 128) for x in (0, 64, 128, 192)
    ]
    used = [(tile.x, tile.y) for tile in tiles if tile.fate == "used"]
    assert used == [(0, 0), (64, 0), (128, 0), (0, 64), (192, 64), (0, 128), (64, 128), (192, 128)]
    assert {tile.fate for tile in tiles} == {"used", "background"}
    assert slide.tissue_area_mm2 < 0.15 * 0.125


def test_exact_pixels_of_drawn_boxes(real_slides):
    """Level 0 as Pillow decodes it; the coarser levels where no edge is near."""
    path = real_slides / "openslide_boxes.tiff"
    expected = np.asarray(Image.open(path).convert("RGB"))
    reader = open_reader(path, TileConfig(), table_mpp=0.5)
    assert reader.properties.reader_reason == DEFLATED
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


@pytest.mark.parametrize(("name", "reason", "what"), REFUSED)
def test_files_that_cannot_be_used_say_why(real_slides, name, reason, what):
    error = refused(real_slides / name)
    assert error.reason == reason
    assert what in str(error)
    assert error.remedy.endswith(".")
