"""cuCIM reads what was checked before, gives OpenSlide's pixels, and only where it is asked for."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides import cucim_reader
from medkd.slides.cucim_reader import CucimReader, count_bad_tiles
from medkd.slides.jpeg_tiles import decode_native_tile, read_jpeg_levels, read_tile_bytes
from medkd.slides.reader import RegionUnreadableError, SlideReader
from medkd.slides.readers import open_reader, reader_now
from medkd.slides.synthetic import SlideSpec
from medkd.slides.synthetic import write_slide as draw
from medkd.slides.tile_slide import SlideTask, outdated, tile_slide

SIDE_PX = 1100  # 5 x 5 native tiles of 256 px, and 2 x 2 of the second level of 275 px


@pytest.fixture
def cucim():
    """The real one; without it the test is skipped."""
    return pytest.importorskip("cucim")


@pytest.fixture
def any_cucim(monkeypatch):
    """For what is decided before cuCIM reads anything: a stand-in that cannot."""
    monkeypatch.setitem(sys.modules, "cucim", types.ModuleType("cucim"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("cucim") / "slide.svs", "420")


@pytest.fixture
def copy(slide, tmp_path) -> Path:
    path = tmp_path / "copy.svs"
    path.write_bytes(slide.read_bytes())
    return path


def drawn(path: Path, chroma: str) -> Path:
    spec = SlideSpec("MSI", seed=4, width_px=SIDE_PX, height_px=SIDE_PX, mpp=0.25, chroma=chroma)
    draw(spec, path)
    return path


def opened(path: Path, reader: str = "cucim", **options) -> SlideReader:
    return open_reader(path, TileConfig.model_validate({"reader": reader, "mpp": 0.5}), **options)


def refused(path: Path, parameters: TileConfig | None = None, **options) -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_reader(path, parameters or TileConfig(reader="cucim"), **options)
    assert "\n" not in str(caught.value)
    return caught.value


def by_openslide(path: Path, x: int, y: int, width: int, height: int) -> np.ndarray:
    with openslide.OpenSlide(path) as handle:
        return np.asarray(handle.read_region((x, y), 0, (width, height)).convert("RGB"))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def jpeg_pyramid(path: Path, *levels: np.ndarray, **options) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for level in levels:
            tiff.write(
                level,
                photometric="rgb",
                tile=(64, 64),
                compression="jpeg",
                description="Aperio Image Library v10.0.0\r\ntest|MPP = 0.5",
                metadata=None,
                **options,
            )
    return path


def zero_tiles(path: Path, level: int, tiles: list[int]) -> None:
    """Overwrite the data of these native tiles of a level."""
    with tifffile.TiffFile(path) as tiff:
        page = [page for page in tiff.pages if page.is_tiled][level]
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(count))


# Pixels.


@pytest.mark.parametrize("chroma", ["444", "422", "420"])
def test_at_native_resolution_pixels_are_openslides(cucim, tmp_path, chroma):
    path = drawn(tmp_path / "slide.svs", chroma)
    reader = opened(path)
    for x, y, width, height in ((0, 0, 300, 200), (131, 257, 400, 300), (900, 850, 200, 250)):
        pixels = reader.read_region(x, y, width, height, 0.25)
        assert difference(pixels, by_openslide(path, x, y, width, height)) <= 1


def test_aperios_rgb_tiles_with_shared_tables_are_read_as_they_are(cucim, real_slides):
    path = real_slides / "CMU-1-Small-Region.svs"
    reader = opened(path)
    for x, y in ((0, 0), (700, 1001), (1996, 2743)):
        pixels = reader.read_region(x, y, 224, 224, reader.properties.mpp)
        assert difference(pixels, by_openslide(path, x, y, 224, 224)) <= 1


def test_at_half_resolution_pixels_are_area_averages(cucim, slide):
    pixels = opened(slide).read_region(130, 258, 224, 224, 0.5)
    full = by_openslide(slide, 130, 258, 448, 448)
    expected = full.reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert np.abs(pixels - expected).mean() < 3
    assert np.abs((pixels - expected).mean((0, 1))).max() < 0.5  # no colour drifts


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.5, 0.53, 0.99, 1.0, 1.3, 3.0])
@pytest.mark.parametrize("place", [(0, 0), (101.4, 33.7)])
def test_at_any_resolution_pixels_are_those_of_the_openslide_reader(cucim, slide, mpp, place):
    size_px = int(900 * 0.25 / mpp)
    pixels = opened(slide).read_region(*place, size_px, size_px, mpp)
    other = opened(slide, "openslide").read_region(*place, size_px, size_px, mpp)
    assert pixels.shape == (size_px, size_px, 3)
    assert difference(pixels, other) <= 1


def test_a_level_is_read_at_the_very_pixel(cucim, tmp_path):
    """Downsamples such as 2.0011 must not bring a read to the pixel before."""
    fine = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 127, 3), np.uint8))
    levels = [np.asarray(fine.resize(size)) for size in ((1801, 1403), (900, 701), (450, 350))]
    reader = opened(jpeg_pyramid(tmp_path / "odd.svs", *levels))
    assert isinstance(reader, CucimReader)
    with tifffile.TiffFile(tmp_path / "odd.svs") as tiff:
        for number, page in enumerate(tiff.pages):
            expected = page.asarray()
            height, width = expected.shape[:2]
            for x in range(0, width - 30, 7):
                y = x * (height - 20) // width
                found = reader.read_level(number, (x, y), (30, 20))
                assert difference(found, expected[y : y + 20, x : x + 30]) <= 1


@pytest.mark.parametrize("downsample", [1, 2, 2.0005055, 4.00080032, 16.00016, 31.9993])
def test_places_hold_in_single_precision(downsample):
    numbers = np.unique(np.linspace(0, 200_000 / downsample, 20_000).astype(int))
    places = [cucim_reader._level0_inside(int(number), downsample) for number in numbers]
    found = np.float32(places) / np.float32(downsample)
    np.testing.assert_array_equal(found.astype(int), numbers)


def test_regions_beyond_the_slide_are_refused(cucim, slide):
    with pytest.raises(ValueError, match="is outside the slide's 1100 x 1100 px"):
        opened(slide).read_region(SIDE_PX - 300, 0, 152, 150, 0.5)


def test_thumbnail_is_that_of_the_openslide_reader(cucim, slide):
    image, readable = opened(slide).thumbnail(8.0)
    expected, _ = opened(slide, "openslide").thumbnail(8.0)
    assert readable.all()
    assert image.shape == (34, 34, 3)
    assert difference(image, expected) <= 1


def test_a_tile_the_scanner_left_out_is_white(cucim, copy):
    with tifffile.TiffFile(copy) as tiff:
        table = tiff.pages[0].tags["TileByteCounts"].valueoffset
    with copy.open("r+b") as file:
        file.seek(table + 4 * 6)
        file.write(bytes(4))
    assert (opened(copy).read_region(256, 256, 256, 256, 0.25) == 255).all()


# What it is used for, and what it says of itself.


def test_a_slide_is_tiled_as_through_openslide(cucim, slide, tmp_path, monkeypatch):
    records, tasks = {}, {}
    for reader in ("openslide", "cucim"):
        parameters = TileConfig(reader=reader, mpp=0.5, size_px=64, min_focus=0)
        tasks[reader] = SlideTask(reader, "p", slide, None, parameters, tmp_path)
        outcome = tile_slide(tasks[reader])
        assert outcome.status == "ok", outcome.message
        records[reader] = outcome.record
    assert records["cucim"]["tiles"] == records["openslide"]["tiles"]
    assert records["cucim"]["tiles"]["used"] > 10
    assert records["cucim"]["slide"]["reader"] == cucim_reader.cucim_now()
    assert records["cucim"]["slide"]["reader_reason"] == "asked for"
    assert outdated(tasks["cucim"]) is None
    monkeypatch.setattr("medkd.slides.readers.cucim_now", lambda: "cuCIM 99")
    assert outdated(tasks["cucim"]).endswith(", is cuCIM 99")
    assert outdated(tasks["openslide"]) is None


def test_mpp_is_never_cucims(cucim, slide, tmp_path, tissue):
    properties = opened(slide).properties
    assert (properties.mpp, properties.mpp_source) == (0.25, "metadata")
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, tissue(256, 256), photometric="rgb", tile=(64, 64), compression="jpeg")
    assert cucim.CuImage(str(plain)).spacing()[:2] == [1.0, 1.0]
    assert refused(plain).reason == "missing_mpp"
    assert opened(plain, table_mpp=0.5).properties.mpp == 0.5


def test_the_slide_is_opened_by_the_process_that_reads(cucim, slide):
    reader = opened(slide)
    assert reader._handle is None
    before = reader.read_region(0, 0, 50, 50, 0.5)
    assert reader._handle is not None
    other = pickle.loads(pickle.dumps(reader))
    assert other._handle is None
    np.testing.assert_array_equal(other.read_region(0, 0, 50, 50, 0.5), before)
    reader.close()
    np.testing.assert_array_equal(reader.read_region(0, 0, 50, 50, 0.5), before)


def test_what_cucim_complains_of_is_unreadable(cucim, slide, tmp_path):
    reader = opened(slide)
    reader.properties = replace(reader.properties, path=tmp_path / "gone.svs")
    with pytest.raises(RegionUnreadableError, match="cuCIM: "):
        reader.read_region(0, 0, 50, 50, 0.5)


def test_it_is_never_chosen_by_itself(slide, any_cucim, write_slide, tissue):
    assert opened(slide, "auto").properties.reader.startswith("native JPEG")
    zipped = write_slide("zip.svs", tissue(300, 300), mpp=0.5)
    assert opened(zipped, "auto").properties.reader.startswith("openslide")


def test_where_it_is_absent_the_message_says_so(slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "cucim", None)
    error = refused(slide)
    assert error.reason == "no_cucim"
    assert str(error) == (
        f"{slide}: tile.reader is cucim, and cuCIM is not installed. Install it with "
        "'pip install cucim-cu12' (Linux), or set tile.reader to auto."
    )


def test_where_it_cannot_be_loaded_the_message_says_why(slide, tmp_path, monkeypatch):
    (tmp_path / "cucim.py").write_text("raise ImportError('libnothing.so: no such file')")
    monkeypatch.delitem(sys.modules, "cucim", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "cuCIM cannot be loaded: libnothing.so: no such file." in str(refused(slide))


def test_a_record_is_held_against_the_version_of_today(monkeypatch):
    def absent(name: str) -> str:
        raise cucim_reader.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cucim_reader.metadata, "version", absent)
    assert reader_now("cuCIM 26.10.0") == "cuCIM, not installed"
    monkeypatch.setattr(cucim_reader.metadata, "version", lambda name: "26.12.0")
    assert reader_now("cuCIM 26.10.0") == "cuCIM 26.12.0"
    assert reader_now("openslide 3").startswith("openslide ")
    assert reader_now("native JPEG, simplejpeg 1").startswith("native JPEG, ")


# What it must not read.


def test_a_damaged_slide_is_refused_with_the_number_of_bad_tiles(any_cucim, copy):
    zero_tiles(copy, 0, [3, 17])
    zero_tiles(copy, 1, [2])
    error = refused(copy)
    assert error.reason == "damaged_for_cucim"
    assert str(error) == (
        f"{copy}: 3 of its 29 native tiles are damaged, and cuCIM would show other pixels in their "
        "place without an error. Set tile.reader to auto or openslide, which read the rest of it; "
        "or copy the slide again."
    )
    assert isinstance(opened(copy, "auto").read_region(0, 0, 50, 50, 0.5), np.ndarray)


def test_cucim_would_not_have_told(cucim, copy):
    """The fault that all this is for; when it is mended, the checks can go."""
    zero_tiles(copy, 0, [6])
    pixels = np.asarray(cucim.CuImage(str(copy)).read_region((256, 256), (256, 256), 0))
    assert pixels.shape == (256, 256, 3)


@pytest.mark.parametrize("seed", range(8))
def test_the_reduced_check_finds_what_full_decoding_finds(copy, seed):
    levels = read_jpeg_levels(copy, ((SIDE_PX, SIDE_PX), (275, 275)))
    random = np.random.default_rng(seed)
    data = bytearray(copy.read_bytes())
    for level in levels:
        for offset, count in zip(level.offsets, level.counts, strict=True):
            start = offset + int(random.integers(count))
            end = min(start + int(random.integers(1, 40)), offset + count)
            data[start:end] = random.integers(0, 256, end - start, np.uint8).tobytes()
    copy.write_bytes(data)
    descriptor = os.open(copy, os.O_RDONLY)
    bad = 0
    for level in levels:
        for index in range(len(level.offsets)):
            try:
                stored = read_tile_bytes(descriptor, level, *divmod(index, level.columns))
                decode_native_tile(level, stored, 1)
            except RegionUnreadableError:
                bad += 1
    os.close(descriptor)
    assert 5 < bad < 29
    assert count_bad_tiles(copy, levels) == bad


def test_a_truncated_slide_is_refused(any_cucim, copy):
    with tifffile.TiffFile(copy) as tiff:
        last = max(page.dataoffsets[-1] for page in tiff.pages)
    with copy.open("r+b") as file:
        file.truncate(last + 10)
    assert refused(copy).reason in ("damaged_for_cucim", "openslide_refused")


def test_a_level_whose_table_does_not_fit_its_size_is_refused(any_cucim, copy):
    with tifffile.TiffFile(copy) as tiff:
        width = tiff.pages[0].tags["ImageWidth"].valueoffset
    with copy.open("r+b") as file:
        file.seek(width)
        file.write(struct.pack("<I", 1400))
    assert refused(copy).reason == "damaged_pyramid"


def test_what_cannot_be_checked_is_refused(any_cucim, write_slide, tissue):
    path = write_slide("zip.svs", tissue(300, 300), mpp=0.5)
    error = refused(path)
    assert error.reason == "not_checked_for_cucim"
    assert str(error) == (
        f"{path}: is not read with cuCIM: it cannot be checked for damage, as its tiles are "
        "compressed as ADOBE_DEFLATE, not JPEG. Set tile.reader to auto or openslide."
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("TCGA-CR-7395-01A-01-TS1.svs", "as its tiles are compressed as APERIO_JP2000_RGB"),
        ("test3-DAPI-2-387.ndpi", "hamamatsu slides cannot be checked for damage"),
        ("highdicom_sm_image.dcm", "dicom slides cannot be checked for damage"),
    ],
)
def test_other_formats_are_refused(any_cucim, real_slides, name, why):
    parameters = TileConfig(reader="cucim", mpp=30)
    error = refused(real_slides / name, parameters, override_mpp=0.25)
    assert error.reason == "not_checked_for_cucim"
    assert why in str(error)


def test_an_icc_profile_is_not_applied(any_cucim, tmp_path, tissue):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = jpeg_pyramid(tmp_path / "a.svs", tissue(300, 300), iccprofile=profile)
    error = refused(path, TileConfig(reader="cucim", icc="apply"))
    assert error.reason == "not_checked_for_cucim"
    assert "is not read with cuCIM: its ICC profile is applied. Set" in str(error)


@pytest.mark.parametrize(
    ("shade", "channels", "why"),
    [(9, 3, "of level 0 differs by "), (0, 4, "cuCIM: pixels of uint8, (256, 256, 4)")],
)
def test_a_cucim_that_gives_other_pixels_is_refused(slide, monkeypatch, shade, channels, why):
    class Wrong:
        def __init__(self, path: str) -> None:
            self.handle = openslide.OpenSlide(path)

        def read_region(self, place, size, level):
            pixels = np.array(self.handle.read_region(place, level, size))[..., :channels]
            return pixels ^ shade

        def close(self) -> None:
            self.handle.close()

    stand_in = types.ModuleType("cucim")
    stand_in.CuImage = Wrong
    monkeypatch.setitem(sys.modules, "cucim", stand_in)
    error = refused(slide)
    assert error.reason == "wrong_in_cucim"
    assert why in str(error)
