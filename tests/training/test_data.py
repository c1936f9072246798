"""What an epoch draws, and that randomness is a function of (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from medkd.datasets.patches import EpochSampler, PatchDataset, patch_items, seed_of
from medkd.datasets.transforms import RandColourJitterd, tile_transforms
from medkd.slides.store import TileStore
from tests.conftest import Cohort

SLIDES = ["a"] * 10 + ["b"] * 2 + ["c"] * 30
LABELS = [0] * 12 + [1] * 30


def sampler(**options: object) -> EpochSampler:
    settings = {"max_tiles_per_slide": None, "balance": "none", "seed": 5, **options}
    return EpochSampler(SLIDES, LABELS, **settings)


def test_all_tiles_once_without_balance() -> None:
    assert sorted(sampler()) == list(range(42))


def test_the_same_seed_and_epoch_draw_the_same() -> None:
    first, second = sampler(balance="class"), sampler(balance="class")
    assert list(first) == list(second)
    second.epoch = 1
    assert list(first) != list(second)
    assert list(first) != list(sampler(balance="class", seed=6))


def test_a_cap_on_tiles_of_a_slide() -> None:
    drawn = list(sampler(max_tiles_per_slide=4))
    counts = pd.Series([SLIDES[i] for i in drawn]).value_counts().to_dict()
    assert counts == {"a": 4, "b": 2, "c": 4}
    assert len(set(drawn)) == len(drawn)


def test_balanced_classes_are_drawn_equally_often() -> None:
    balanced = sampler(balance="class")
    drawn = np.array(list(balanced))
    labels = np.array(LABELS)[drawn]
    assert len(drawn) == len(balanced) == 42
    assert (labels == 0).sum() == (labels == 1).sum() == 21
    # The larger class loses tiles and repeats none; every tile of the smaller one is there.
    assert len(set(drawn[labels == 1])) == 21
    assert set(drawn[labels == 0]) == set(range(12))


def first_tiles(cohort: Cohort, count: int) -> pd.DataFrame:
    from medkd.training.data import load_tile_table

    return load_tile_table(cohort.config, cohort.rows).tiles.head(count)


def dataset(cohort: Cohort, *, augment: bool, cache_mb: float) -> PatchDataset:
    items = patch_items(
        first_tiles(cohort, 6), cohort.config.tiles_folder, cohort.config.data.classes
    )
    return PatchDataset(
        items, tile_transforms(augment=augment), cache_mb=cache_mb, tile_bytes=3 * 64**2, seed=1
    )


def test_tiles_arrive_as_they_lie_in_the_store(cohort: Cohort) -> None:
    row = first_tiles(cohort, 1).iloc[0]
    stored = TileStore(cohort.config.tiles_folder / f"{row.slide_id}.zip").read(row.x, row.y)
    item = dataset(cohort, augment=False, cache_mb=1)[0]
    assert item["image"].dtype == torch.float32
    assert type(item["image"]) is torch.Tensor
    expected = torch.from_numpy(stored).permute(2, 0, 1) / 255
    torch.testing.assert_close(item["image"], expected)
    assert item["label"] == cohort.config.data.classes.index(row.label)


def test_neither_cache_nor_order_changes_what_is_drawn(cohort: Cohort) -> None:
    cached = dataset(cohort, augment=True, cache_mb=10)
    uncached = dataset(cohort, augment=True, cache_mb=0)
    forwards = [cached[i]["image"] for i in range(6)]
    backwards = [uncached[i]["image"] for i in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert torch.equal(one, other)
    cached.epoch = 1
    assert not torch.equal(cached[0]["image"], forwards[0])


def test_colour_jitter_stays_in_its_range() -> None:
    image = np.full((3, 4, 4), 100, np.uint8)
    jitter = RandColourJitterd("image", scale=0.1, shift=12)
    jitter.set_random_state(seed=0)
    values = np.array([jitter({"image": image})["image"][:, 0, 0] for _ in range(500)])
    assert values.min() >= 78
    assert values.max() <= 122
    # Uniform factor and shift: the standard deviation is sqrt((20^2 + 24^2) / 12).
    assert values.std() == pytest.approx(np.sqrt((20**2 + 24**2) / 12), rel=0.05)
    assert jitter({"image": np.full((3, 4, 4), 255, np.uint8)})["image"].max() <= 255


def test_seeds_differ() -> None:
    seeds = {seed_of(0, epoch, index) for epoch in range(20) for index in range(500)}
    assert len(seeds) > 9_990
