"""Which tiles a run trains on, and the loaders that bring them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader
from torch.utils.data import Sampler

from medkd.config import Config
from medkd.datasets.patches import EpochSampler, PatchDataset, patch_items
from medkd.datasets.split import check_split, read_split
from medkd.datasets.tables import SlideRow
from medkd.datasets.transforms import tile_transforms
from medkd.errors import StageError, TrainingError
from medkd.files import sha256_of_json
from medkd.slides.store import read_index, read_tile_records
from medkd.training.devices import Ranks

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class TileTable:
    """Tiles of the cohort with label and role.

    Attributes:
        tiles: the index of the tile store with the columns ``label`` and ``role`` added.
        digest: of tiles, labels and roles; two runs with one digest trained on the same data.
        synthetic: some slide was drawn, not scanned.
    """

    tiles: pd.DataFrame
    digest: str
    synthetic: bool


def load_tile_table(config: Config, rows: Sequence[SlideRow]) -> TileTable:
    """Join the tile index with the labels and the split.

    Raises:
        StageError: no tiles, no split, a split of other patients, a role without tiles of a class.
    """
    split = read_split(config.splits_file)
    check_split(split, rows)
    index = read_index(config.tiles_folder)
    known = {row.slide_id for row in rows}
    tiles = index[index["slide_id"].isin(known)].copy()
    records = read_tile_records(config.tiles_folder, sorted(tiles["slide_id"].unique()))
    wanted_parameters = config.tile.recorded()
    for slide_id, record in records.items():
        if record["parameters"] != wanted_parameters:
            raise StageError(
                f"slide '{slide_id}' was tiled with other parameters than those in 'tile'",
                where=config.tiles_folder,
                remedy="Run 'medkd tile' again; it redoes what differs.",
            )
    label = {row.slide_id: row.label for row in rows}
    patient = {row.slide_id: row.patient_id for row in rows}
    role = dict(zip(split["patient_id"], split["role"], strict=True))
    tiles["label"] = tiles["slide_id"].map(label)
    # The table speaks, not the store: a patient id may have been corrected since tiling.
    tiles["patient_id"] = tiles["slide_id"].map(patient)
    tiles["role"] = tiles["patient_id"].map(role)
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
    content = tiles[["slide_id", "patient_id", "x", "y", "label", "role"]]
    digest = sha256_of_json(
        [
            config.data.classes,
            wanted_parameters,
            pd.util.hash_pandas_object(content, index=False).tolist(),
        ]
    )
    synthetic = any(record["slide"]["synthetic"] for record in records.values())
    return TileTable(tiles, digest, synthetic)


def training_loader(
    config: Config, tiles: pd.DataFrame, *, views: int = 1
) -> tuple[PatchDataset, EpochSampler]:
    """The dataset and the sampler of the training role; ``views`` augmentations of each tile."""
    train = config.train
    items = _items(config, tiles)
    dataset = PatchDataset(
        items,
        tile_transforms(augment=train.augment),
        cache_mb=train.cache_mb,
        tile_bytes=3 * config.tile.size_px**2,
        seed=config.seed,
        views=views,
    )
    sampler = EpochSampler(
        tiles["slide_id"].tolist(),
        [item["label"] for item in items],
        max_tiles_per_slide=train.max_tiles_per_slide,
        balance=train.balance,
        seed=config.seed,
    )
    return dataset, sampler


class ShareOfSteps(Sampler[int]):
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

    def __iter__(self) -> Iterator[int]:
        drawn = np.array(list(self._sampler), np.int64)
        steps = len(drawn) // self._step_tiles
        own = self._step_tiles // self._ranks.count
        shares = drawn[: steps * self._step_tiles].reshape(steps, self._ranks.count, own)
        return iter(shares[:, self._ranks.rank].ravel().tolist())


def epoch_batches(
    dataset: PatchDataset,
    sampler: EpochSampler,
    config: Config,
    epoch: int,
    *,
    steps_done: int = 0,
    ranks: Ranks | None = None,
) -> DataLoader:
    """The batches of one epoch, without the first ``steps_done``; of each, this process's share.

    The last one is dropped where it is not full.

    Raises:
        TrainingError: there are fewer tiles than a step is divided into.
    """
    ranks = ranks or Ranks()
    dataset.epoch = sampler.epoch = epoch
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
    share = ShareOfSteps(sampler, size, ranks)
    return _loader(dataset, config, batch_size=size // ranks.count, sampler=share)


def evaluation_batches(
    config: Config, tiles: pd.DataFrame, *, cache: bool, ranks: Ranks | None = None
) -> DataLoader:
    """All ``tiles`` in their order, without augmentation; every n-th batch for each of n ranks."""
    ranks = ranks or Ranks()
    dataset = PatchDataset(
        _items(config, tiles),
        tile_transforms(augment=False),
        cache_mb=config.train.cache_mb if cache else 0,
        tile_bytes=3 * config.tile.size_px**2,
        seed=config.seed,
    )
    size = _evaluation_batch(config)
    own = _evaluated(len(tiles), size, ranks.count)[ranks.rank]
    return _loader(dataset, config, batch_size=size, sampler=own)


def evaluation_order(count: int, config: Config, ranks: int) -> list[int]:
    """Where each of ``count`` tiles stands when what the ranks evaluated is put together."""
    together = [tile for own in _evaluated(count, _evaluation_batch(config), ranks) for tile in own]
    return np.argsort(together).tolist()


def _evaluation_batch(config: Config) -> int:
    return max(1, 2 * config.train.batch_size // config.train.accumulate)


def _evaluated(count: int, batch: int, ranks: int) -> list[list[int]]:
    """The tiles of each rank: whole batches in turn."""
    return [[tile for tile in range(count) if tile // batch % ranks == r] for r in range(ranks)]


def _items(config: Config, tiles: pd.DataFrame) -> list[dict]:
    return patch_items(tiles, config.tiles_folder, config.data.classes, store=config.tile.store)


def _loader(dataset: PatchDataset, config: Config, **options: object) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=config.train.loader_workers,
        pin_memory=torch.cuda.is_available(),
        # Processes made anew see the epoch that was set on the dataset.
        persistent_workers=False,
        **options,
    )
