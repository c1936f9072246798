"""Native JPEG tiles: the pixels that OpenSlide gives, faster, and never another tile's."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides import jpeg_reader
from medkd.slides.jpeg_reader import JpegReader
from medkd.slides.reader import RegionUnreadableError, SlideReader
from medkd.slides.readers import open_reader
from medkd.slides.store import TileStore
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.slides.tile_slide import SlideTask, tile_slide
from medkd.slides.tiling import open_slide_for_tiling

SIDE_PX = 1100  # not a multiple of the native 256 px: tiles at the edges reach beyond


def spec(**changes) -> SlideSpec:
    return replace(
        SlideSpec("MSI", seed=4, width_px=SIDE_PX, height_px=SIDE_PX, mpp=0.25), **changes
    )


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("jpeg") / "slide.svs"
    write_slide(spec(chroma="420"), path)
    return path


@pytest.fixture
def copy(slide, tmp_path) -> Path:
    path = tmp_path / "copy.svs"
    path.write_bytes(slide.read_bytes())
    return path


def opened(path: Path, reader: str = "auto", **options) -> SlideReader:
    return open_reader(path, TileConfig.model_validate({"reader": reader, "mpp": 0.5}), **options)


def by_openslide(path: Path, x: int, y: int, width: int, height: int) -> np.ndarray:
    with openslide.OpenSlide(path) as handle:
        return np.asarray(handle.read_region((x, y), 0, (width, height)).convert("RGB"))


# Pixels.


@pytest.mark.parametrize("chroma", ["444", "422", "420"])
def test_at_native_resolution_pixels_are_openslides(tmp_path, chroma):
    path = tmp_path / "slide.svs"
    write_slide(spec(chroma=chroma), path)
    reader = opened(path)
    for x, y, width, height in ((0, 0, 300, 200), (131, 257, 400, 300), (900, 850, 200, 250)):
        pixels = reader.read_region(x, y, width, height, 0.25)
        expected = by_openslide(path, x, y, width, height)
        assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_aperios_rgb_tiles_with_shared_tables_are_read_as_they_are(real_slides):
    path = real_slides / "CMU-1-Small-Region.svs"
    reader = opened(path, "jpeg")
    for x, y in ((0, 0), (700, 1001), (1996, 2743)):
        pixels = reader.read_region(x, y, 224, 224, reader.properties.mpp)
        expected = by_openslide(path, x, y, 224, 224)
        assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("place", [(0, 0), (130, 258), (200, 640)])
def test_at_half_resolution_pixels_are_area_averages(slide, place):
    pixels = opened(slide).read_region(*place, 224, 224, 0.5)
    full = by_openslide(slide, *place, 448, 448)
    expected = full.reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert np.abs(pixels - expected).mean() < 3
    assert np.abs((pixels - expected).mean((0, 1))).max() < 0.5  # no colour drifts


@pytest.mark.parametrize("mpp", [0.3, 0.5, 0.53, 0.6, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("place", [(0, 0), (101, 33)])
def test_at_any_resolution_the_region_is_where_openslides_is(slide, mpp, place):
    size_px = int(900 * 0.25 / mpp)
    native = opened(slide).read_region(*place, size_px, size_px, mpp).astype(float).mean(2)
    other = opened(slide, "openslide").read_region(*place, size_px, size_px, mpp)
    reference = other.astype(float).mean(2)
    inside = np.s_[2:-2, 2:-2]
    assert np.abs(native - reference)[inside].mean() < 5
    # A region that lay a whole pixel off would fit better after it was moved back.
    here = np.abs(native - reference)[inside].mean()
    for axis in (0, 1):
        for step in (-1, 1):
            moved = np.roll(native, step, axis)
            assert np.abs(moved - reference)[inside].mean() > here


def test_the_last_pixels_of_the_slide_are_its_own(slide):
    # What the encoder put beyond the slide's edge, to fill a native tile, stays out of sight.
    with tifffile.TiffFile(slide) as tiff:
        assert tiff.pages[0].imagewidth % tiff.pages[0].tilewidth
    region = opened(slide).read_region(SIDE_PX - 300, SIDE_PX - 300, 150, 150, 0.5)
    full = by_openslide(slide, SIDE_PX - 300, SIDE_PX - 300, 300, 300)
    expected = full.reshape(150, 2, 150, 2, 3).mean((1, 3))
    assert np.abs(region - expected)[-2:].mean() < 4
    with pytest.raises(ValueError, match="is outside the slide's 1100 x 1100 px"):
        opened(slide).read_region(SIDE_PX - 300, 0, 152, 150, 0.5)


def test_thumbnail_is_the_whole_slide(slide):
    image, readable = opened(slide).thumbnail(8.0)
    full = by_openslide(slide, 0, 0, 1088, 1088)
    expected = np.asarray(Image.fromarray(full).resize((34, 34), Image.Resampling.BOX))
    assert image.shape == (34, 34, 3)
    assert readable.all()
    assert np.abs(image.astype(int) - expected).mean() < 6


# Sweeps.


def places() -> Iterator[tuple[int, int]]:
    return ((x, y) for y in range(3, 900, 201) for x in range(1, 900, 199))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_read_the_same_tiles_in_the_same_order(slide, threads):
    alone = list(opened(slide).read_tiles(places(), 90, 0.5))
    together = list(opened(slide).read_tiles(places(), 90, 0.5, threads=threads))
    assert len(alone) == len(together) == 25
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sweep_that_is_left_early_leaves_a_usable_reader(slide):
    reader = opened(slide)
    sweep = reader.read_tiles(places(), 90, 0.5, threads=2)
    first = next(sweep)
    sweep.close()
    again = list(reader.read_tiles(places(), 90, 0.5))
    np.testing.assert_array_equal(again[0], first)
    assert all(isinstance(tile, np.ndarray) for tile in again)


def test_a_sweep_decodes_each_native_tile_once(slide, monkeypatch):
    decoded = []
    decode = jpeg_reader.decode_native_tile

    def counting(level, data, reduction):
        decoded.append(hash(data))
        return decode(level, data, reduction)

    monkeypatch.setattr(jpeg_reader, "decode_native_tile", counting)
    list(opened(slide).read_tiles(places(), 100, 0.5))
    assert len(decoded) == len(set(decoded)) == 16


def test_the_cache_is_bounded_and_a_small_one_changes_nothing(slide):
    whole = opened(slide)
    assert isinstance(whole, JpegReader)
    small = JpegReader(whole.properties, (), whole._levels, cache_bytes=100_000)
    for one, other in zip(
        whole.read_tiles(places(), 90, 0.5), small.read_tiles(places(), 90, 0.5), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert small._cache._bytes <= 100_000


# The slide's own bytes.


def test_a_tile_that_is_one_native_tile_keeps_the_slides_own_jpeg(slide, tmp_path):
    parameters = TileConfig(mpp=0.25, size_px=256, min_tissue=0.2, min_focus=0)
    offsets, counts, _ = table(slide)
    data = slide.read_bytes()
    outcome = tile_slide(SlideTask("s", "p", slide, None, parameters, tmp_path))
    assert outcome.status == "ok"
    store = TileStore(tmp_path / "s.zip")
    tiles = store.tiles()
    assert len(tiles) >= 8
    reader = opened(slide)
    for tile in tiles:
        number = tile.y // 256 * NATIVE_SIDE + tile.x // 256
        own = data[offsets[number] : offsets[number] + counts[number]]
        assert store.read_bytes(tile.x, tile.y) == own
        np.testing.assert_array_equal(
            store.read(tile.x, tile.y), reader.read_region(tile.x, tile.y, 256, 256, 0.25)
        )


def test_bytes_with_shared_tables_stand_on_their_own(real_slides):
    reader = opened(real_slides / "CMU-1-Small-Region.svs", "jpeg")
    mpp = reader.properties.mpp
    stream = reader.native_jpeg(480, 720, 240, mpp)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")),
        reader.read_region(480, 720, 240, 240, mpp),
    )


@pytest.mark.parametrize(
    ("x", "y", "size_px", "mpp"),
    [(1, 0, 256, 0.25), (0, 100, 256, 0.25), (0, 0, 128, 0.25), (0, 0, 128, 0.5), (0, 0, 256, 0.5)],
)
def test_any_other_tile_is_encoded(slide, x, y, size_px, mpp):
    assert opened(slide).native_jpeg(x, y, size_px, mpp) is None
    assert opened(slide, "openslide").native_jpeg(0, 0, 256, 0.25) is None


# Which reader, and why.


def test_the_choice_and_its_reason_are_told(slide, real_slides, write_slide, tissue):
    native, asked = opened(slide), opened(slide, "openslide")
    assert native.properties.reader.startswith("native JPEG, simplejpeg ")
    assert native.properties.reader_reason == "it is JPEG in tiles"
    assert asked.properties.reader.startswith("openslide ")
    assert asked.properties.reader_reason == "asked for"
    zipped = opened(write_slide("zip.svs", tissue(300, 300), mpp=0.5))
    assert zipped.properties.reader.startswith("openslide ")
    assert "not JPEG" in zipped.properties.reader_reason
    jpeg_2000 = opened(real_slides / "TCGA-CR-7395-01A-01-TS1.svs", table_mpp=0.5)
    assert "not JPEG" in jpeg_2000.properties.reader_reason
    dicom = opened(real_slides / "highdicom_sm_image.dcm")
    assert dicom.properties.reader_reason == "its frames are not compressed, not JPEG baseline"


def test_a_reader_that_was_asked_for_is_never_exchanged(write_slide, tissue):
    path = write_slide("zip.svs", tissue(300, 300), mpp=0.5)
    with pytest.raises(SlideError) as caught:
        opened(path, "jpeg")
    assert caught.value.reason == "not_native_jpeg"
    assert str(caught.value).endswith("not JPEG. Set tile.reader to auto or openslide.")


# Damage. What is not whole is unreadable; everything else is as it was.

NATIVE_PX = 256
NATIVE_SIDE = 5


def table(path: Path) -> tuple[list[int], list[int], dict[str, int]]:
    """Offsets and counts of level 0's tiles, and where in the file each table lies."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        where = {name: page.tags[name].valueoffset for name in ("TileOffsets", "TileByteCounts")}
        return list(page.dataoffsets), list(page.databytecounts), where


def overwrite(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def native_tiles(path: Path) -> list[np.ndarray | RegionUnreadableError]:
    """Every native tile that lies whole inside the slide, row by row, at full resolution."""
    reader = opened(path, "jpeg", table_mpp=0.25)
    side = SIDE_PX // NATIVE_PX
    corners = [(x * NATIVE_PX, y * NATIVE_PX) for y in range(side) for x in range(side)]
    found = list(reader.read_tiles(corners, NATIVE_PX, 0.25))
    reader.close()
    return found


def number_in_table(index: int) -> int:
    """The number in the table of tile ``index`` of :func:`native_tiles`."""
    side = SIDE_PX // NATIVE_PX
    return index // side * NATIVE_SIDE + index % side


def check(path: Path, whole: list[np.ndarray], unreadable: set[int]) -> None:
    for index, (tile, before) in enumerate(zip(native_tiles(path), whole, strict=True)):
        if index in unreadable:
            assert isinstance(tile, RegionUnreadableError), index
        else:
            np.testing.assert_array_equal(tile, before)


def test_a_tile_that_was_zeroed_is_unreadable(slide, copy):
    offsets, counts, _ = table(slide)
    for index in (0, 5, 15):
        number = number_in_table(index)
        overwrite(copy, offsets[number], bytes(counts[number]))
    check(copy, native_tiles(slide), {0, 5, 15})


def test_a_tile_with_a_hole_in_its_data_is_unreadable(slide, copy):
    offsets, counts, _ = table(slide)
    for index in (2, 7):
        number = number_in_table(index)
        overwrite(copy, offsets[number] + counts[number] // 2, bytes(counts[number] // 4))
    check(copy, native_tiles(slide), {2, 7})


def test_the_stage_counts_just_the_tiles_that_lie_on_damage(slide, copy, tmp_path):
    offsets, counts, _ = table(slide)
    parameters = TileConfig(mpp=0.5, size_px=50, min_focus=0, max_unreadable=1)
    whole = fates(slide, parameters)
    damaged = [(1, 1), (3, 2)]  # row and column of native tiles
    for row, column in damaged:
        number = row * NATIVE_SIDE + column
        overwrite(copy, offsets[number], bytes(counts[number]))
    found = fates(copy, parameters)
    # A tile of 50 px at 0.5 um/px is 100 px of level 0 wide.
    expected = {
        (x, y)
        for (x, y), fate in whole.items()
        if fate != "background"
        for row, column in damaged
        if column * 256 - 100 < x < column * 256 + 256 and row * 256 - 100 < y < row * 256 + 256
    }
    assert len(expected) > 10
    assert {place for place, fate in found.items() if fate == "unreadable"} == expected
    assert {p: f for p, f in found.items() if p not in expected} == {
        p: f for p, f in whole.items() if p not in expected
    }


def fates(path: Path, parameters: TileConfig) -> dict[tuple[int, int], str]:
    with open_slide_for_tiling(path, parameters) as scanned:
        return {(tile.x, tile.y): tile.fate for tile in scanned.tiles()}


@pytest.mark.parametrize("tenth", range(1, 11))
def test_a_truncated_slide_has_the_tiles_that_are_left(slide, copy, tenth):
    offsets, counts, _ = table(slide)
    end = slide.stat().st_size * tenth // 11
    with copy.open("r+b") as file:
        file.truncate(end)
    gone = {
        index
        for index in range(16)
        if offsets[number_in_table(index)] + counts[number_in_table(index)] > end
    }
    # Where a directory lies behind the end, the slide is refused as a whole.
    with contextlib.suppress(SlideError):
        check(copy, native_tiles(slide), gone)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(2**32 - 10, None), (1, None), (None, 2**31 - 1), (None, 3), (2**31, 2**31 - 1)],
)
def test_a_tile_that_points_elsewhere_is_unreadable(slide, copy, offset, count):
    _, _, where = table(slide)
    number = number_in_table(6)
    for name, value in (("TileOffsets", offset), ("TileByteCounts", count)):
        if value is not None:
            overwrite(copy, where[name] + 4 * number, struct.pack("<I", value))
    check(copy, native_tiles(slide), {6})


def test_a_tile_that_points_at_another_one_is_unreadable(slide, copy):
    offsets, counts, where = table(slide)
    one, other = number_in_table(3), number_in_table(9)
    overwrite(copy, where["TileOffsets"] + 4 * one, struct.pack("<I", offsets[other]))
    # The lengths differ, so the stream does not end where tile 3 should.
    assert counts[one] != counts[other]
    check(copy, native_tiles(slide), {3})
    overwrite(copy, where["TileByteCounts"] + 4 * one, struct.pack("<I", counts[other]))
    # Now no one can tell whose bytes they are.
    check(copy, native_tiles(slide), {3, 9})


def test_a_tile_the_scanner_left_out_is_white(slide, copy):
    _, _, where = table(slide)
    overwrite(copy, where["TileByteCounts"] + 4 * number_in_table(10), bytes(4))
    found = native_tiles(copy)
    assert (found[10] == 255).all()


def test_a_header_that_claims_another_size_is_unreadable(slide, copy):
    offsets, counts, _ = table(slide)
    data = slide.read_bytes()
    for index, size in ((1, 65535), (4, 255)):
        number = number_in_table(index)
        stream = data[offsets[number] : offsets[number] + counts[number]]
        frame = offsets[number] + stream.index(b"\xff\xc0")
        overwrite(copy, frame + 5, struct.pack(">HH", size, size))
    check(copy, native_tiles(slide), {1, 4})


def test_a_level_whose_table_does_not_fit_its_size_is_refused(slide, copy):
    with tifffile.TiffFile(slide) as tiff:
        width = tiff.pages[0].tags["ImageWidth"]
    overwrite(copy, width.valueoffset, struct.pack("<I", 1400))
    with pytest.raises(SlideError) as caught:
        opened(copy)
    assert caught.value.reason == "damaged_pyramid"
    what = (
        "it is 1400 x 1100 px in tiles of 256 x 256 px, which makes 30 tiles, and lists 25 places"
    )
    assert what in str(caught.value)


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_a_table_that_is_cut_short_is_refused(slide, copy, tag):
    with tifffile.TiffFile(slide) as tiff:
        entry = tiff.pages[0].tags[tag].offset
    overwrite(copy, entry + 4, struct.pack("<I", 24))
    with pytest.raises(SlideError) as caught:
        opened(copy, "jpeg")
    told = "24 places and 25 lengths" if tag == "TileOffsets" else "25 places and 24 lengths"
    assert told in str(caught.value)


@pytest.mark.parametrize("block", range(10))
def test_flipped_bytes_cost_their_own_tiles_and_no_other(slide, tmp_path, block):
    offsets, counts, where = table(slide)
    whole = native_tiles(slide)
    data = slide.read_bytes()
    tables = [range(at, at + 4 * len(offsets)) for at in where.values()]
    for seed in range(block * 30, block * 30 + 30):
        random = np.random.default_rng(seed)
        flipped = bytearray(data)
        # Half of them in the tables, which are small and hardly ever hit by chance.
        if seed % 2:
            positions = [int(random.choice(tables[seed // 2 % 2])) for _ in range(3)]
        else:
            positions = random.integers(0, len(data), 20).tolist()
        for position in positions:
            flipped[position] ^= 1 << int(random.integers(8))
        path = tmp_path / "flipped.svs"
        path.write_bytes(flipped)
        try:
            found = native_tiles(path)
        except SlideError:
            continue
        for index, (tile, before) in enumerate(zip(found, whole, strict=True)):
            number = number_in_table(index)
            own = range(offsets[number], offsets[number] + counts[number])
            if any(position in own for position in positions):
                continue  # its own content may have changed without a trace
            left_out = isinstance(tile, np.ndarray) and (tile == 255).all()
            if not isinstance(tile, RegionUnreadableError) and not left_out:
                np.testing.assert_array_equal(tile, before, err_msg=f"seed {seed}")
