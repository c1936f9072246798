"""What an epoch draws, and that randomness is a function of (seed, epoch, index)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from medkd.config import AugmentConfig
from medkd.datasets.colour_transforms import RandColourJitterd
from medkd.datasets.patches import EpochSampler, PatchDataset, patch_items, seed_of
from medkd.datasets.tables import read_slides
from medkd.datasets.transforms import tile_transforms
from medkd.errors import StageError, TableError
from medkd.slides.store import TileStore
from medkd.training.data import epoch_batches, load_tile_table, training_loader
from tests.conftest import Cohort

SLIDES = ["a"] * 10 + ["b"] * 2 + ["c"] * 30
LABELS = [0] * 12 + [1] * 30


def sampler(**options: object) -> EpochSampler:
    settings = {"max_tiles_per_slide": None, "balanced": False, "seed": 5, **options}
    return EpochSampler(SLIDES, LABELS, **settings)


def drawn(of: EpochSampler) -> list[int]:
    """The tiles of its epoch, without the epoch's number."""
    assert {epoch for epoch, _ in of} == {of.epoch}
    return [index for _, index in of]


def test_all_tiles_once_without_balance() -> None:
    assert sorted(drawn(sampler())) == list(range(42))


@pytest.mark.parametrize("groups", [None, SLIDES])
def test_the_same_seed_and_epoch_draw_the_same(groups: list[str] | None) -> None:
    first, second = (sampler(balanced=True, groups=groups) for _ in range(2))
    assert list(first) == list(second)
    second.epoch = 1
    assert drawn(first) != drawn(second)
    assert list(first) != list(sampler(balanced=True, groups=groups, seed=6))


@pytest.mark.parametrize("groups", [None, SLIDES])
def test_what_was_drawn_before_is_skipped(groups: list[str] | None) -> None:
    one = sampler(balanced=True, groups=groups)
    whole = list(one)
    one.skip = 16
    assert list(one) == whole[16:]
    assert len(one) == len(whole) - 16 == 26


def test_a_cap_on_tiles_of_a_slide() -> None:
    capped = sampler(max_tiles_per_slide=4)
    tiles = drawn(capped)
    assert Counter(SLIDES[i] for i in tiles) == {"a": 4, "b": 2, "c": 4}
    assert len(set(tiles)) == len(tiles) == len(capped)


def test_balanced_classes_are_drawn_equally_often() -> None:
    balanced = sampler(balanced=True)
    tiles = np.array(drawn(balanced))
    labels = np.array(LABELS)[tiles]
    assert len(tiles) == len(balanced) == 42
    assert (labels == 0).sum() == (labels == 1).sum() == 21
    # The larger class loses tiles and repeats none; every tile of the smaller one is there.
    assert len(set(tiles[labels == 1])) == 21
    assert set(tiles[labels == 0]) == set(range(12))


def test_groups_are_drawn_equally_often_within_their_class() -> None:
    """Class 0 has patients p (1 tile), q (3), r (8); class 1 has s (20) and t (4): 36 tiles.

    Each class gets 18: 6 for each patient of class 0, 9 for each of class 1.
    """
    patients = list("p" + "qqq" + "r" * 8 + "s" * 20 + "tttt")
    labels = [0] * 12 + [1] * 24
    of = EpochSampler(patients, labels, patients, max_tiles_per_slide=None, balanced=True, seed=0)
    for epoch in range(3):
        of.epoch = epoch
        tiles = drawn(of)
        assert len(tiles) == len(of) == 36
        assert Counter(patients[i] for i in tiles) == {"p": 6, "q": 6, "r": 6, "s": 9, "t": 9}
        times = Counter(tiles)
        # Whole rounds through a small group before any tile is repeated; none twice of a large one.
        assert [times[i] for i in range(4)] == [6, 2, 2, 2]
        assert max(times[i] for i in range(4, 32)) == 1
        assert sorted(times[i] for i in range(32, 36)) == [2, 2, 2, 3]


def test_what_cannot_be_shared_out_evenly_goes_to_others_in_each_epoch() -> None:
    """Five sites share ten draws of twelve; of 11 one site gets one more, by turns."""
    sites = [f"site {i % 5}" for i in range(11)]
    of = EpochSampler(sites, [0] * 11, sites, max_tiles_per_slide=None, balanced=True, seed=0)
    most: Counter[str] = Counter()
    for of.epoch in range(200):
        counts = Counter(sites[i] for i in drawn(of))
        assert sorted(counts.values()) == [2, 2, 2, 2, 3]
        most[counts.most_common(1)[0][0]] += 1
    # 200 draws of 1 in 5: 40 each, standard deviation 5.7.
    assert all(20 < most[f"site {i}"] < 60 for i in range(5))


def test_groups_need_balance() -> None:
    with pytest.raises(ValueError, match="within balanced classes only"):
        sampler(groups=SLIDES)


def with_sites(cohort: Cohort, sites: list[str]) -> tuple:
    """The rows of slides.csv with a column of sites, which go round."""
    path = cohort.config.data.slides
    table = pd.read_csv(path)
    table["site"] = [sites[i % len(sites)] for i in range(len(table))]
    table.to_csv(path, index=False)
    return read_slides(path, cohort.config.data.classes)


@pytest.mark.parametrize(("balance", "column"), [("patient", "patient_id"), ("site", "site")])
def test_an_epoch_sees_each_patient_or_site_equally_often(
    cohort: Cohort, balance: str, column: str
) -> None:
    config = cohort.variant(f"train.balance={balance}", "train.cache_mb=0")
    table = load_tile_table(config, with_sites(cohort, ["Bern", "Bern", "Graz"]))
    tiles = table.tiles[table.tiles["role"] == "train"].reset_index(drop=True)
    _, of = training_loader(config, tiles)
    seen = tiles.loc[drawn(of)]
    by_class = seen["label"].value_counts()
    assert by_class.nunique() == 1
    assert set(by_class.index) == set(config.data.classes)
    for _, part in seen.groupby("label"):
        counts = part[column].value_counts()
        assert counts.max() - counts.min() <= 1
    assert set(seen[column]) == set(tiles[column])


def test_a_slide_without_a_site_is_named(cohort: Cohort) -> None:
    config = cohort.variant("train.balance=site")
    rows = with_sites(cohort, ["Bern", ""])
    training = load_tile_table(cohort.config, rows).tiles.query("role == 'train'")
    lacking = training.loc[training["site"] == "", "slide_id"].unique()
    with pytest.raises(TableError) as caught:
        load_tile_table(config, rows)
    assert str(caught.value) == (
        f"{config.data.slides}: {len(lacking)} training slides have no site (the first is "
        f"'{lacking[0]}'), and train.balance is site. Fill in the column 'site', or set "
        "train.balance to patient or class."
    )


def test_sites_count_for_the_data_only_where_they_decide_what_is_drawn(cohort: Cohort) -> None:
    by_class, by_site = cohort.config, cohort.variant("train.balance=site")
    digests = []
    for sites in (["Bern"], ["Bern", "Graz"]):
        rows = with_sites(cohort, sites)
        digests.append([load_tile_table(c, rows).digest for c in (by_class, by_site)])
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]


def first_tiles(cohort: Cohort, count: int) -> pd.DataFrame:
    return load_tile_table(cohort.config, cohort.rows).tiles.head(count)


def dataset(cohort: Cohort, augment: AugmentConfig | None = None, **options) -> PatchDataset:
    tiles = first_tiles(cohort, 6)
    items = patch_items(tiles, cohort.config.tiles_folder, cohort.config.data.classes)
    settings = {"cache_mb": 1, "tile_bytes": 3 * 64**2, "seed": 1, **options}
    return PatchDataset(items, tile_transforms(augment), **settings)


def test_tiles_arrive_as_they_lie_in_the_store(cohort: Cohort) -> None:
    row = first_tiles(cohort, 1).iloc[0]
    stored = TileStore(cohort.config.tiles_folder / f"{row.slide_id}.zip").read(row.x, row.y)
    item = dataset(cohort)[0]
    assert item["image"].dtype == torch.uint8
    assert type(item["image"]) is torch.Tensor
    assert torch.equal(item["image"], torch.from_numpy(stored).permute(2, 0, 1))
    assert item["label"] == cohort.config.data.classes.index(row.label)
    assert set(item) == {"image", "label"}


def test_the_cache_takes_as_many_tiles_as_fit_and_a_byte_for_a_value(cohort: Cohort) -> None:
    some = dataset(cohort, cache_mb=4.5 * 3 * 64**2 / 1e6)
    assert len(some._cache) == 4
    assert {item["image"].nbytes for item in some._cache} == {3 * 64**2}


def test_neither_cache_nor_order_changes_what_is_drawn(cohort: Cohort) -> None:
    cached = dataset(cohort, AugmentConfig(), cache_mb=10)
    uncached = dataset(cohort, AugmentConfig(), cache_mb=0)
    forwards = [cached[0, i]["image"] for i in range(6)]
    backwards = [uncached[0, i]["image"] for i in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(cached[0]["image"], forwards[0])
    assert not torch.equal(cached[1, 0]["image"], forwards[0])


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_a_tile_for_the_device_comes_once_with_a_seed_for_each_view(
    cohort: Cohort, cache_mb: float
) -> None:
    plain = dataset(cohort)[3]["image"]
    one = dataset(cohort, seeds_only=True, cache_mb=cache_mb)[2, 3]
    assert torch.equal(one["image"], plain)
    assert one["seed"].tolist() == [seed_of(1, 2, 3)]
    two = dataset(cohort, seeds_only=True, views=2, cache_mb=cache_mb)[2, 3]
    assert torch.equal(two["image"], plain)
    assert two["seed"].tolist() == [seed_of(1, 2, 3, 0), seed_of(1, 2, 3, 1)]
    assert two["seed"].dtype == torch.int64


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_a_tile_that_is_gone_is_told_as_what_it_is(cohort: Cohort, cache_mb: float) -> None:
    """Not as the RuntimeError that MONAI makes of it; while the cache is filled, too."""
    path = cohort.config.tiles_folder / f"{first_tiles(cohort, 1).iloc[0].slide_id}.zip"
    path.unlink()
    with pytest.raises(StageError) as caught:
        dataset(cohort, cache_mb=cache_mb)[0]
    assert str(caught.value) == (f"{path}: no such tile store. Run 'medkd tile' again.")


def test_steps_done_are_left_out_of_an_epoch(cohort: Cohort) -> None:
    config = cohort.variant("train.batch_size=8")
    loader, of = training_loader(config, first_tiles(cohort, 45))
    whole = list(epoch_batches(loader, of, config, 1))
    rest = list(epoch_batches(loader, of, config, 1, steps_done=2))
    assert len(rest) == len(whole) - 2 == len(epoch_batches(loader, of, config, 1, steps_done=2))
    for one, other in zip(whole[2:], rest, strict=True):
        for key in ("image", "label", "seed"):
            assert torch.equal(one[key], other[key])
    assert {len(batch["image"]) for batch in whole} == {8}


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
