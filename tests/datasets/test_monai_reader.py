"""MONAI's own datasets over our reader see what ``medkd tile`` sees."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import torch
from monai.data import DataLoader, PatchWSIDataset, SlidingPatchWSIDataset
from monai.transforms import LoadImage

from medkd.config import TileConfig
from medkd.datasets.monai_reader import NO_LEVEL, MedkdWSIReader
from medkd.errors import SlideError
from medkd.slides.readers import open_reader
from medkd.slides.store import TileStore, decode_tile, encode_tile
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.slides.tile_slide import SlideTask, tile_slide
from medkd.slides.tiling import Tile, open_slide_for_tiling

# 1.99 level-0 pixels of 0.2513 um to one of 0.5 um: no level of the file is that.
SLIDE_MPP = 0.2513
PARAMETERS = TileConfig(mpp=0.5, size_px=96, min_focus=0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("monai") / "drawn.svs"
    write_slide(SlideSpec("MSI", seed=1, width_px=1100, height_px=1000, mpp=SLIDE_MPP), path)
    return path


@pytest.fixture
def raw(tmp_path):
    """Level 0 of noise, level 1 of grey, without a power; ``raw(mpp, damaged=True)``."""

    def write(mpp: float | None, power: float | None = None, damaged: bool = False) -> Path:
        path = tmp_path / "raw.svs"
        told = {"MPP": mpp, "AppMag": power}
        text = "Aperio Image Library v10.0.0\r\ntest" + "".join(
            f"|{key} = {value}" for key, value in told.items() if value is not None
        )
        noise = np.random.default_rng(0).integers(0, 256, (256, 384, 3), dtype=np.uint8)
        with tifffile.TiffWriter(path) as tiff:
            for level in (noise, np.full((128, 192, 3), 90, np.uint8)):
                tiff.write(
                    level,
                    photometric="rgb",
                    tile=(64, 64),
                    compression="zlib",
                    description=text,
                    metadata=None,
                )
        if damaged:
            with tifffile.TiffFile(path) as tiff:
                offset, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(b"\xff" * length)
        return path

    return write


def used_tiles(path: Path, parameters: TileConfig) -> list[Tile]:
    with open_slide_for_tiling(path, parameters) as slide:
        return [tile for tile in slide.tiles() if tile.pixels is not None]


def items(path: Path, tiles: list[Tile]) -> list[dict]:
    return [
        {"image": str(path), "location": [tile.y, tile.x], "label": number % 2}
        for number, tile in enumerate(tiles)
    ]


def tile_dataset(path: Path, tiles: list[Tile], parameters: TileConfig) -> PatchWSIDataset:
    return PatchWSIDataset(
        items(path, tiles),
        patch_size=parameters.size_px,
        center_location=False,
        reader=MedkdWSIReader(mpp=parameters.mpp),
    )


def pixels_of(image) -> np.ndarray:
    """height x width x 3 of MONAI's 3 x height x width."""
    return np.moveaxis(np.asarray(image), 0, -1)


def kept(reader: MedkdWSIReader) -> list[str]:
    """Names of the slides that are open."""
    return [path.stem for path in reader._slides._slides]


def refused(reader: MedkdWSIReader, path: Path, **request) -> SlideError:
    with pytest.raises(SlideError) as caught:
        reader.get_data(reader.read(path), **request)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def assert_same_as_tiles(path: Path, parameters: TileConfig) -> None:
    tiles = used_tiles(path, parameters)
    assert len(tiles) > 10
    dataset = tile_dataset(path, tiles, parameters)
    for tile, item in zip(tiles, dataset, strict=True):
        assert item["image"].dtype == torch.uint8
        assert item["image"].shape == (3, parameters.size_px, parameters.size_px)
        np.testing.assert_array_equal(pixels_of(item["image"]), tile.pixels)


def test_patches_are_the_tiles_of_a_drawn_slide(drawn):
    assert_same_as_tiles(drawn, PARAMETERS)


@pytest.mark.real_data
def test_patches_are_the_tiles_of_a_real_slide(real_slides):
    assert_same_as_tiles(real_slides / "CMU-1-Small-Region.svs", TileConfig())


def test_store_holds_the_patches_encoded(drawn, tmp_path):
    task = SlideTask("drawn", "p", drawn, None, PARAMETERS, tmp_path)
    assert tile_slide(task).status == "ok"
    with TileStore(task.store_path) as store:
        tiles = store.tiles()
        dataset = tile_dataset(drawn, tiles, PARAMETERS)
        for tile, item in zip(tiles, dataset, strict=True):
            stored = store.read(tile.x, tile.y)
            patch = pixels_of(item["image"])
            again = decode_tile(encode_tile(patch, PARAMETERS.jpeg_quality))
            np.testing.assert_array_equal(again, stored)


def test_sliding_window_at_a_true_mpp(drawn):
    dataset = SlidingPatchWSIDataset(
        [{"image": str(drawn)}], patch_size=96, reader=MedkdWSIReader(mpp=0.5)
    )
    # 96 px of 0.5 um are 191.01 px of 0.2513 um: five of them in 1,000 and 1,100 px.
    assert [tuple(sample["location"]) for sample in dataset.data[:6]] == [
        *((0, 191 * column) for column in range(5)),
        (191, 0),
    ]
    assert len(dataset) == 5 * 5
    slide = open_reader(drawn, PARAMETERS)
    for item in dataset:
        y, x = item["image"].meta["location"]
        expected = slide.read_region(int(x), int(y), 96, 96, 0.5)
        np.testing.assert_array_equal(pixels_of(item["image"]), expected)


@pytest.mark.real_data
def test_sliding_window_on_a_real_slide(real_slides):
    """At the file's own mpp both grids are the same, so all the tiles must be there."""
    path = real_slides / "CMU-1-Small-Region.svs"
    dataset = SlidingPatchWSIDataset(
        [{"image": str(path)}], patch_size=224, reader=MedkdWSIReader(mpp=0.499)
    )
    patches = {tuple(item["image"].meta["location"]): item["image"] for item in dataset}
    tiles = used_tiles(path, TileConfig(mpp=0.499))
    assert len(patches) == 9 * 13
    assert len(tiles) > 40
    for tile in tiles:
        np.testing.assert_array_equal(pixels_of(patches[tile.y, tile.x]), tile.pixels)


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_loader_workers_read_the_same(drawn, context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    tiles = used_tiles(drawn, PARAMETERS)
    dataset = tile_dataset(drawn, tiles, PARAMETERS)
    first = pixels_of(dataset[0]["image"])  # opens the slide in this process too
    loader = DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context=context)
    images = np.concatenate([np.asarray(batch["image"]) for batch in loader])
    np.testing.assert_array_equal(
        np.moveaxis(images, 1, -1), np.stack([tile.pixels for tile in tiles])
    )
    np.testing.assert_array_equal(pixels_of(dataset[0]["image"]), first)


def test_metadata(drawn):
    reader = MedkdWSIReader(mpp=0.5)
    patch, metadata = reader.get_data(reader.read(drawn), location=(20, 30), size=(40, 50))
    assert patch.shape == (3, 40, 50)
    assert patch.dtype == np.uint8
    assert metadata["path"] == str(drawn)
    assert metadata["location"].tolist() == [20, 30]
    assert metadata["size"].tolist() == metadata["spatial_shape"].tolist() == [40, 50]
    assert (metadata["level"], metadata["count"]) == (NO_LEVEL, 1)
    assert (metadata["backend"], metadata["original_channel_dim"]) == ("medkd", 0)
    assert (metadata["mpp"], metadata["slide_mpp"]) == (0.5, SLIDE_MPP)
    assert metadata["mpp_source"] == "metadata"
    assert metadata["synthetic"]


def test_rows_come_before_columns(raw):
    path = raw(0.5)
    reader = MedkdWSIReader()
    patch, metadata = reader.get_data(reader.read(path), location=(64, 128), size=(32, 48))
    expected = openslide.OpenSlide(path).read_region((128, 64), 0, (48, 32)).convert("RGB")
    np.testing.assert_array_equal(pixels_of(patch), np.asarray(expected))
    assert (metadata["level"], metadata["mpp"]) == (0, 0.5)


def test_levels_are_those_of_the_file(raw):
    reader = MedkdWSIReader(level=1)
    wsi = reader.read(raw(0.5))
    assert reader.get_level_count(wsi) == 2
    assert [reader.get_size(wsi, level) for level in (0, 1)] == [(256, 384), (128, 192)]
    assert [reader.get_downsample_ratio(wsi, level) for level in (0, 1)] == [1, 2]
    assert [reader.get_mpp(wsi, level) for level in (0, 1)] == [(0.5, 0.5), (1, 1)]
    whole, metadata = reader.get_data(wsi)
    assert (whole == 90).all()
    assert whole.shape == (3, 128, 192)
    assert metadata["level"] == 1
    # A request overrides what the reader was made with.
    assert reader.get_data(wsi, level=0)[0].shape == (3, 256, 384)
    for level in (2, -1):
        with pytest.raises(ValueError, match=f"there is no level {level}, only 0 to 1"):
            reader.get_data(wsi, level=level)


def test_mpp_is_resampled_not_rounded_to_a_level(raw):
    """MONAI's tolerance of 5% would give 0.5 um/px here, and call it 0.52."""
    path = raw(0.5)
    reader = MedkdWSIReader()
    patch, metadata = reader.get_data(reader.read(path), size=(100, 100), mpp=0.52)
    slide = open_reader(path, TileConfig())
    expected = slide.read_region(0, 0, 100, 100, 0.52)
    level0 = slide.read_region(0, 0, 100, 100, 0.5)
    np.testing.assert_array_equal(pixels_of(patch), expected)
    assert (expected != level0).any()
    assert metadata["mpp"] == 0.52
    assert reader.get_data(reader.read(path), mpp=(0.52, 0.52))[0].shape == (3, 246, 369)


def test_level_0_of_a_reader_made_for_an_mpp_is_that_mpp(raw):
    reader = MedkdWSIReader(mpp=0.8)
    wsi = reader.read(raw(0.5))
    assert reader.get_mpp(wsi, 0) == (0.8, 0.8)
    assert reader.get_downsample_ratio(wsi, 0) == 0.8 / 0.5
    assert reader.get_size(wsi, 0) == (256, 384)  # where locations lie
    assert reader.get_data(wsi, level=0)[0].shape == (3, 160, 240)
    assert reader.get_data(wsi, level=1)[1]["mpp"] == 1.0
    assert reader.get_data(wsi, mpp=2.0)[1]["mpp"] == 2.0
    by_class = PatchWSIDataset(
        [{"image": str(wsi.path), "location": [0, 0]}],
        patch_size=64,
        center_location=False,
        include_label=False,
        reader=MedkdWSIReader,
        mpp=0.8,
    )
    assert by_class[0]["image"].meta["mpp"] == 0.8


def test_power_is_counted_from_what_the_file_tells(raw):
    path = raw(0.499, power=20)
    reader = MedkdWSIReader(power=12.5)
    wsi = reader.read(path)
    assert reader.get_power(wsi, 0) == 12.5
    assert reader.get_power(wsi, 1) == 10
    patch, metadata = reader.get_data(wsi, size=(64, 64))
    assert metadata["mpp"] == 0.499 * 20 / 12.5
    by_mpp, _ = reader.get_data(wsi, size=(64, 64), mpp=0.499 * 20 / 12.5)
    np.testing.assert_array_equal(patch, by_mpp)
    error = refused(reader, path, size=(64, 64), power=40)
    assert error.reason == "too_coarse"


def test_power_of_a_slide_that_does_not_tell_it(raw):
    error = refused(MedkdWSIReader(), raw(0.5), power=20)
    assert error.reason == "missing_power"
    assert "'mpp'" in error.remedy


def test_missing_mpp_is_refused_unless_it_is_given(raw):
    path = raw(None)
    with pytest.raises(SlideError, match="does not say its resolution") as caught:
        MedkdWSIReader(mpp=0.5).read(path)
    assert caught.value.reason == "missing_mpp"
    with pytest.raises(SlideError, match="does not say its resolution"):
        SlidingPatchWSIDataset([{"image": str(path)}], patch_size=64, reader=MedkdWSIReader())
    given = MedkdWSIReader(mpp=0.5, table_mpp={str(path): 0.25})
    _, metadata = given.get_data(given.read(str(path)))
    assert (metadata["slide_mpp"], metadata["mpp_source"]) == (0.25, "slides.csv")
    assert metadata["size"].tolist() == [128, 192]


def test_slide_that_is_too_coarse_is_refused_rather_than_enlarged(raw):
    path = raw(1.0)
    error = refused(MedkdWSIReader(mpp=0.5), path, size=(64, 64))
    assert error.reason == "too_coarse"
    assert MedkdWSIReader(mpp=0.95).get_data(MedkdWSIReader().read(path))[0].shape[0] == 3
    enlarging = MedkdWSIReader(mpp=0.5, parameters=TileConfig(max_upsampling=2))
    assert enlarging.get_data(enlarging.read(path))[0].shape == (3, 512, 768)


@pytest.mark.parametrize("location", [(-1, 0), (0, -1), (193, 0), (0, 321), (1000, 1000)])
def test_beyond_the_bounds_nothing_is_invented(raw, location):
    path = raw(0.5)
    error = refused(MedkdWSIReader(), path, location=location, size=(64, 64))
    assert error.reason == "outside_slide"
    assert f"row {location[0]}, column {location[1]} reaches beyond the slide's 256" in error.what
    assert "center_location=False" in error.remedy


def test_unreadable_region_is_an_error_never_white(raw):
    path = raw(0.5, damaged=True)
    reader = MedkdWSIReader()
    for _ in range(2):
        error = refused(reader, path, size=(64, 64))
        assert error.reason == "unreadable_region"
        assert reader.get_data(reader.read(path), location=(64, 64), size=(64, 64))[0].std() > 50


def test_requests_that_contradict_themselves(raw):
    reader = MedkdWSIReader()
    wsi = reader.read(raw(0.5))
    for request, message in (
        ({"level": 0, "mpp": 0.5}, "only one of 'level', 'mpp' and 'power'"),
        ({"mpp": (0.5, 0.6)}, "the same down and across"),
        ({"mpp": 0}, "'mpp' must be greater than zero"),
        ({"size": (0, 5)}, "'size' must be greater than zero"),
        ({"location": (5, 5)}, "needs a 'size'"),
        ({"mode": "RGBA"}, "'mode' must be RGB"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.get_data(wsi, **request)
    for made, message in (
        ({"mpp": 0.5, "power": 20}, "only one of"),
        ({"mpp": 0.5, "level": 1}, "only one of"),
        ({"mpp": -1}, "'mpp' must be greater than zero"),
        ({"mode": "RGBA"}, "'mode' must be RGB"),
        ({"open_slides": 0}, "'open_slides' must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MedkdWSIReader(**made)


def test_channel_type_and_tensor_as_asked(raw):
    path = raw(0.5)
    reader = MedkdWSIReader(channel_dim=-1, dtype=np.float32)
    wsi = reader.read(path)
    patch, metadata = reader.get_data(wsi, size=(16, 24))
    assert (patch.shape, patch.dtype) == ((16, 24, 3), np.float32)
    assert metadata["original_channel_dim"] == 2
    assert metadata["spatial_shape"].tolist() == [16, 24]
    tensor, _ = MedkdWSIReader(dtype=torch.float32).get_data(wsi, size=(16, 24))
    assert (tensor.shape, tensor.dtype) == ((3, 16, 24), torch.float32)
    np.testing.assert_array_equal(np.asarray(tensor), np.moveaxis(patch, -1, 0))


def test_several_slides_are_joined_along_the_channels(raw, drawn):
    path = raw(0.5)
    reader = MedkdWSIReader(mpp=0.6)
    both = reader.read([path, drawn])
    patch, metadata = reader.get_data(both, size=(32, 32))
    assert patch.shape == (6, 32, 32)
    for wsi, part in zip(both, (patch[:3], patch[3:]), strict=True):
        np.testing.assert_array_equal(part, reader.get_data(wsi, size=(32, 32))[0])
    assert metadata["path"] == [str(path), str(drawn)]
    assert metadata["slide_mpp"] == [0.5, SLIDE_MPP]
    with pytest.raises(ValueError, match="of one size"):
        reader.get_data(both)


def test_load_image_reads_the_whole_slide(drawn):
    image = LoadImage(reader=MedkdWSIReader(mpp=4.0), image_only=True)(str(drawn))
    assert image.shape == (3, 62, 69)  # 1,000 and 1,100 px of 0.2513 um are 62.8 and 69.1
    assert MedkdWSIReader().verify_suffix("a.ndpi")
    assert not MedkdWSIReader().verify_suffix("a.nii.gz")


def test_slides_stay_open_up_to_a_limit(drawn, tmp_path):
    paths = [tmp_path / f"{name}.svs" for name in "abc"]
    for path in paths:
        path.write_bytes(drawn.read_bytes())
    reader = MedkdWSIReader(mpp=0.5, open_slides=2)
    first, second, third = (reader.read(path) for path in paths)
    assert kept(reader) == ["b", "c"]
    reader.get_data(second, size=(8, 8))
    before, _ = reader.get_data(first, size=(8, 8))
    assert kept(reader) == ["b", "a"]
    reader.close()
    assert kept(reader) == []
    after, _ = reader.get_data(first, size=(8, 8))
    np.testing.assert_array_equal(after, before)
    reader.get_data(third, size=(8, 8))
    copy = pickle.loads(pickle.dumps(reader))
    assert kept(copy) == []
    np.testing.assert_array_equal(copy.get_data(first, size=(8, 8))[0], before)
