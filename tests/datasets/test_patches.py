"""Items of tiles as columns: what they say, and what a million of them cost."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monai.data import CacheDataset, Dataset, PersistentDataset, partition_dataset

from medkd.datasets.patches import PatchItems, patch_items
from medkd.datasets.transforms import LoadStoredTiled, tile_transforms
from medkd.errors import StageError
from medkd.slides.imported_tiles import ImportedTiles, write_import_record
from medkd.slides.store import StoredTile, encode_tile, read_index, write_index, writing_store

LEVELS = {"A": (10, 60, 110), "B": (160, 210)}
RANGES = ["offset_bytes", "length_bytes"]


@pytest.fixture
def tiles(tmp_path: Path) -> pd.DataFrame:
    """The index of two stores; each tile has a grey of its own, x counts the tiles of a slide."""
    for slide, levels in LEVELS.items():
        with writing_store(tmp_path / f"{slide}.zip") as store:
            for x, level in enumerate(levels):
                pixels = np.full((16, 16, 3), level, np.uint8)
                store.add(StoredTile(x, 7, 1.0, 1.0), encode_tile(pixels, 95))
    parameters = {"mpp": 0.5, "size_px": 16}
    records = [
        {"slide_id": slide, "patient_id": slide, "parameters": parameters} for slide in LEVELS
    ]
    index = write_index(tmp_path, records)
    return index.assign(label=index["slide_id"].map({"A": "MSI", "B": "MSS"}))


def items_of(tiles: pd.DataFrame, folder: Path, **options) -> PatchItems:
    return patch_items(tiles, folder, ("MSS", "MSI"), **options)


def greys(items) -> list[int]:
    load = LoadStoredTiled("image")
    return [round(float(load(item)["image"].mean())) for item in items]


def test_items_say_where_a_tile_lies_and_the_number_of_its_class() -> None:
    tiles = pd.DataFrame(
        {
            "slide_id": ["a", "b"],
            "x": [1, 2],
            "y": [3, 4],
            "label": ["MSI", "MSS"],
            "offset_bytes": [0, 5_000_000_000],
            "length_bytes": [70, 80],
        }
    )
    items = items_of(tiles, Path("tiles"))
    assert list(items) == [
        {"image": (str(Path("tiles/a.zip")), 1, 3, 0, 70), "label": 1},
        {"image": (str(Path("tiles/b.zip")), 2, 4, 5_000_000_000, 80), "label": 0},
    ]
    assert items[-1] == items[1]
    assert list(items[1:]) == [items[1]]
    assert items.places() == [(str(Path("tiles/a.zip")), 1, 3), (str(Path("tiles/b.zip")), 2, 4)]
    with pytest.raises(IndexError):
        items[2]


def test_items_of_slides_that_are_read_themselves_name_the_record() -> None:
    tiles = pd.DataFrame({"slide_id": ["a"], "x": [1], "y": [3], "label": ["MSI"]})
    items = items_of(tiles, Path("tiles"), store="coordinates")
    assert list(items) == [{"image": (str(Path("tiles/a.json")), 1, 3), "label": 1}]


def test_items_of_imported_tiles_name_the_image(tmp_path: Path) -> None:
    imported = ImportedTiles("x", tmp_path / "images", 8, None, has_places=False)
    write_import_record(tmp_path, imported, {})
    tiles = pd.DataFrame(
        {"slide_id": ["a", "a"], "x": [0, 1], "y": [-1, -1], "label": ["MSS"] * 2}
    ).assign(image=["MSS/1.png", "MSS/2.png"])
    assert [item["image"][0] for item in items_of(tiles, tmp_path)] == [
        str(tmp_path / "images" / "MSS" / name) for name in ("1.png", "2.png")
    ]


def test_every_tile_is_read_from_its_place(tiles: pd.DataFrame, tmp_path: Path) -> None:
    assert greys(items_of(tiles, tmp_path)) == [10, 60, 110, 160, 210]
    shuffled = tiles.iloc[[4, 0, 2]].reset_index(drop=True)
    assert greys(items_of(shuffled, tmp_path)) == [210, 10, 110]


def test_an_index_of_an_earlier_version_is_completed_from_the_stores(
    tiles: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tiles.drop(columns=RANGES).iloc[::-1].reset_index(drop=True)
    assert greys(items_of(earlier, tmp_path)) == [210, 160, 110, 60, 10]
    told = " ".join(capsys.readouterr().err.split())
    assert "does not say where each tile lies; 2 stores are looked through" in told
    with pytest.raises(StageError) as caught:
        items_of(earlier.assign(x=earlier["x"] + 2), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'B.zip'}: has no tile at (3, 7). Delete the file and run 'medkd tile' again."
    )


def test_a_store_that_was_replaced_is_told(tiles: pd.DataFrame, tmp_path: Path) -> None:
    """One tile more at the front: all others lie elsewhere, though each is in the store."""
    items = items_of(tiles, tmp_path)
    with writing_store(tmp_path / "B.zip") as store:
        for x in (5, 0, 1):
            pixels = np.full((16, 16, 3), 99, np.uint8)
            store.add(StoredTile(x, 7, 1.0, 1.0), encode_tile(pixels, 95))
    assert greys(items[:3]) == [10, 60, 110]
    with pytest.raises(StageError) as caught:
        greys(items[4:])
    assert str(caught.value) == (
        f"{tmp_path / 'B.zip'}: is not the store that the index was written for: the tile at "
        "(1, 7) is elsewhere. Run 'medkd tile' again: it renews the index and cuts no finished "
        "slide again."
    )


def test_monai_datasets_take_them(tiles: pd.DataFrame, tmp_path: Path) -> None:
    items = items_of(tiles, tmp_path)
    datasets = (
        Dataset(items, tile_transforms()),
        CacheDataset(items, tile_transforms(), cache_num=2, progress=False),
        PersistentDataset(items, tile_transforms(), cache_dir=tmp_path / "cache"),
    )
    for dataset in datasets:
        assert dataset.data is items
        assert [round(float(item["image"].float().mean())) for item in dataset] == [
            10, 60, 110, 160, 210,
        ]  # fmt: skip
    parts = partition_dataset(items, num_partitions=2, shuffle=False)
    assert [greys(part) for part in parts] == [[10, 110, 210], [60, 160]]


def _greys_in_child(dataset, answer) -> None:
    answer.send([round(float(dataset[i]["image"].float().mean())) for i in range(len(dataset))])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_dataset_that_was_read_goes_to_other_processes(
    tiles: pd.DataFrame, tmp_path: Path, method: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    dataset = Dataset(items_of(tiles, tmp_path), tile_transforms())
    assert dataset[0]["label"] == 1
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_greys_in_child, args=(dataset, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == [10, 60, 110, 160, 210]
    process.join()


def test_a_million_items_are_sent_in_36_bytes_each() -> None:
    """Four int32 and two int64, 32 bytes; 500 names are nothing beside them."""
    count = 1_000_000
    slides = np.repeat([f"slide-{number:04d}" for number in range(500)], count // 500)
    tiles = pd.DataFrame({"slide_id": slides, "label": "MSS"})
    for name in ("x", "y", "offset_bytes", "length_bytes"):
        tiles[name] = np.arange(count)
    items = items_of(tiles, Path("tiles"))
    assert len(pickle.dumps(items)) < 36 * count
    assert items[999_999]["image"][1:] == (999_999,) * 4


def test_an_index_tells_where_each_jpeg_lies(tiles: pd.DataFrame, tmp_path: Path) -> None:
    """Of the entry: 30 bytes, then its name, then the JPEG."""
    for row in read_index(tmp_path).itertuples():
        content = (tmp_path / f"{row.slide_id}.zip").read_bytes()
        entry = content[row.offset_bytes :][: 30 + len("0_7.jpg") + row.length_bytes]
        assert entry[30:37] == f"{row.x}_7.jpg".encode()
        assert entry[37:39] == b"\xff\xd8"
        assert entry[-2:] == b"\xff\xd9"
