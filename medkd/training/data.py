"""Which tiles a run trains on, and the loaders that bring them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Sampler

from medkd.config import Config
from medkd.datasets.patches import EpochSampler, PatchDataset, PatchItems, patch_items
from medkd.datasets.split import check_split, read_split
from medkd.datasets.stain import StainReference
from medkd.datasets.tables import SlideRow
from medkd.datasets.transforms import tile_transforms
from medkd.errors import StageError, TableError, TrainingError
from medkd.files import sha256_of_json
from medkd.slides.imported_tiles import read_import_record, slide_records
from medkd.slides.store import read_index, with_ranges
from medkd.training.devices import Ranks
from medkd.training.loading import Batches, Images, TileLoader, pins_memory

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class TileTable:
    """Tiles of the cohort with label and role.

    Attributes:
        tiles: the index of the tile store with the columns ``label``, ``site`` and ``role`` added.
        digest: of tiles, labels and roles, and of sites where they decide what is drawn; two runs
            with one digest trained on the same data.
        synthetic: some slide was drawn, not scanned.
    """

    tiles: pd.DataFrame
    digest: str
    synthetic: bool


def load_tile_table(config: Config, rows: Sequence[SlideRow]) -> TileTable:
    """Join the tile index with the labels and the split.

    Raises:
        StageError: no tiles, no split, a split of other patients, a role without tiles of a class,
            or the index is of an earlier version and a store is missing or damaged.
        TableError: ``train.balance`` goes by the site, and a slide has none.
    """
    split = read_split(config.splits_file, config.split.fold)
    check_split(split, rows)
    index = read_index(config.tiles_folder)
    known = {row.slide_id for row in rows}
    tiles = index[index["slide_id"].isin(known)].copy()
    if config.tile.store == "jpeg" and read_import_record(config.tiles_folder) is None:
        tiles = with_ranges(tiles, config.tiles_folder)
    slide_ids = sorted(tiles["slide_id"].unique())
    records = slide_records(config.tiles_folder, slide_ids, config.tile)
    wanted_parameters = config.tile.recorded()
    for slide_id, record in records.items():
        if record["parameters"] != wanted_parameters:
            raise StageError(
                f"slide '{slide_id}' was tiled with other parameters than those in 'tile'",
                where=config.tiles_folder,
                remedy="Run 'medkd tile' again; it redoes what differs.",
            )
    role = dict(zip(split["patient_id"], split["role"], strict=True))
    # The table speaks, not the store: a patient id may have been corrected since tiling.
    by_slide = pd.DataFrame(
        [(row.slide_id, row.patient_id, row.label, row.site, role[row.patient_id]) for row in rows],
        columns=["slide_id", "patient_id", "label", "site", "role"],
        dtype="str",
    ).set_index("slide_id")
    # Each slide is looked up once, not each of its tiles.
    codes, slides = pd.factorize(tiles["slide_id"])
    of_slides = by_slide.loc[slides]
    for name in ("label", "patient_id", "site", "role"):
        tiles[name] = of_slides[name].array.take(codes)
    for wanted in ROLES:
        present = set(tiles.loc[tiles["role"] == wanted, "label"])
        for name in config.data.classes:
            if name not in present:
                raise StageError(
                    f"no tile of class {name} among the {wanted} patients",
                    where=config.tiles_folder,
                    remedy="Look at tiles/report.html for slides that failed, or change the "
                    "shares in 'split'.",
                )
    tiles = tiles.sort_values(["slide_id", "y", "x"], ignore_index=True)
    columns = ["slide_id", "patient_id", "x", "y", "label", "role"]
    if config.train.balance == "site":
        _check_sites(config, tiles)
        columns.append("site")
    content = tiles[columns]
    digest = sha256_of_json(
        [
            config.data.classes,
            wanted_parameters,
            pd.util.hash_pandas_object(content, index=False).tolist(),
        ]
    )
    synthetic = any(record["slide"]["synthetic"] for record in records.values())
    return TileTable(tiles, digest, synthetic)


def _check_sites(config: Config, tiles: pd.DataFrame) -> None:
    lacking = tiles.loc[(tiles["role"] == "train") & (tiles["site"] == ""), "slide_id"].unique()
    if len(lacking):
        raise TableError(
            f"{len(lacking)} training slides have no site (the first is '{lacking[0]}'), and "
            "train.balance is site",
            where=config.data.slides,
            remedy="Fill in the column 'site', or set train.balance to patient or class.",
        )


def training_loader(
    config: Config, tiles: pd.DataFrame, *, views: int = 1, stain: StainReference | None = None
) -> tuple[TileLoader, EpochSampler]:
    """The loader and the sampler of the training role.

    Its batches have ``image`` and ``label``, and ``seed`` where they are to be augmented on the
    device: what :func:`medkd.training.images.device_images` takes.

    Args:
        config: of the experiment.
        tiles: of the training role, with ``label`` and ``site``.
        views: how many augmentations of each tile.
        stain: that tiles are normalised to, before they are augmented; None: they are not.
    """
    train = config.train
    augment = train.augment
    on_device = augment.enabled and augment.where == "device"
    in_loader = augment.enabled and augment.where == "loader"
    items = _items(config, tiles)
    dataset = _dataset(
        config,
        items,
        transform=tile_transforms(augment if in_loader else None, stain),
        cache_mb=train.cache_mb,
        views=views,
        seeds_only=on_device,
    )
    group = {"patient": "patient_id", "site": "site"}.get(train.balance)
    sampler = EpochSampler(
        tiles["slide_id"].tolist(),
        items.labels,
        tiles[group].tolist() if group is not None else None,
        max_tiles_per_slide=train.max_tiles_per_slide,
        balanced=train.balance != "none",
        seed=config.seed,
    )
    return loader_of(dataset, config), sampler


class ShareOfSteps(Sampler[tuple[int, int]]):
    """What one process takes of every step's tiles.

    Args:
        sampler: of the epoch.
        step_tiles: how many tiles all processes together take in a step.
        ranks: the processes. Each takes the same number of consecutive tiles of a step; a last
            step that is not full is left out.
    """

    def __init__(self, sampler: EpochSampler, step_tiles: int, ranks: Ranks) -> None:
        self._sampler, self._step_tiles, self._ranks = sampler, step_tiles, ranks

    def __len__(self) -> int:
        return len(self._sampler) // self._step_tiles * (self._step_tiles // self._ranks.count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        drawn = list(self._sampler)
        own = self._step_tiles // self._ranks.count
        first = own * self._ranks.rank
        for start in range(first, len(self) * self._ranks.count, self._step_tiles):
            yield from drawn[start : start + own]


def epoch_batches(
    loader: TileLoader,
    sampler: EpochSampler,
    config: Config,
    epoch: int,
    *,
    steps_done: int = 0,
    ranks: Ranks | None = None,
) -> Batches:
    """The batches of one epoch, without the first ``steps_done``; of each, this process's share.

    The last one is dropped where it is not full.

    Raises:
        TrainingError: there are fewer tiles than a step is divided into.
    """
    ranks = ranks or Ranks()
    sampler.epoch = epoch
    sampler.skip = 0
    parts = config.train.devices * config.train.accumulate
    size = min(config.train.batch_size, len(sampler)) // parts * parts
    if not size:
        raise TrainingError(
            f"an epoch has {len(sampler)} tiles, and a step is divided into {parts}",
            where="train",
            remedy="Lower train.devices or train.accumulate, or train on more tiles.",
        )
    sampler.skip = steps_done * size
    return Batches(loader, ShareOfSteps(sampler, size, ranks), size // ranks.count)


def evaluation_batches(
    config: Config,
    tiles: pd.DataFrame,
    *,
    cache: bool,
    ranks: Ranks | None = None,
    stain: StainReference | None = None,
) -> Batches:
    """All ``tiles`` in their order, uint8, not augmented; every n-th batch for each of n ranks.

    Args:
        config: of the experiment.
        tiles: with ``label``.
        cache: keep decoded tiles in memory.
        ranks: the processes.
        stain: that tiles are normalised to; None: they are not.
    """
    cache_mb = config.train.cache_mb if cache else 0
    items = _items(config, tiles)
    dataset = _dataset(config, items, transform=tile_transforms(stain=stain), cache_mb=cache_mb)
    return batches_of(dataset, config, ranks or Ranks())


def batches_of(dataset: Images, config: Config, ranks: Ranks) -> Batches:
    """All items of a dataset in their order; every n-th batch for each of n ranks."""
    size = _evaluation_batch(config)
    own = _evaluated(len(dataset), size, ranks.count)[ranks.rank]
    return Batches(loader_of(dataset, config), own, size)


def slide_batches(
    config: Config, tiles: pd.DataFrame, *, stain: StainReference | None = None
) -> Iterator[dict[str, Tensor]]:
    """All ``tiles`` as of :func:`evaluation_batches`, but no batch has tiles of two slides.

    So what is computed of a slide does not depend, in its last bits, on the slides before it.

    Args:
        config: of the experiment.
        tiles: with ``label``; those of one slide together.
        stain: that tiles are normalised to; None: they are not.
    """
    items = _items(config, tiles)
    dataset = _dataset(config, items, transform=tile_transforms(stain=stain), cache_mb=0)
    size = _evaluation_batch(config)
    return loader_of(dataset, config).load(
        [
            list(range(first, min(first + size, behind)))
            for start, behind in slide_ranges(tiles).values()
            for first in range(start, behind, size)
        ]
    )


def slide_ranges(tiles: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Place of each slide's first tile, and behind its last; those of one slide lie together."""
    slides = tiles["slide_id"].to_numpy(dtype=object)
    starts = [0, *(np.flatnonzero(slides[1:] != slides[:-1]) + 1).tolist(), len(slides)]
    return {str(slides[first]): (first, behind) for first, behind in pairwise(starts)}


def evaluation_order(count: int, config: Config, ranks: int) -> list[int]:
    """Where each of ``count`` tiles stands when what the ranks evaluated is put together."""
    together = [tile for own in _evaluated(count, _evaluation_batch(config), ranks) for tile in own]
    return np.argsort(together).tolist()


def _evaluation_batch(config: Config) -> int:
    return max(1, 2 * config.train.batch_size // config.train.accumulate)


def _evaluated(count: int, batch: int, ranks: int) -> list[list[int]]:
    """The tiles of each rank: whole batches in turn."""
    return [[tile for tile in range(count) if tile // batch % ranks == r] for r in range(ranks)]


def _items(config: Config, tiles: pd.DataFrame) -> PatchItems:
    return patch_items(tiles, config.tiles_folder, config.data.classes, store=config.tile.store)


def _dataset(config: Config, items: PatchItems, **options: Any) -> PatchDataset:
    size = 3 * config.tile.size_px**2
    return PatchDataset(items, tile_bytes=size, seed=config.seed, **options)


def loader_of(dataset: Images, config: Config) -> TileLoader:
    """A loader of the dataset, with as many processes as the configuration says."""
    train = config.train
    return TileLoader(dataset, workers=train.loader_workers, pin_memory=pins_memory(train.device))
