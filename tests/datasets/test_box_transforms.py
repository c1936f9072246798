"""Boxes that move with their images: by hand, in drawn images, and in real ones by their masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.apps.detection.transforms.dictionary import (
    FlipBoxd,
    RandFlipBoxd,
    RandRotateBox90d,
    RotateBox90d,
)
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import Compose
from PIL import Image
from torch.utils.data import DataLoader

from medkd.config import AugmentConfig
from medkd.datasets.box_transforms import (
    LoadBoxedImaged,
    ResizeBoxedImaged,
    box_dataset,
    box_transforms,
    with_boxes,
)
from medkd.datasets.boxes import BoxItems, box_items, collate_boxes
from medkd.datasets.colour_transforms import (
    RandColourJitterd,
    RandCutoutd,
    RandGaussianBlurd,
    RandPhotometricJitterd,
    RandStainJitterd,
)
from medkd.errors import ConfigError, StageError
from medkd.importers.box_table import SCHEMA, BoxTable, read_boxes
from medkd.importers.kvasir import import_kvasir

WIDTH, HEIGHT = 100, 60
BOX = (10, 5, 40, 30)
KEYS = ("image", "boxes", "image")
GEOMETRY = AugmentConfig(flip_p=0.5, turn_p=0.75, colour_p=0.0)


def drawn(*boxes: tuple[int, ...], width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Black, each box white."""
    image = np.zeros((3, height, width), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    return image


def item_of(*boxes: tuple[int, ...], **size: int) -> dict:
    return {
        "image": drawn(*boxes, **size),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.zeros(len(boxes), np.int64),
    }


def white(image) -> list[int]:
    """The box around what is white: x1, y1, x2, y2."""
    rows, columns = np.nonzero(np.asarray(image)[0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def files_of(folder: Path, boxes: dict[str, list], **size: int) -> BoxItems:
    """Drawn images in files, and their items."""
    rows = []
    for name, of_image in boxes.items():
        pixels = drawn(*of_image, **size)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name)
        row = dict.fromkeys(SCHEMA.names) | {"image": name, "boxes": [list(b) for b in of_image]}
        row |= {"width_px": pixels.shape[2], "height_px": pixels.shape[1]}
        rows.append(row | {"labels": ["polyp"] * len(of_image)})
    table = BoxTable(pd.DataFrame(rows, columns=SCHEMA.names), folder, ("polyp",))
    return box_items(table)


@pytest.mark.parametrize(
    ("transform", "box"),
    [
        # Of 100 x 60 px: left-right x to 100 - x, up-down y to 60 - y.
        (FlipBoxd(*KEYS, spatial_axis=1), [60, 5, 90, 30]),
        (FlipBoxd(*KEYS, spatial_axis=0), [10, 30, 40, 55]),
        # Against the clock: (x, y) to (y, 100 - x); with it: (60 - y, x).
        (RotateBox90d(*KEYS, k=1), [5, 60, 30, 90]),
        (RotateBox90d(*KEYS, k=2), [60, 30, 90, 55]),
        (RotateBox90d(*KEYS, k=3), [30, 10, 55, 40]),
    ],
)
def test_mirrors_and_turns_move_a_box_where_its_pixels_go(transform, box: list[int]) -> None:
    moved = Compose(with_boxes([transform]))(item_of(BOX))
    assert moved["boxes"].tolist() == [box]
    assert white(moved["image"]) == box


def test_mirrors_and_turns_take_images_without_boxes() -> None:
    steps = [FlipBoxd(*KEYS, spatial_axis=1), RotateBox90d(*KEYS, k=1)]
    moved = Compose(with_boxes(steps))(item_of())
    assert tuple(moved["boxes"].shape) == (0, 4)
    assert tuple(moved["image"].shape) == (3, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("keep_aspect", "size_px", "box"),
    [
        # 100 x 60 to 50 x 50: halves of x, 5/6 of y; with the aspect halves of both.
        (False, 50, [5, 25 / 6, 20, 25]),
        (True, 50, [5, 2.5, 20, 15]),
        (False, 300, [30, 25, 120, 150]),
        (True, 300, [30, 15, 120, 90]),
    ],
)
def test_a_resized_image_keeps_its_box(keep_aspect: bool, size_px: int, box: list[float]) -> None:
    resize = ResizeBoxedImaged("image", size_px, keep_aspect=keep_aspect)
    resized = resize(item_of(BOX))
    assert resized["image"].shape == (3, size_px, size_px)
    assert resized["image"].dtype == np.uint8
    np.testing.assert_allclose(resized["boxes"], [box], rtol=1e-6)
    np.testing.assert_allclose(white(resized["image"]), box, atol=0.51)


def test_what_is_beside_a_kept_aspect_is_black_and_below_or_right() -> None:
    resize = ResizeBoxedImaged("image", 50)
    wide = resize(item_of((0, 0, 100, 60)))
    assert wide["boxes"].tolist() == [[0, 0, 50, 30]]
    assert (wide["image"][:, :30] == 255).all()
    assert (wide["image"][:, 30:] == 0).all()
    high = resize(item_of((0, 0, 60, 100), width=60, height=100))
    assert high["boxes"].tolist() == [[0, 0, 30, 50]]
    assert (high["image"][:, :, :30] == 255).all()
    assert (high["image"][:, :, 30:] == 0).all()


def test_a_smaller_image_is_a_mean_and_does_not_alias() -> None:
    """Stripes one pixel wide: every tenth pixel alone would be all black or all white."""
    stripes = np.tile(np.array([0, 254], np.uint8), (3, 200, 100))
    item = {"image": stripes, "boxes": np.empty((0, 4), np.float32)}
    small = ResizeBoxedImaged("image", 20)(item)["image"]
    assert (abs(small[:, :, 1:-1].astype(int) - 127) <= 1).all()
    # At the rim half of the weights are missing.
    assert (abs(small.astype(int) - 127) <= 6).all()


def test_a_box_that_fills_the_image_stays_inside_whatever_the_scale() -> None:
    for width, height, size_px in ((622, 529, 256), (1920, 1072, 640), (333, 777, 419)):
        item = item_of((0, 0, width, height), width=width, height=height)
        for keep_aspect in (True, False):
            boxes = ResizeBoxedImaged("image", size_px, keep_aspect=keep_aspect)(item)["boxes"]
            assert boxes.max() <= size_px


def test_an_image_is_loaded_with_its_boxes_cut_to_it(tmp_path: Path) -> None:
    items = files_of(tmp_path, {"a.png": [BOX]})
    loaded = LoadBoxedImaged()(items[0])
    np.testing.assert_array_equal(loaded["image"], drawn(BOX))
    assert loaded["image"].dtype == np.uint8
    own = {"image": str(tmp_path / "a.png"), "boxes": [[-5, 5, 40, 80]]}
    assert LoadBoxedImaged()(own)["boxes"].tolist() == [[0, 5, 40, 60]]


def test_images_that_do_not_fit_their_boxes_are_told(tmp_path: Path) -> None:
    items = files_of(tmp_path, {"a.png": [BOX], "b.png": [], "c.png": []})
    load, path = LoadBoxedImaged(), tmp_path / "a.png"
    with pytest.raises(StageError) as outside:
        load({"image": str(path), "boxes": [[100, 5, 120, 30]]})
    assert str(outside.value) == (
        f"{path}: box 1 of 1, (100, 5, 120, 30), lies outside the image of 100 x 60 px. Mend it "
        "where it was drawn and import the data set again, or drop the image."
    )
    Image.new("RGB", (50, 30)).save(path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").write_bytes(b"none")
    with pytest.raises(StageError) as other:
        load(items[0])
    assert str(other.value) == (
        f"{path}: is 50 x 30 px, and its boxes speak of 100 x 60 px. Import the data set again."
    )
    dataset = box_dataset(items, size_px=32, seed=0)
    remedy = (
        "If the images were moved, import them again from where they are; 'medkd import' with "
        "--decode leaves out what cannot be decoded."
    )
    with pytest.raises(StageError) as gone:
        dataset[1]
    assert str(gone.value) == f"{tmp_path / 'b.png'}: no such image. {remedy}"
    with pytest.raises(StageError, match="cannot be decoded") as damaged:
        dataset[2]
    assert damaged.value.remedy == remedy


def test_settings_that_boxes_cannot_follow_are_told() -> None:
    with pytest.raises(ConfigError) as affine:
        box_transforms(64, augment=AugmentConfig(affine_p=0.5))
    assert str(affine.value) == (
        "affine_p: an affine transform would leave the boxes behind. Set it to 0; flip_p and "
        "turn_p move boxes, too."
    )
    with pytest.raises(ConfigError) as size:
        box_transforms(0)
    assert str(size.value) == "size_px: images are to be resized to 0 px. Give 1 or more."


def test_without_augmentation_tensors_are_bytes(tmp_path: Path) -> None:
    items = files_of(tmp_path, {"a.png": [BOX], "b.png": []})
    for item, count in zip(Dataset(items, box_transforms(64)), (1, 0), strict=True):
        assert [type(item[key]) for key in ("image", "boxes", "labels")] == [torch.Tensor] * 3
        assert (item["image"].dtype, item["boxes"].dtype) == (torch.uint8, torch.float32)
        assert (tuple(item["boxes"].shape), tuple(item["labels"].shape)) == ((count, 4), (count,))
        assert item["labels"].dtype == torch.int64


def test_all_orientations_come_and_each_box_stays_over_its_rectangle(tmp_path: Path) -> None:
    """Half of the draws mirror, and each of four turns is as likely as another: 1 in 8 each."""
    items = files_of(tmp_path, {"a.png": [(8, 4, 40, 20)]}, width=64, height=64)
    dataset = box_dataset(items, size_px=64, seed=0, augment=GEOMETRY, cache_mb=1)
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(400):
        item = dataset[epoch, 0]
        assert item["boxes"].tolist() == [white(item["image"] * 255)]
        box = tuple(item["boxes"][0].int().tolist())
        seen[box] = seen.get(box, 0) + 1
    # x or y from 8 to 40 or from 24 to 56, the other from 4 to 20 or from 44 to 60.
    long, short = ((8, 40), (24, 56)), ((4, 20), (44, 60))
    wanted = {(a, c, b, d) for a, b in long for c, d in short}
    wanted |= {(c, a, d, b) for a, b in long for c, d in short}
    assert set(seen) == wanted
    # 50 each, standard deviation 6.6.
    assert min(seen.values()) > 20
    assert max(seen.values()) < 80


def test_colours_change_and_boxes_do_not() -> None:
    colours = (
        RandColourJitterd("image"),
        RandPhotometricJitterd("image"),
        RandStainJitterd("image"),
        RandGaussianBlurd("image", prob=1.0),
        RandCutoutd("image", prob=1.0, side_px=(2, 4), fill=100),
    )
    flip = RandFlipBoxd(*KEYS, prob=1.0, spatial_axis=1)
    for colour in colours:
        chain = Compose([*with_boxes([flip]), colour]).set_random_state(seed=0)
        moved = chain(item_of(BOX))
        image = np.asarray(moved["image"])
        assert image.dtype == np.float32
        assert (image != drawn((60, 5, 90, 30))).any()
        assert moved["boxes"].tolist() == [[60, 5, 90, 30]]
        # A cover of 4 px cannot move the rim of 30 x 25 px that far.
        np.testing.assert_allclose(white(image), [60, 5, 90, 30], atol=1)


def test_an_item_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    items = files_of(tmp_path, {"a.png": [BOX], "b.png": [(1, 2, 33, 44), (50, 20, 70, 50)]})
    settings = AugmentConfig(photometric_p=0.5)
    options = {"size_px": 48, "seed": 5, "augment": settings}
    kept = box_dataset(items, **options, cache_mb=1)
    read = box_dataset(items, **options)
    draws = {(epoch, i): kept[epoch, i] for epoch in range(6) for i in range(2)}
    for draw in reversed(draws):
        again, one = read[draw], draws[draw]
        assert torch.equal(again["image"], one["image"])
        assert torch.equal(again["boxes"], one["boxes"])
        assert list(again) == ["image", "boxes", "labels", "name", "size_px"]
    assert any(not torch.equal(draws[0, 1]["boxes"], draws[e, 1]["boxes"]) for e in range(1, 6))


def test_monai_datasets_take_them(tmp_path: Path) -> None:
    items = files_of(tmp_path, {"a.png": [BOX], "b.png": []})
    random = with_boxes([RandFlipBoxd(*KEYS, prob=0.5, spatial_axis=1)])
    chain = Compose([LoadBoxedImaged(), ResizeBoxedImaged("image", 50), *random])
    for dataset in (
        Dataset(items, chain),
        CacheDataset(items, chain, progress=False),
        *(PersistentDataset(items, chain, cache_dir=tmp_path / "kept") for _ in "12"),
    ):
        for _ in range(4):
            batch = collate_boxes([dataset[0], dataset[1]])
            assert batch["image"].shape == (2, 3, 50, 50)
            assert [len(boxes) for boxes in batch["boxes"]] == [1, 0]
            x1, y1, x2, y2 = batch["boxes"][0][0].tolist()
            assert (x1, y1, x2, y2) in ((5, 2.5, 20, 15), (30, 2.5, 45, 15))
            assert white(batch["image"][0])[0] == x1


@pytest.fixture(scope="module")
def kvasir(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> BoxTable:
    out = tmp_path_factory.mktemp("kvasir")
    negatives = real_data / "colonoscopy_no_polyp"
    import_kvasir(real_data / "kvasir_seg", out, negatives=negatives)
    return read_boxes(out / "boxes.parquet")


def test_real_polyps_stay_under_their_boxes_by_their_masks(kvasir: BoxTable) -> None:
    """The masks are turned as images; the import says how far a mask may be from its box."""
    alone = kvasir.images["boxes"].map(len) == 1
    images = kvasir.images[alone].iloc[::30]
    masks = replace(kvasir, images=images.assign(image=images["mask"]))
    dataset = box_dataset(box_items(masks), size_px=384, seed=2, augment=GEOMETRY)
    off = []
    for index in range(len(dataset)):
        for epoch in range(3):
            item = dataset[epoch, index]
            assert tuple(item["image"].shape) == (3, 384, 384)
            assert item["boxes"].min() >= 0
            assert item["boxes"].max() <= 384
            off.append(abs(np.array(white(item["image"] * 255)) - item["boxes"].numpy()).max())
    # 256 px became 384: half of the boxes within 0.9 px then, 95% within 1.4.
    assert len(off) > 50
    assert np.median(off) < 0.9 * 1.5 + 0.5
    assert np.percentile(off, 90) < 1.4 * 1.5 + 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_real_images_come_in_batches_whoever_loads_them(kvasir: BoxTable, workers: int) -> None:
    items = box_items(replace(kvasir, images=kvasir.images.iloc[[0, 100, 200, -1]]))
    dataset = box_dataset(items, size_px=128, seed=3, augment=AugmentConfig())
    batches = list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate_boxes))
    assert [tuple(batch["image"].shape) for batch in batches] == [(2, 3, 128, 128)] * 2
    assert batches[1]["boxes"][1].shape == (0, 4)
    for number in range(4):
        batch, place = batches[number // 2], number % 2
        assert torch.equal(batch["image"][place], dataset[number]["image"])
        assert torch.equal(batch["boxes"][place], dataset[number]["boxes"])
        assert batch["size_px"][place].tolist() == [256, 256]


def test_every_real_image_has_its_boxes(kvasir: BoxTable) -> None:
    items = box_items(kvasir)
    assert len(items) == 898 + 50
    assert sum(len(item["boxes"]) == 0 for item in items) == 50
    assert items.classes == ("polyp",)


def test_random_turns_leave_images_alone_that_they_do_not_turn() -> None:
    never = RandRotateBox90d(*KEYS, prob=0.0)
    kept = Compose(with_boxes([never]))(item_of(BOX))
    assert kept["boxes"].tolist() == [list(BOX)]
    assert white(kept["image"]) == list(BOX)
