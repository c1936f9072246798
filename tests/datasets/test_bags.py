"""Bags of tiles: what they hold, what is drawn of them, and how they become batches."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset, partition_dataset
from monai.transforms import Compose, ToTensord
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from medkd.datasets.bags import (
    BagItems,
    LoadBagd,
    RandTilesd,
    bag_dataset,
    bag_items,
    bag_transforms,
    collate_bags,
)
from medkd.datasets.embedding_bags import EmbeddingBags
from medkd.datasets.patches import EpochSampler
from medkd.datasets.stain import PUBLISHED_MACENKO, normalise
from medkd.datasets.transforms import LoadStoredTiled
from medkd.errors import ConfigError, MedkdError, StageError, TableError
from medkd.slides.imported_tiles import ImportedTiles, write_import_record
from medkd.slides.store import StoredTile, encode_tile, write_index, writing_store

LEVELS = {"A": (10, 60, 110), "B": (160, 210), "C": (30,)}
PATIENTS = {"A": "p1", "B": "p2", "C": "p1"}
LABELS = {"A": "MSI", "B": "MSS", "C": "MSI"}
MSS, MSI = 0, 1


@pytest.fixture
def tiles(tmp_path: Path) -> pd.DataFrame:
    """Three slides of two patients, their tiles mixed; each tile has a grey of its own."""
    for slide, levels in LEVELS.items():
        with writing_store(tmp_path / f"{slide}.zip") as store:
            for number, level in enumerate(levels):
                pixels = np.full((16, 16, 3), level, np.uint8)
                store.add(StoredTile(16 * number, level, 1.0, 1.0), encode_tile(pixels, 95))
    records = [
        {
            "slide_id": slide,
            "patient_id": PATIENTS[slide],
            "parameters": {"mpp": 0.5, "size_px": 16},
        }
        for slide in LEVELS
    ]
    index = write_index(tmp_path, records)
    index["label"] = index["slide_id"].map(LABELS)
    return index.iloc[[3, 0, 5, 1, 4, 2]]


def bags_of(tiles: pd.DataFrame, folder: Path, **options) -> BagItems:
    return bag_items(tiles, folder, ("MSS", "MSI"), **options)


def greys(images) -> list[int]:
    """The level of each tile of a bag."""
    return torch.as_tensor(images).float().mean((1, 2, 3)).round().int().tolist()


def test_a_bag_is_a_slide_with_its_tiles_in_their_order(
    tiles: pd.DataFrame, tmp_path: Path
) -> None:
    items = bags_of(tiles, tmp_path)
    assert len(items) == 3
    assert [(item["bag_id"], item["label"]) for item in items] == [
        ("B", MSS),
        ("A", MSI),
        ("C", MSI),
    ]
    second = items[1]
    assert second["places"].tolist() == [[0, 10], [16, 60], [32, 110]]
    assert second["places"].dtype == np.int32
    assert [tile[:3] for tile in second["image"]] == [
        (str(tmp_path / "A.zip"), x, y) for x, y in ((0, 10), (16, 60), (32, 110))
    ]
    assert items[-1]["bag_id"] == "C"
    assert [item["bag_id"] for item in items[::2]] == ["B", "C"]
    with pytest.raises(IndexError):
        items[3]


def test_a_bag_of_a_patient_holds_the_tiles_of_all_slides(
    tiles: pd.DataFrame, tmp_path: Path
) -> None:
    items = bags_of(tiles, tmp_path, by="patient_id")
    load = LoadBagd("image")
    assert [(i["bag_id"], i["label"], greys(load(i)["image"])) for i in items] == [
        ("p2", MSS, [160, 210]),
        ("p1", MSI, [10, 30, 60, 110]),
    ]


def test_bags_can_be_named(tiles: pd.DataFrame, tmp_path: Path) -> None:
    items = bags_of(tiles, tmp_path, bags=["C", "B"])
    load = LoadBagd("image")
    assert [(i["bag_id"], greys(load(i)["image"])) for i in items] == [
        ("C", [30]),
        ("B", [160, 210]),
    ]


def test_a_bag_is_bytes_channels_first(tiles: pd.DataFrame, tmp_path: Path) -> None:
    image = LoadBagd("image")(bags_of(tiles, tmp_path)[1])["image"]
    assert (image.shape, image.dtype) == ((3, 3, 16, 16), np.uint8)


def test_imported_tiles_come_in_bags_too(tmp_path: Path) -> None:
    write_import_record(tmp_path, ImportedTiles("x", tmp_path / "i", 8, None, has_places=False), {})
    (tmp_path / "i").mkdir()
    for level in (20, 90, 200):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "i" / f"{level}.png")
    tiles = pd.DataFrame({"slide_id": ["a", "b", "a"], "x": [0, 0, 1], "y": -1, "label": "MSS"})
    tiles["image"] = ["20.png", "90.png", "200.png"]
    dataset = bag_dataset(bags_of(tiles, tmp_path), seed=0)
    assert [greys(bag["image"]) for bag in dataset] == [[20, 200], [90]]


def test_stains_of_each_tile_are_normalised_by_itself(real_data: Path, tmp_path: Path) -> None:
    with writing_store(tmp_path / "T.zip") as store:
        for x, path in enumerate(sorted((real_data / "tcga_crc_tiles").rglob("*.jpg"))[:2]):
            pixels = np.asarray(Image.open(path).convert("RGB"))[:128, :128]
            store.add(StoredTile(x, 0, 1.0, 1.0), encode_tile(pixels, 95))
    parameters = {"mpp": 0.5, "size_px": 128}
    record = {"slide_id": "T", "patient_id": "T", "parameters": parameters}
    tiles = write_index(tmp_path, [record]).assign(label="MSS")
    item = bags_of(tiles, tmp_path)[0]
    found = bag_transforms(stain=PUBLISHED_MACENKO)(item)["image"].numpy()
    one_by_one = [LoadStoredTiled("image")({"image": place})["image"] for place in item["image"]]
    assert found.dtype == np.uint8
    for bag_tile, tile in zip(found, one_by_one, strict=True):
        np.testing.assert_array_equal(bag_tile, normalise(tile, PUBLISHED_MACENKO))
        assert (bag_tile != tile).mean() > 0.5


def test_monai_datasets_take_them(tiles: pd.DataFrame, tmp_path: Path) -> None:
    items = bags_of(tiles, tmp_path)
    datasets = [
        Dataset(items, bag_transforms()),
        CacheDataset(items, bag_transforms(), cache_num=2, progress=False),
        *(PersistentDataset(items, bag_transforms(), cache_dir=tmp_path / "kept") for _ in "12"),
    ]
    for dataset in datasets:
        assert [(bag["bag_id"], greys(bag["image"])) for bag in dataset] == [
            ("B", [160, 210]),
            ("A", [10, 60, 110]),
            ("C", [30]),
        ]
        batch = collate_bags([dataset[0], dataset[2]])
        assert sorted(batch) == ["bag_id", "image", "label", "mask", "places"]
    assert len(list((tmp_path / "kept").iterdir())) == 3
    parts = partition_dataset(items, num_partitions=2, shuffle=False)
    assert [[item["bag_id"] for item in part] for part in parts] == [["B", "C"], ["A"]]


def test_what_is_drawn_of_a_bag_depends_on_seed_epoch_and_index_alone(
    tiles: pd.DataFrame, tmp_path: Path
) -> None:
    items = bags_of(tiles, tmp_path)
    dataset = bag_dataset(items, seed=7, max_tiles=2)
    draws = {(epoch, i): greys(dataset[epoch, i]["image"]) for epoch in range(20) for i in range(3)}
    again = bag_dataset(items, seed=7, max_tiles=2)
    for draw in reversed(draws):
        bag = again[draw]
        assert greys(bag["image"]) == draws[draw]
        # y of a place is the level of its tile.
        assert bag["places"][:, 1].tolist() == draws[draw]
    assert draws[0, 1] == greys(again[1]["image"])
    of_a = {tuple(draws[epoch, 1]) for epoch in range(20)}
    assert of_a == {(10, 60), (10, 110), (60, 110)}
    assert all(draws[epoch, 0] == [160, 210] for epoch in range(20))
    assert all(draws[epoch, 2] == [30] for epoch in range(20))
    other = bag_dataset(items, seed=8, max_tiles=2)
    assert any(greys(other[epoch, 1]["image"]) != draws[epoch, 1] for epoch in range(20))


def test_each_tile_is_drawn_as_often_as_any_other() -> None:
    """2 of 5 in 1,000 draws: 400 each, standard deviation 15.5."""
    draw = RandTilesd("image", 2)
    draw.set_random_state(seed=0)
    drawn = [draw({"image": np.arange(5)})["image"] for _ in range(1000)]
    assert all(len(set(two)) == 2 for two in drawn)
    counts = np.bincount(np.concatenate(drawn))
    assert (abs(counts - 400) < 62).all()


def test_whole_bags_can_be_kept_and_drawn_from(tiles: pd.DataFrame, tmp_path: Path) -> None:
    keys = ("image", "places")
    chain = Compose([LoadBagd("image"), ToTensord(keys, track_meta=False), RandTilesd(keys, 1)])
    dataset = CacheDataset(bags_of(tiles, tmp_path), chain, progress=False)
    for slide in LEVELS:
        (tmp_path / f"{slide}.zip").unlink()
    seen = [greys(dataset[1]["image"]) for _ in range(30)]
    assert {tuple(levels) for levels in seen} == {(10,), (60,), (110,)}


def test_an_epoch_draws_each_bag_with_its_own_epoch(tiles: pd.DataFrame, tmp_path: Path) -> None:
    items = bags_of(tiles, tmp_path)
    sampler = EpochSampler(
        items.bag_ids, items.labels, max_tiles_per_slide=None, balanced=False, seed=3
    )
    sampler.epoch = 5
    assert sorted(sampler) == [(5, 0), (5, 1), (5, 2)]


def test_bags_are_padded_to_the_largest_with_a_mask(tiles: pd.DataFrame, tmp_path: Path) -> None:
    dataset = bag_dataset(bags_of(tiles, tmp_path), seed=0)
    batch = collate_bags([dataset[i] for i in range(3)])
    assert batch["image"].shape == (3, 3, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert [greys(bag) for bag in batch["image"]] == [[160, 210, 0], [10, 60, 110], [30, 0, 0]]
    assert batch["mask"].tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert batch["places"][0].tolist() == [[0, 160], [16, 210], [0, 0]]
    assert batch["label"].tolist() == [MSS, MSI, MSI]
    assert batch["bag_id"] == ["B", "A", "C"]


def test_the_memory_of_the_largest_bag(tiles: pd.DataFrame, tmp_path: Path) -> None:
    """3 tiles of 3 x 1000 x 1000 bytes are 9 MB."""
    items = bags_of(tiles, tmp_path)
    assert items.largest_mb(1000) == pytest.approx(9)
    assert items.largest_mb(1000, max_tiles=2) == pytest.approx(6)
    assert items.largest_mb(1000, max_tiles=50) == pytest.approx(9)


def embedding_bags(**options) -> EmbeddingBags:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    return EmbeddingBags(rows, [0, 2, 5, 6], [0, 1, 1], bag_ids=["B", "A", "C"], **options)


def _as_it_is(items: list) -> list:
    return items


@pytest.mark.parametrize(
    ("method", "workers"),
    [("fork", 0), ("fork", 2), pytest.param("spawn", 2, marks=pytest.mark.slow)],
)
def test_processes_of_any_kind_bring_the_same_bags(
    tiles: pd.DataFrame, tmp_path: Path, method: str, workers: int
) -> None:
    """Stores are open here and the embeddings are mapped before the processes begin."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    of_tiles = bag_dataset(bags_of(tiles, tmp_path), seed=1, max_tiles=2)
    of_embeddings = EmbeddingBags(mapped, [0, 2, 5, 6], [0, 1, 1], max_tiles=2, seed=1)
    both = ConcatDataset([of_tiles, of_embeddings])
    here = [both[i] for i in range(6)]
    loader = DataLoader(
        both,
        batch_size=1,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        collate_fn=_as_it_is,
    )
    there = [item for batch in loader for item in batch]
    assert len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert list(one) == list(other)
        for key, value in one.items():
            same = torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
            assert same, key


def test_a_dataset_that_was_read_can_be_sent(tiles: pd.DataFrame, tmp_path: Path) -> None:
    dataset = bag_dataset(bags_of(tiles, tmp_path), seed=1)
    assert greys(dataset[1]["image"]) == [10, 60, 110]
    assert greys(pickle.loads(pickle.dumps(dataset))[1]["image"]) == [10, 60, 110]


def test_a_million_tiles_in_bags_are_sent_in_36_bytes_each() -> None:
    """Four int32 and two int64, 32 bytes; 500 bags are nothing beside them."""
    count = 1_000_000
    slides = np.repeat([f"slide-{number:04d}" for number in range(500)], count // 500)
    tiles = pd.DataFrame({"slide_id": slides, "label": "MSS"})
    for name in ("x", "y", "offset_bytes", "length_bytes"):
        tiles[name] = np.arange(count)
    shuffled = tiles.sample(frac=1, random_state=0)
    items = bags_of(shuffled, Path("tiles"))
    assert len(items) == 500
    assert len(pickle.dumps(items)) < 36 * count
    last = items[[*items.bag_ids].index("slide-0499")]
    assert sorted(last["places"][:, 0].tolist()) == list(range(998_000, 1_000_000))


def test_bags_that_cannot_be_made_are_told(tiles: pd.DataFrame, tmp_path: Path) -> None:
    def told(kind: type[MedkdError], table: pd.DataFrame, **options) -> str:
        with pytest.raises(kind) as caught:
            bags_of(table, tmp_path, **options)
        return str(caught.value)

    assert told(ConfigError, tiles, by="slide") == (
        "by: tiles are put into bags by 'slide'. Use slide_id or patient_id."
    )
    two = tiles.assign(label=tiles["label"].where(tiles["y"] != 60, "MSS"))
    assert told(TableError, two) == (
        f"{tmp_path}: the tiles of slide_id 'A' have the labels MSI and MSS. A bag has one label: "
        "mend the table of slides, or leave this bag out."
    )
    assert told(StageError, tiles, bags=["A", "D", "E"]) == (
        f"{tmp_path}: 2 bags have no tile (the first is slide_id 'D'). Look at tiles/report.html "
        "for slides that failed, or leave these bags out."
    )
    assert told(StageError, tiles.iloc[:0]) == (
        f"{tmp_path}: there is no tile, and so no bag. Look at tiles/report.html for slides that "
        "failed, or choose other rows."
    )
    nobody = tiles.assign(patient_id=tiles["patient_id"].where(tiles["slide_id"] != "C"))
    assert told(StageError, nobody, by="patient_id") == (
        f"{tmp_path}: 1 tiles have no patient_id, and so are of no bag. Drop these rows, or fill "
        "in the column."
    )


def test_tiles_of_two_sizes_in_a_bag_are_told(tiles: pd.DataFrame, tmp_path: Path) -> None:
    with writing_store(tmp_path / "D.zip") as store:
        for x, width in enumerate((16, 24)):
            pixels = np.zeros((16, width, 3), np.uint8)
            store.add(StoredTile(x, 0, 1.0, 1.0), encode_tile(pixels, 95))
    record = {"slide_id": "D", "patient_id": "D", "parameters": {"mpp": 0.5, "size_px": 16}}
    items = bags_of(write_index(tmp_path, [record]).assign(label="MSS"), tmp_path)
    with pytest.raises(StageError) as caught:
        bag_dataset(items, seed=0)[0]
    assert str(caught.value) == (
        f"{tmp_path / 'D.zip'}: a tile is 24 x 16 px, and the first of its bag is 16 x 16 px. Put "
        "tiles of one size into a bag: tile or import them again."
    )


def test_wrong_calls_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        RandTilesd("image", 0)
    assert str(caught.value) == (
        "max_tiles: at most 0 tiles of a bag are to be drawn. Give 1 or more, or None for all."
    )
    with pytest.raises(StageError) as empty:
        LoadBagd("image")({"image": []})
    assert str(empty.value) == ("LoadBagd: a bag has no tile. Leave empty bags out of the items.")
    bags = [{"embedding": torch.zeros(2, width), "label": 0} for width in (8, 9)]
    with pytest.raises(StageError) as sizes:
        collate_bags(bags)
    assert str(sizes.value) == (
        "embedding: bags of a batch have elements of 8 and 9. Put bags of one tile size and one "
        "encoder into a batch."
    )
