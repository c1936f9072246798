"""Bags of tiles for multiple-instance learning: many tiles of a slide or patient, one label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable, ToTensord
from monai.utils.enums import TraceKeys
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from medkd.datasets.patches import PatchDataset, PatchItems, patch_items
from medkd.datasets.stain import StainReference
from medkd.datasets.stain_transforms import StainNormalise
from medkd.datasets.transforms import LoadStoredTiled
from medkd.errors import ConfigError, StageError, TableError

BAGS_BY = ("slide_id", "patient_id")

PADDED_KEYS = ("image", "embedding", "places")
"""What of a bag has an entry for each of its tiles."""


@dataclass(frozen=True, eq=False)
class BagItems(Sequence[dict[Hashable, Any]]):
    """Items of bags, each made when it is asked for.

    An item is ``{"image": [...], "places": int32 N x 2, "label": int, "bag_id": str}``: ``image``
    has for each tile what :class:`medkd.datasets.patches.PatchItems` says of it, ``places`` its x
    and y, level-0 pixels (as the index has them, where tiles were imported).

    Attributes:
        tiles: of all bags, those of one bag together.
        starts: place of each bag's first tile in ``tiles``, int64.
        counts: how many tiles each bag has, int64.
        bag_ids: of the slides or patients, str.
        labels: number of the class, int32.
    """

    tiles: PatchItems
    starts: np.ndarray
    counts: np.ndarray
    bag_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> dict[Hashable, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> BagItems: ...
    def __getitem__(self, index: int | slice) -> dict[Hashable, Any] | BagItems:
        """One item, or the items of a slice."""
        if isinstance(index, slice):
            columns = ("starts", "counts", "bag_ids", "labels")
            return replace(self, **{name: getattr(self, name)[index] for name in columns})
        first = int(self.starts[index])
        tiles = self.tiles[first : first + int(self.counts[index])]
        return {
            "image": [tile["image"] for tile in tiles],
            "places": np.stack([tiles.x, tiles.y], axis=1),
            "label": int(self.labels[index]),
            "bag_id": str(self.bag_ids[index]),
        }

    def largest_mb(self, size_px: int, max_tiles: int | None = None) -> float:
        """Memory of the largest bag's decoded tiles, megabytes; a batch takes it for each bag.

        Args:
            size_px: side of a tile.
            max_tiles: so many of a bag are drawn; None: all.
        """
        largest = int(self.counts.max(initial=0))
        tiles = largest if max_tiles is None else min(largest, max_tiles)
        return tiles * 3 * size_px**2 / 1e6


def bag_items(
    tiles: pd.DataFrame,
    tiles_folder: Path,
    classes: Sequence[str],
    *,
    by: str = "slide_id",
    bags: Sequence[str] | None = None,
    store: Literal["jpeg", "coordinates"] = "jpeg",
) -> BagItems:
    """One item for each slide or patient, its tiles in the order of ``tiles``.

    Args:
        tiles: rows of the index with a column ``label``.
        tiles_folder: where the stores lie.
        classes: gives the number of each label.
        by: ``slide_id`` or ``patient_id``.
        bags: ids of the bags that are wanted, in this order; tiles of others are left. None: each
            that has a tile, in the order in which they come first.
        store: as for :func:`medkd.datasets.patches.patch_items`.

    Raises:
        ConfigError: ``by`` is another word.
        KeyError: a label is none of ``classes``.
        StageError: there is no tile at all, or none of a bag, or a tile is of no bag; as for
            :func:`medkd.datasets.patches.patch_items`.
        TableError: a bag has two labels.
    """
    if by not in BAGS_BY:
        raise ConfigError(
            f"tiles are put into bags by '{by}'",
            where="by",
            remedy=f"Use {' or '.join(BAGS_BY)}.",
        )
    where = tiles_folder
    lacking = int(tiles[by].isna().sum())
    if lacking:
        raise StageError(
            f"{lacking} tiles have no {by}, and so are of no bag",
            where=where,
            remedy="Drop these rows, or fill in the column.",
        )
    ids = pd.Index(tiles[by].unique() if bags is None else list(dict.fromkeys(bags)), dtype=object)
    if not len(ids):
        raise StageError(
            "there is no tile, and so no bag",
            where=where,
            remedy="Look at tiles/report.html for slides that failed, or choose other rows.",
        )
    bag_of_tile = ids.get_indexer(tiles[by].astype(object))
    counts = np.bincount(bag_of_tile[bag_of_tile >= 0], minlength=len(ids))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise StageError(
            f"{len(empty)} bags have no tile (the first is {by} '{ids[empty[0]]}')",
            where=where,
            remedy="Look at tiles/report.html for slides that failed, or leave these bags out.",
        )
    order = np.argsort(bag_of_tile, kind="stable")[len(tiles) - counts.sum() :]
    sorted_tiles = tiles.iloc[order]
    items = patch_items(sorted_tiles, tiles_folder, classes, store=store)
    starts = np.cumsum(counts) - counts
    labels = items.labels[starts]
    other = np.flatnonzero(items.labels != np.repeat(labels, counts))
    if len(other):
        bag = int(bag_of_tile[order[other[0]]])
        two = classes[labels[bag]], classes[items.labels[other[0]]]
        raise TableError(
            f"the tiles of {by} '{ids[bag]}' have the labels {' and '.join(sorted(two))}",
            where=where,
            remedy="A bag has one label: mend the table of slides, or leave this bag out.",
        )
    return BagItems(items, starts, counts, ids.to_numpy(), labels)


class RandTilesd(Randomizable, MapTransform):
    """Keep at most ``max_tiles`` of a bag, drawn without replacement, in their order.

    Before :class:`LoadBagd` only these are decoded; behind it MONAI's cached datasets keep whole
    bags, and the draw is anew each time.

    Args:
        keys: entries of the item with one element for each tile; all keep the same ones.
        max_tiles: at least 1.
        allow_missing_keys: do not raise where an item lacks a key.

    Raises:
        ConfigError: ``max_tiles`` is below 1.
    """

    def __init__(
        self, keys: KeysCollection, max_tiles: int, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.max_tiles = at_least_one(max_tiles)

    def randomize(self, data: int) -> None:
        """Draw of ``data`` tiles."""
        self.drawn = drawn_tiles(data, self.max_tiles, self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the same tiles of every key."""
        item = dict(data)
        present = list(self.key_iterator(item))
        if present:
            self.randomize(len(item[present[0]]))
        for key in present:
            tiles = item[key]
            whole = isinstance(tiles, list)
            item[key] = [tiles[i] for i in self.drawn] if whole else tiles[self.drawn]
        return item


class LoadBagd(MapTransform):
    """Read all tiles of a bag: the list of an item of :class:`BagItems` to uint8 N x 3 x H x W.

    Files are opened by each process itself, as by
    :class:`medkd.datasets.transforms.LoadStoredTiled`.

    Args:
        keys: such as ``image``.
        stain: give each tile the colours of this reference; None: as it is stored.
    """

    def __init__(self, keys: KeysCollection, stain: StainReference | None = None) -> None:
        super().__init__(keys)
        self._load = LoadStoredTiled("image")
        self._normalise = None if stain is None else StainNormalise(stain)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key's bag.

        Raises:
            StageError: a tile cannot be read, or has another size than the first of its bag, or
                the bag has none.
            SlideError: a slide cannot be opened.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._bag(item[key])
        return item

    def _bag(self, places: Sequence[tuple]) -> np.ndarray:
        if not len(places):
            raise StageError(
                "a bag has no tile", where="LoadBagd", remedy="Leave empty bags out of the items."
            )
        # Filled tile by tile: stacked at the end, a bag would be in memory twice.
        bag = np.empty(0, np.uint8)
        for number, place in enumerate(places):
            tile = self._load({"image": place})["image"]
            if self._normalise is not None:
                tile = self._normalise(tile)
            if number == 0:
                bag = np.empty((len(places), *tile.shape), np.uint8)
            if tile.shape != bag.shape[1:]:
                sizes = [
                    f"{width} x {height} px" for _, height, width in (tile.shape, bag[0].shape)
                ]
                raise StageError(
                    f"a tile is {sizes[0]}, and the first of its bag is {sizes[1]}",
                    where=place[0],
                    remedy="Put tiles of one size into a bag: tile or import them again.",
                )
            bag[number] = tile
        return bag


def bag_transforms(max_tiles: int | None = None, stain: StainReference | None = None) -> Compose:
    """From an item of :class:`BagItems` to tensors: ``image``, uint8 N x 3 x H x W, ``places``.

    Args:
        max_tiles: draw at most so many of a bag; None: all of them, as evaluation wants.
        stain: give each tile the colours of this reference; None: as it is stored.

    Raises:
        ConfigError: ``max_tiles`` is below 1.
    """
    keys = ("image", "places")
    drawn = [RandTilesd(keys, max_tiles)] if max_tiles is not None else []
    return Compose([*drawn, LoadBagd("image", stain), ToTensord(keys, track_meta=False)])


def bag_dataset(
    items: BagItems,
    *,
    seed: int,
    max_tiles: int | None = None,
    stain: StainReference | None = None,
) -> PatchDataset:
    """Bags whose draws are a function of (seed, epoch, index) alone; nothing is kept in memory.

    It is asked for an index, or for (epoch, index) as
    :class:`medkd.datasets.patches.EpochSampler` draws them when it is given ``bag_ids`` for slides.

    Args:
        items: as :func:`bag_items` gives them.
        seed: of the experiment.
        max_tiles: draw at most so many of a bag, anew in each epoch; None: all of them.
        stain: give each tile the colours of this reference; None: as it is stored.

    Raises:
        ConfigError: ``max_tiles`` is below 1.
    """
    transform = bag_transforms(max_tiles, stain)
    return PatchDataset(items, transform, cache_mb=0, tile_bytes=1, seed=seed)


def collate_bags(bags: Sequence[Mapping[Hashable, Any]]) -> dict[str, Any]:
    """Put bags into one batch, each padded with zeros to the largest of them.

    Takes items of :func:`bag_dataset` and of
    :class:`medkd.datasets.embedding_bags.EmbeddingBags` alike. B bags of up to N tiles take the
    memory of B x N tiles, however small the other bags are: 150 kB for a tile of 224 px, so that 4
    bags of up to 2,000 tiles are 1.2 GB. :meth:`BagItems.largest_mb` says it before.

    Returns:
        :data:`PADDED_KEYS` as far as the items have them, each B x N x ...; ``mask``, bool B x N,
        true for tiles that are there; ``label``, int64 B; ``bag_id``, B strings.

    Raises:
        StageError: the tiles of two bags have two sizes, or their embeddings two lengths.
    """
    padded = [key for key in PADDED_KEYS if key in bags[0]]
    # MONAI's transforms leave traces in an item, which are no data.
    rest = [key for key in bags[0] if not str(key).endswith(TraceKeys.KEY_SUFFIX)]
    others = [{key: bag[key] for key in rest if key not in padded} for bag in bags]
    batch: dict[str, Any] = {}
    for key in padded:
        tiles: list[Tensor] = [torch.as_tensor(bag[key]) for bag in bags]
        shapes = sorted({tuple(bag.shape[1:]) for bag in tiles})
        if len(shapes) > 1:
            two = " and ".join(" x ".join(map(str, shape)) for shape in shapes[:2])
            raise StageError(
                f"bags of a batch have elements of {two}",
                where=key,
                remedy="Put bags of one tile size and one encoder into a batch.",
            )
        batch[key] = pad_sequence(tiles, batch_first=True)
    counts = torch.tensor([len(bag[padded[0]]) for bag in bags])
    batch["mask"] = torch.arange(int(counts.max())) < counts[:, None]
    return batch | default_collate(others)


def drawn_tiles(count: int, most: int, random: np.random.RandomState) -> np.ndarray:
    """At most ``most`` of ``count`` places, without replacement, ascending."""
    return np.sort(random.permutation(count)[:most])


def at_least_one(max_tiles: int) -> int:
    """``max_tiles``; a :class:`ConfigError` where it is below 1."""
    if max_tiles < 1:
        raise ConfigError(
            f"at most {max_tiles} tiles of a bag are to be drawn",
            where="max_tiles",
            remedy="Give 1 or more, or None for all.",
        )
    return max_tiles
