"""DICOM slides of JPEG frames: OpenSlide's pixels, whatever table says where frames lie."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import simplejpeg
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides import dicom_tiles
from medkd.slides.dicom_tiles import read_dicom_levels
from medkd.slides.jpeg_reader import JpegReader
from medkd.slides.jpeg_tiles import DamagedPyramidError, JpegLevel, NotNativeError
from medkd.slides.openslide_reader import fingerprint
from medkd.slides.reader import RegionUnreadableError, SlideReader
from medkd.slides.readers import open_reader
from medkd.slides.store import TileStore
from medkd.slides.synthetic import SlideSpec, draw_slide
from medkd.slides.tile_slide import SlideTask, outdated, tile_slide
from medkd.slides.tiling import open_slide_for_tiling

WIDTH_PX, HEIGHT_PX = 1100, 900  # not multiples of the native 256 px: frames reach beyond
NATIVE_PX = 256
COLUMNS, ROWS = 5, 4
SIZES = ((WIDTH_PX, HEIGHT_PX), (275, 225))
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


@dataclass(frozen=True)
class Making:
    """How a slide's files are made.

    ``table``: basic, extended, padded (extended, lengths with what fills frames up) or none.
    ``more``: attributes that replace or join the others.
    """

    table: str = "basic"
    photometric: str = "YBR_FULL_422"
    frames: Sequence[bytes] | None = None
    fragments: int = 1
    syntax: str = JPEGBaseline8Bit
    more: tuple[tuple[str, object], ...] = ()


def cut(image: np.ndarray) -> list[np.ndarray]:
    """Tiles of 256 px, row by row; those at the edges are filled up."""
    height, width = image.shape[:2]
    filled = np.pad(
        image, ((0, -height % NATIVE_PX), (0, -width % NATIVE_PX), (0, 0)), mode="reflect"
    )
    return [
        np.ascontiguousarray(filled[y : y + NATIVE_PX, x : x + NATIVE_PX])
        for y in range(0, height, NATIVE_PX)
        for x in range(0, width, NATIVE_PX)
    ]


def as_ybr(tile: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(tile, quality=88, colorspace="RGB", colorsubsampling="422")


def as_rgb(tile: np.ndarray) -> bytes:
    """Red, green and blue as they are, told by Adobe's marker and the components' names."""
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=88, subsampling=0, keep_rgb=True)
    return stream.getvalue()


def as_silent_rgb(tile: np.ndarray) -> bytes:
    """The same in a stream that says nothing of it."""
    data = bytearray(as_rgb(tile))
    adobe = data.index(b"\xff\xee")
    del data[adobe : adobe + 16]
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        at = data.index(marker)
        for component in range(3):
            data[at + first + step * component] = component + 1
    return bytes(data)


def write_file(path: Path, image: np.ndarray, making: Making, *, number: int, mpp: float) -> None:
    """One level of a slide; what is put down is what OpenSlide asks for."""
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = making.syntax
    content.SOPClassUID = content.file_meta.MediaStorageSOPClassUID = WHOLE_SLIDE
    content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    content.StudyInstanceUID, content.SeriesInstanceUID = "1.2.4", "1.2.5"
    content.ImageType = [
        *(("DERIVED", "ORIGINAL")[number == 0], "PRIMARY", "VOLUME"),
        ("RESAMPLED", "NONE")[number == 0],
    ]
    content.PhotometricInterpretation = making.photometric
    content.SamplesPerPixel, content.PlanarConfiguration = 3, 0
    content.BitsAllocated, content.BitsStored, content.HighBit = 8, 8, 7
    content.PixelRepresentation = 0
    content.Rows = content.Columns = NATIVE_PX
    content.TotalPixelMatrixRows, content.TotalPixelMatrixColumns = image.shape[:2]
    content.DimensionOrganizationType = "TILED_FULL"
    measures, functional = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    functional.PixelMeasuresSequence = [measures]
    content.SharedFunctionalGroupsSequence = [functional]
    frames = list(making.frames or [as_ybr(tile) for tile in cut(image)])
    content.NumberOfFrames = len(frames)
    if making.syntax == ExplicitVRLittleEndian:
        content.PixelData = np.stack(cut(image)).tobytes()
    elif making.table in ("extended", "padded"):
        content.PixelData, offsets, lengths = encapsulate_extended(frames)
        if making.table == "extended":
            lengths = np.array([len(frame) for frame in frames], "<u8").tobytes()
        content.ExtendedOffsetTable, content.ExtendedOffsetTableLengths = offsets, lengths
    else:
        content.PixelData = encapsulate(frames, making.fragments, making.table == "basic")
    content["PixelData"].VR = "OB"
    content["PixelData"].is_undefined_length = making.syntax != ExplicitVRLittleEndian
    for name, value in making.more:
        setattr(content, name, value)
    content.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    spec = SlideSpec("MSI", seed=4, width_px=WIDTH_PX, height_px=HEIGHT_PX, mpp=0.25)
    return draw_slide(spec)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path, image) -> Write:
    """``write(Making(...))`` writes level 0 so, level 1 plainly, and returns level 0's path."""

    def files(making: Making = Making(), folder: str = "slide") -> Path:
        path = tmp_path / folder / "level0.dcm"
        path.parent.mkdir()
        write_file(path, image, making, number=0, mpp=0.25)
        small = np.asarray(Image.fromarray(image).resize(SIZES[1], Image.Resampling.BOX))
        plain = Making(making.table, syntax=making.syntax)
        if making.syntax == ExplicitVRLittleEndian:
            plain = replace(plain, photometric="RGB")
        write_file(path.with_name("level1.dcm"), small, plain, number=1, mpp=1.0)
        return path

    return files


def opened(path: Path, reader: str = "auto", **options) -> SlideReader:
    return open_reader(path, TileConfig.model_validate({"reader": reader}), **options)


def by_openslide(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as handle:
        assert handle.level_dimensions == SIZES
        return np.asarray(handle.read_region((0, 0), level, SIZES[level]).convert("RGB"))


def whole(reader: SlideReader) -> np.ndarray:
    return reader.read_region(0, 0, WIDTH_PX, HEIGHT_PX, 0.25)


def native_tiles(path: Path) -> list[np.ndarray | RegionUnreadableError]:
    """Every native tile that lies whole inside level 0, row by row."""
    reader = opened(path, "jpeg")
    corners = [(x, y) for y in range(0, 768, NATIVE_PX) for x in range(0, 1024, NATIVE_PX)]
    found = list(reader.read_tiles(corners, NATIVE_PX, 0.25))
    reader.close()
    return found


def frame_of(index: int) -> int:
    """The number of the frame that is tile ``index`` of :func:`native_tiles`."""
    return index // 4 * COLUMNS + index % 4


def check(path: Path, before: Sequence[object], unreadable: set[int]) -> None:
    for index, (tile, as_it_was) in enumerate(zip(native_tiles(path), before, strict=True)):
        if index in unreadable:
            assert isinstance(tile, RegionUnreadableError), index
        else:
            np.testing.assert_array_equal(tile, as_it_was, err_msg=str(index))


def level0(path: Path) -> JpegLevel:
    return read_dicom_levels(path, SIZES)[0]


def overwrite(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


# Pixels.


def test_auto_takes_the_jpeg_frames_and_says_why(write):
    path = write()
    for named in (path, path.with_name("level1.dcm")):
        properties = opened(named).properties
        assert properties.vendor == "dicom"
        assert properties.reader.startswith("native JPEG, simplejpeg ")
        assert properties.reader_reason == "it is JPEG in tiles"
        assert (properties.width_px, properties.height_px) == SIZES[0]
        assert properties.level_downsamples == (1.0, 4.0)
        assert (properties.mpp, properties.mpp_source) == (0.25, "metadata")
    assert opened(path, "openslide").properties.reader.startswith("openslide ")


def test_pixels_of_both_files_are_openslides(write):
    reader = opened(write())
    assert np.abs(whole(reader).astype(int) - by_openslide(reader.properties.path)).max() <= 1
    coarse = reader.read_region(0, 0, *SIZES[1], 1.0)
    assert np.abs(coarse.astype(int) - by_openslide(reader.properties.path, 1)).max() <= 1
    shifted = reader.read_region(131, 257, 400, 300, 0.25)
    np.testing.assert_array_equal(shifted, whole(reader)[257:557, 131:531])


def test_at_half_resolution_pixels_are_area_averages(write):
    reader = opened(write())
    pixels = reader.read_region(130, 258, 224, 224, 0.5)
    full = by_openslide(reader.properties.path)[258 : 258 + 448, 130 : 130 + 448]
    expected = full.reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert np.abs(pixels - expected).mean() < 3
    assert np.abs((pixels - expected).mean((0, 1))).max() < 0.5  # no colour drifts


@pytest.mark.parametrize("table", ["extended", "padded", "none"])
def test_every_table_of_frames_gives_the_same_tiles(write, table):
    path, other = write(), write(Making(table=table), "other")
    sizes = [len(frame) for frame in frames(path)]
    assert {size % 2 for size in sizes} == {0, 1}  # some are filled up with a byte
    np.testing.assert_array_equal(whole(opened(path)), whole(opened(other, "jpeg")))
    level = level0(other)
    assert level.counts == [s if table == "extended" else s + s % 2 for s in sizes]


def frames(path: Path) -> list[bytes]:
    """The frames as pydicom tells them, without what fills them up."""
    content = pydicom.dcmread(path)
    found = pydicom.encaps.generate_frames(
        content.PixelData, number_of_frames=int(content.NumberOfFrames)
    )
    return [frame.rstrip(b"\0") for frame in found]


@pytest.mark.parametrize("encode", [as_rgb, as_silent_rgb])
def test_rgb_frames_keep_their_colours(write, image, encode):
    path = write(Making(photometric="RGB", frames=[encode(tile) for tile in cut(image)]))
    pixels = whole(opened(path, "jpeg")).astype(int)
    assert np.abs(pixels - by_openslide(path)).max() <= 1
    assert np.abs(pixels - image).mean() < 3


def test_ybr_full_is_read_where_openslide_will_open_it(write, image):
    path = write(Making(photometric="YBR_FULL"))
    same = write(folder="same")
    reader = opened(same)
    native = JpegReader(reader.properties, (), read_dicom_levels(path, SIZES))
    np.testing.assert_array_equal(whole(native), whole(reader))


@pytest.mark.parametrize(("photometric", "encode"), [("RGB", as_ybr), ("YBR_FULL_422", as_rgb)])
def test_frames_that_gainsay_the_header_are_left_to_openslide(write, image, photometric, encode):
    path = write(Making(photometric=photometric, frames=[encode(tile) for tile in cut(image)]))
    assert opened(path).properties.reader_reason == (
        f"its colours are stored as {photometric}, but its frames say otherwise"
    )


def test_a_tile_that_is_one_frame_keeps_the_slides_own_jpeg(write, tmp_path):
    path = write()
    parameters = TileConfig(mpp=0.25, size_px=256, min_tissue=0.2, min_focus=0)
    assert tile_slide(SlideTask("s", "p", path, None, parameters, tmp_path)).status == "ok"
    store, own = TileStore(tmp_path / "s.zip"), frames(path)
    assert len(store.tiles()) >= 6
    for tile in store.tiles():
        number = tile.y // NATIVE_PX * COLUMNS + tile.x // NATIVE_PX
        assert store.read_bytes(tile.x, tile.y) == own[number]


def test_threads_read_the_same_tiles_from_both_files(write):
    reader = opened(write())
    for mpp, side in ((0.25, 100), (1.0, 60)):
        step = side * mpp / 0.25
        places = [(x * step, y * step) for y in range(3) for x in range(4)]
        alone = list(reader.read_tiles(places, side, mpp))
        together = list(opened(reader.properties.path).read_tiles(places, side, mpp, threads=2))
        np.testing.assert_array_equal(alone, together)


def test_a_real_slide_is_openslides(real_slides):
    path = real_slides / "ezwsi_multiframe_camelyon_challenge_image.dcm"
    reader = opened(path, "jpeg", override_mpp=0.5)
    pixels = reader.read_region(0, 0, 1152, 700, 0.5)
    with openslide.OpenSlide(path) as handle:
        expected = np.asarray(handle.read_region((0, 0), 0, (1152, 700)).convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


# What is not read natively.


def sparse(image: np.ndarray) -> Making:
    """The frames of TILED_SPARSE say themselves where they lie; here from the last to the first."""
    places = []
    encoded = [as_ybr(tile) for tile in cut(image)]
    for number in reversed(range(len(encoded))):
        position, place = Dataset(), Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = number % COLUMNS * NATIVE_PX + 1
        position.RowPositionInTotalImagePixelMatrix = number // COLUMNS * NATIVE_PX + 1
        place.PlanePositionSlideSequence = [position]
        places.append(place)
    return Making(
        frames=encoded[::-1],
        more=(
            ("DimensionOrganizationType", "TILED_SPARSE"),
            ("PerFrameFunctionalGroupsSequence", places),
        ),
    )


def test_sparse_frames_are_left_to_openslide(write, image):
    path = write(sparse(image))
    reader = opened(path)
    assert reader.properties.reader.startswith("openslide ")
    assert reader.properties.reader_reason == "its frames are TILED_SPARSE, not TILED_FULL"
    assert np.abs(whole(reader).astype(int) - image).mean() < 3
    with pytest.raises(SlideError) as caught:
        opened(path, "jpeg")
    assert str(caught.value) == (
        f"{path}: cannot be read from native JPEG tiles: its frames are TILED_SPARSE, not "
        "TILED_FULL. Set tile.reader to auto or openslide."
    )


def test_uncompressed_frames_are_left_to_openslide(write, image):
    reader = opened(write(Making(syntax=ExplicitVRLittleEndian, photometric="RGB")))
    assert reader.properties.reader.startswith("openslide ")
    assert reader.properties.reader_reason == "its frames are not compressed, not JPEG baseline"


@pytest.mark.parametrize(
    ("making", "reason"),
    [
        (
            Making(syntax=JPEG2000Lossless),
            "its frames are compressed as JPEG 2000 Image Compression (Lossless Only), not JPEG "
            "baseline",
        ),
        (Making(fragments=2), "its frames are stored in several fragments"),
        (Making(fragments=2, table="none"), "its frames are stored in several fragments"),
        (Making(more=(("NumberOfOpticalPaths", 2),)), "it has several optical paths"),
        (Making(more=(("TotalPixelMatrixFocalPlanes", 3),)), "it has several focal planes"),
        (Making(more=(("NumberOfFrames", 40),)), "it has several frames for each place"),
        (Making(photometric="YBR_RCT"), "its colours are stored as YBR_RCT"),
        (Making(more=(("BitsAllocated", 16),)), "its pixels are not red, green and blue"),
        (Making(more=(("ConcatenationUID", "1.2.6"),)), "a level of it is a concatenation"),
        (Making(more=(("DimensionOrganizationType", None),)), "placed in a way that is not told"),
        (Making(more=(("ImageType", ["A", "B", "OVERVIEW"]),)), "no files have its level of 1100"),
        (Making(more=(("SeriesInstanceUID", "1.2.7"),)), "no files have its level of 275 x 225"),
    ],
)
def test_whatever_else_is_not_native_and_says_why(write, making, reason):
    path = write(making)
    with pytest.raises(NotNativeError) as caught:
        read_dicom_levels(path, SIZES)
    assert reason in str(caught.value)


def test_two_files_of_one_level_are_left_to_openslide(write):
    path = write()
    shutil.copy(path, path.with_name("copy.dcm"))
    reader = opened(path)
    assert reader.properties.reader_reason == "2 files have its level of 1100 x 900 px"


@pytest.mark.parametrize("number", [19, 21])
def test_frames_that_do_not_fit_the_size_are_damage(write, number):
    path = write(Making(more=(("NumberOfFrames", number),)))
    with pytest.raises(SlideError) as caught:
        opened(path)
    assert caught.value.reason == "damaged_pyramid"
    assert f"it is 1100 x 900 px in tiles of 256 x 256 px and has {number} frames" in str(
        caught.value
    )


def test_items_that_do_not_fit_the_size_are_damage(write, image):
    few = [as_ybr(tile) for tile in cut(image)][:19]
    path = write(Making(table="none", frames=few, more=(("NumberOfFrames", 20),)))
    with pytest.raises(DamagedPyramidError, match="and has 19 frames"):
        read_dicom_levels(path, SIZES)


# Other files.


def test_without_the_file_of_level_1_level_0_is_read(write):
    path = write()
    expected = whole(opened(path))
    path.with_name("level1.dcm").unlink()
    reader = opened(path, "jpeg")
    assert reader.properties.level_downsamples == (1.0,)
    np.testing.assert_array_equal(whole(reader), expected)


def test_a_file_that_goes_away_while_it_is_read_is_unreadable(write):
    reader = opened(write())
    reader.properties.path.with_name("level1.dcm").unlink()
    with pytest.raises(RegionUnreadableError):
        reader.read_region(0, 0, 100, 100, 1.0)
    assert whole(reader).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_files_that_are_no_slides_and_other_slides_do_not_matter(write, image):
    path = write()
    expected = whole(opened(path))
    before = fingerprint(path)
    other = Making(more=(("SeriesInstanceUID", "1.2.9"),))
    write_file(path.with_name("a.dcm"), image[::-1], other, number=5, mpp=0.25)
    path.with_name("b.dcm").write_bytes(path.read_bytes()[:400])
    path.with_name("c.txt").write_text("notes")
    path.with_name("folder.dcm").mkdir()
    np.testing.assert_array_equal(whole(opened(path, "jpeg")), expected)
    assert fingerprint(path) == before


def test_the_fingerprint_is_of_all_files_of_the_slide(write):
    path = write()
    second = path.with_name("level1.dcm")
    before = fingerprint(path)
    assert fingerprint(second) == before
    data = second.read_bytes()
    second.rename(path.with_name("another.dcm"))
    assert fingerprint(path) == before
    second.with_name("another.dcm").unlink()
    assert fingerprint(path) != before
    second.write_bytes(data[:-300] + bytes(300))
    assert fingerprint(path) != before
    second.write_bytes(data)
    assert fingerprint(path) == before


def test_a_changed_file_beside_makes_the_tiles_anew(write, tmp_path):
    path = write()
    task = SlideTask("s", "p", path, None, TileConfig(mpp=0.5, size_px=64), tmp_path)
    assert tile_slide(task).status == "ok"
    assert outdated(task) is None
    second = path.with_name("level1.dcm")
    second.write_bytes(second.read_bytes()[:-1000])
    assert outdated(task) == "slide file changed"


# Damage. What is not whole is unreadable; everything else is as it was.


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_a_frame_that_was_zeroed_is_unreadable(write, table):
    path = write(Making(table=table))
    before = native_tiles(path)
    level = level0(path)
    for index in (0, 5, 11):
        number = frame_of(index)
        overwrite(path, level.offsets[number], bytes(level.counts[number]))
    check(path, before, {0, 5, 11})


def test_the_stage_counts_the_tiles_that_lie_on_damage(write):
    path = write()
    parameters = TileConfig(mpp=0.5, size_px=64, min_focus=0, max_unreadable=1)
    before = fates(path, parameters)
    level, number = level0(path), 1 * COLUMNS + 2
    overwrite(path, level.offsets[number], bytes(level.counts[number]))
    after = fates(path, parameters)
    # A tile of 64 px at 0.5 um/px is 128 px of level 0 wide: four lie on the frame.
    on_it = {(x, y) for x in (512, 640) for y in (256, 384)}
    lost = {place for place in on_it if before[place] != "background"}
    assert len(lost) >= 2
    assert {place for place, fate in after.items() if fate == "unreadable"} == lost
    assert all(after[place] == before[place] for place in before if place not in lost)


def fates(path: Path, parameters: TileConfig) -> dict[tuple[int, int], str]:
    with open_slide_for_tiling(path, parameters) as scanned:
        return {(tile.x, tile.y): tile.fate for tile in scanned.tiles()}


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("frames_left", [3, 12, 19])
def test_a_truncated_file_has_the_frames_that_are_left(write, table, frames_left):
    path = write(Making(table=table))
    before = native_tiles(path)
    with path.open("r+b") as file:
        file.truncate(level0(path).offsets[frames_left] + 100)
    check(path, before, {index for index in range(12) if frame_of(index) >= frames_left})


@pytest.mark.parametrize("table", ["basic", "extended"])
@pytest.mark.parametrize("entry", [0, 7, 19])
def test_a_table_with_a_wrong_entry_is_not_believed(write, table, entry):
    path = write(Making(table=table))
    before = native_tiles(path)
    first, second = level0(path).offsets[:2]
    data = path.read_bytes()
    if table == "basic":
        at = first - 8 - 4 * COLUMNS * ROWS + 4 * entry
    else:
        at = data.index((second - first).to_bytes(8, "little")) - 8 + 8 * entry
    for changed in (2, 0x40, 0xFF):
        overwrite(path, at, bytes([data[at] ^ changed]))
        check(path, before, set())


def test_a_wrong_entry_that_no_sample_meets_costs_its_own_tiles(write, monkeypatch):
    path = write()
    before = native_tiles(path)
    at = level0(path).offsets[0] - 8 - 4 * COLUMNS * ROWS + 4 * frame_of(6)
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 2]))
    check(path, before, set())
    monkeypatch.setattr(dicom_tiles, "_SAMPLES", 4)  # every fifth
    check(path, before, {5, 6})


@pytest.mark.parametrize("are_samples_met", [True, False])
def test_a_table_of_another_slide_gives_no_tile_of_the_wrong_place(
    write, monkeypatch, are_samples_met
):
    path = write()
    before = native_tiles(path)
    level = level0(path)
    starts = [offset - level.offsets[0] for offset in level.offsets]
    moved = [0, *(start + 20 for start in starts[1:])]
    table = b"".join(start.to_bytes(4, "little") for start in moved)
    overwrite(path, level.offsets[0] - 8 - len(table), table)
    if not are_samples_met:
        monkeypatch.setattr(dicom_tiles, "_fits_items", lambda *_: True)
    check(path, before, set() if are_samples_met else set(range(12)))


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_an_item_that_says_another_length_is_unreadable(write, table):
    path = write(Making(table=table))
    before = native_tiles(path)
    level, number = level0(path), frame_of(6)
    overwrite(path, level.offsets[number] - 4, (level.counts[number] - 60).to_bytes(4, "little"))
    check(path, before, {6})


def test_an_item_of_no_length_is_white(write):
    path = write(Making(table="none"))
    before = native_tiles(path)
    level, number = level0(path), frame_of(5)
    data, start = path.read_bytes(), level.offsets[number]
    path.write_bytes(data[: start - 4] + bytes(4) + data[start + level.counts[number] :])
    found = native_tiles(path)
    assert (found[5] == 255).all()
    before[5] = found[5]
    check(path, before, set())
    # A broken header may have been anything, and nothing tells where the next one is.
    overwrite(path, start - 8, b"?")
    check(path, before, {5, 6, 7, 8, 9, 10, 11})


def test_a_table_that_leaves_out_a_frame_that_is_there_is_not_believed(write, monkeypatch):
    path = write()
    before = native_tiles(path)
    level, number = level0(path), frame_of(5)
    at = level.offsets[0] - 8 - 4 * COLUMNS * ROWS + 4 * (number + 1)
    nothing = level.offsets[number] - level.offsets[0] + 8
    overwrite(path, at, nothing.to_bytes(4, "little"))
    check(path, before, set())
    monkeypatch.setattr(dicom_tiles, "_fits_items", lambda *_: True)
    check(path, before, {5, 6})


@pytest.mark.parametrize("block", range(4))
def test_flipped_bytes_cost_their_own_tiles_and_no_other(write, block):
    path = write(Making(table=("basic", "extended", "none", "basic")[block]))
    before = native_tiles(path)
    level = level0(path)
    data = path.read_bytes()
    own = [
        range(level.offsets[n], level.offsets[n] + level.counts[n])
        for n in map(frame_of, range(12))
    ]
    tables = level.offsets[0] - 600
    checked = 0
    for seed in range(block * 40, block * 40 + 40):
        random = np.random.default_rng(seed)
        # Half of them before the first frame, in the header and the tables of offsets.
        low, high = (tables, level.offsets[0]) if seed % 2 else (0, len(data))
        positions = random.integers(low, high, 4 if seed % 2 else 20).tolist()
        flipped = bytearray(data)
        for position in positions:
            flipped[position] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        try:
            found = native_tiles(path)
        except (SlideError, ValueError):  # refused, or smaller than it was
            continue
        checked += 1
        for tile, as_it_was, bytes_of_it in zip(found, before, own, strict=True):
            if any(position in bytes_of_it for position in positions):
                continue  # its own content may have changed without a trace
            if not isinstance(tile, RegionUnreadableError):
                np.testing.assert_array_equal(tile, as_it_was, err_msg=f"seed {seed}")
    assert checked >= 10


# What it costs.


def test_a_table_is_read_without_the_frames(write, monkeypatch):
    path = write(Making(table="basic"))
    read = []
    pread = os.pread

    def counting(descriptor, count, offset):
        read.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr("os.pread", counting)
    level = level0(path)
    assert max(read) <= 4096
    assert sum(read) < sum(level.counts) / 2


def test_pydicom_is_not_imported_for_other_slides():
    code = "import medkd.slides.readers, sys; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
