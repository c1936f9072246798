"""From a stored tile to a network's input."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.config import AugmentConfig
from medkd.datasets.colour_transforms import RandColourJitterd
from medkd.datasets.transforms import LoadStoredTiled, tile_transforms
from medkd.errors import StageError
from medkd.slides.store import StoredTile, TileStore, encode_tile, writing_store


def write_tile(path: Path, pixels: np.ndarray, x: int = 0, y: int = 0) -> Path:
    with writing_store(path) as store:
        store.add(StoredTile(x, y, 1.0, 1.0), encode_tile(pixels, 100))
    return path


def place_of(path: Path) -> tuple[str, int, int, int, int]:
    """The item's image of a store's only tile."""
    with TileStore(path) as store:
        row = store.table().iloc[0]
    return (str(path), *(int(row[name]) for name in ("x", "y", "offset_bytes", "length_bytes")))


def corners() -> np.ndarray:
    """16 x 16 pixels, each quadrant of its own grey: its eight orientations can be told apart."""
    quadrants = np.array([[30, 90], [150, 210]], np.uint8)
    return np.repeat(np.kron(quadrants, np.ones((8, 8), np.uint8))[..., None], 3, axis=2)


def test_a_tile_is_loaded_channels_first_and_red_first(tmp_path: Path) -> None:
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 0] = 255
    path = write_tile(tmp_path / "s.zip", red)
    image = LoadStoredTiled("image")({"image": place_of(path)})["image"]
    assert image.dtype == np.uint8
    assert image.shape == (3, 16, 24)
    np.testing.assert_allclose(image.mean((1, 2)), [255, 0, 0], atol=2)


def test_loading_leaves_the_item_and_its_other_keys_alone(tmp_path: Path) -> None:
    where = place_of(write_tile(tmp_path / "s.zip", corners()))
    item = {"image": where, "label": 1}
    loaded = LoadStoredTiled("image")(item)
    assert loaded["label"] == 1
    assert item == {"image": where, "label": 1}


def test_one_loader_reads_several_slides(tmp_path: Path) -> None:
    load = LoadStoredTiled("image")
    for level in (40, 200, 40):
        path = tmp_path / f"{level}.zip"
        write_tile(path, np.full((8, 8, 3), level, np.uint8), x=448, y=224)
        assert load({"image": place_of(path)})["image"].mean() == pytest.approx(level, abs=1)


def test_a_loader_that_has_read_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    item = {"image": place_of(write_tile(tmp_path / "s.zip", corners()))}
    load = LoadStoredTiled("image")
    here = load(item)["image"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(load))(item)["image"], here)


def test_a_tile_that_the_store_lacks_is_told(tmp_path: Path) -> None:
    path, _, _, *where = place_of(write_tile(tmp_path / "s.zip", corners()))
    with pytest.raises(StageError, match=r"the tile at \(7, 9\) is elsewhere"):
        LoadStoredTiled("image")({"image": (path, 7, 9, *where)})


def jittered(**options: float) -> np.ndarray:
    """Of a row of two pixels, 100 and 200, in three channels: 3 x 1 x 2."""
    image = np.tile(np.array([[100, 200]], np.uint8), (3, 1, 1))
    jitter = RandColourJitterd("image", **options)
    jitter.set_random_state(seed=4)
    return np.asarray(jitter({"image": image})["image"])


def test_scale_alone_multiplies_each_channel_by_its_own_factor() -> None:
    factors = jittered(scale=0.1, shift=0)[:, 0] / [100, 200]
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-6)
    assert len(set(factors[:, 0])) == 3


def test_shift_alone_adds_to_each_channel_its_own_number_of_levels() -> None:
    shifts = jittered(scale=0, shift=12)[:, 0] - [100, 200]
    np.testing.assert_allclose(shifts[:, 0], shifts[:, 1], atol=1e-4)
    assert len(set(shifts[:, 0])) == 3


def test_jitter_of_probability_zero_changes_nothing() -> None:
    assert jittered(prob=0.0)[0, 0].tolist() == [100, 200]


def test_jitter_writes_into_a_copy() -> None:
    image = np.full((3, 2, 2), 100, np.float32)
    RandColourJitterd("image")({"image": image})
    assert (image == 100).all()


def test_jitter_leaves_no_value_outside_a_byte() -> None:
    image = np.array([0, 255], np.uint8)[None, None].repeat(3, 0)
    jitter = RandColourJitterd("image", scale=0.5, shift=60)
    jitter.set_random_state(seed=0)
    values = np.concatenate([jitter({"image": image})["image"].ravel() for _ in range(50)])
    assert values.min() == 0
    assert values.max() == 255


def test_augmented_tiles_are_plain_float_tensors_between_0_and_1(tmp_path: Path) -> None:
    item = {"image": place_of(write_tile(tmp_path / "s.zip", corners()))}
    image = tile_transforms(AugmentConfig())(item)["image"]
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.shape == (3, 16, 16)
    assert 0 <= image.min() < image.max() <= 1


def test_the_eight_orientations_come_equally_often(tmp_path: Path) -> None:
    """800 draws of 1 in 8: 100 each, standard deviation 9.4."""
    item = {"image": place_of(write_tile(tmp_path / "s.zip", corners()))}
    transform = tile_transforms(AugmentConfig())
    transform.set_random_state(seed=0)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(800):
        image = transform(item)["image"][0].numpy()
        seen[tuple(np.argsort(image[2::11, 2::11].ravel()))] += 1
    square = np.array([[0, 1], [2, 3]])
    turned = [np.rot90(side, k) for side in (square, square.T) for k in range(4)]
    assert set(seen) == {tuple(np.argsort(view.ravel())) for view in turned}
    assert min(seen.values()) > 60
    assert max(seen.values()) < 140
