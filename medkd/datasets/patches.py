"""Patches of a tile store as a MONAI dataset, and the order in which an epoch draws them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from torch.utils.data import Sampler

from medkd.errors import MedkdError
from medkd.slides.imported_tiles import IMAGE_COLUMN, read_import_record
from medkd.slides.store import RANGE_COLUMNS, with_ranges

Values: TypeAlias = Sequence[Any] | np.ndarray | pd.Series


def seed_of(*parts: int) -> int:
    """A 32-bit seed that is a function of ``parts`` alone, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True, eq=False)
class PatchItems(Sequence[dict[Hashable, Any]]):
    """Items of tiles, each made when it is asked for.

    A million dicts would take a gigabyte in every process; columns take 30 MB. Forked processes
    share them, others are sent them once.

    An item is ``{"image": (path, x, y, offset_bytes, length_bytes), "label": int}`` where a tile is
    stored in a zip, and ``{"image": (path, x, y), "label": int}`` where it is read from its slide
    (the path is of the slide's record) or from an imported image.

    Attributes:
        folder: of the files.
        files: their names or paths inside ``folder``.
        file_of_tile: place in ``files``, int32.
        x, y: top left corner, level-0 pixels, int32.
        labels: number of the class, int32.
        ranges: int64, tiles x 2: where the tile's entry begins in its zip, and the length of its
            JPEG, bytes; None: not of a zip.
    """

    folder: Path
    files: pa.Array
    file_of_tile: np.ndarray
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    ranges: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> dict[Hashable, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> PatchItems: ...
    def __getitem__(self, index: int | slice) -> dict[Hashable, Any] | PatchItems:
        """One item, or the items of a slice."""
        if isinstance(index, slice):
            columns = {name: getattr(self, name)[index] for name in _COLUMNS_OF_ITEMS}
            ranges = None if self.ranges is None else self.ranges[index]
            return replace(self, **columns, ranges=ranges)
        path = str(self.folder / self.files[int(self.file_of_tile[index])].as_py())
        place = () if self.ranges is None else self.ranges[index].tolist()
        image = (path, int(self.x[index]), int(self.y[index]), *place)
        return {"image": image, "label": int(self.labels[index])}

    def places(self) -> list[tuple[str, int, int]]:
        """(path, x, y) of each tile."""
        return [item["image"][:3] for item in self]


_COLUMNS_OF_ITEMS = ("file_of_tile", "x", "y", "labels")


def patch_items(
    tiles: pd.DataFrame,
    tiles_folder: Path,
    classes: Sequence[str],
    *,
    store: Literal["jpeg", "coordinates"] = "jpeg",
) -> PatchItems:
    """One item per row of ``tiles``.

    Args:
        tiles: rows of the index with a column ``label``.
        tiles_folder: where the stores lie.
        classes: gives the number of each label.
        store: what they hold, ``tile.store`` of the configuration. Imported tiles have none.

    Raises:
        KeyError: a label is none of ``classes``.
        StageError: the index is of an earlier version, and a store is missing or damaged.
    """
    codes, labels = pd.factorize(tiles["label"])
    number = {name: index for index, name in enumerate(classes)}
    numbers = np.array([number[label] for label in labels], np.int32)
    ranges = None
    imported = read_import_record(tiles_folder)
    if imported is not None:
        folder, files = imported.root, pa.array(tiles[IMAGE_COLUMN], pa.string())
        file_of_tile = np.arange(len(tiles), dtype=np.int32)
    else:
        folder = tiles_folder
        file_of_tile, slides = pd.factorize(tiles["slide_id"])
        ending = {"jpeg": "zip", "coordinates": "json"}[store]
        files = pa.array([f"{slide}.{ending}" for slide in slides], pa.string())
        if store == "jpeg":
            ranges = with_ranges(tiles, folder)[list(RANGE_COLUMNS)].to_numpy(np.int64)
    return PatchItems(
        folder=folder,
        files=files.combine_chunks() if isinstance(files, pa.ChunkedArray) else files,
        file_of_tile=file_of_tile.astype(np.int32),
        x=tiles["x"].to_numpy(np.int32),
        y=tiles["y"].to_numpy(np.int32),
        labels=numbers[codes],
        ranges=ranges,
    )


class PatchDataset(CacheDataset):
    """MONAI's CacheDataset over a tile store, with reproducible randomness.

    What is random about an item depends on (seed, epoch, index) alone, so that neither the number
    of loader workers nor an interruption changes what a network sees.

    An item is asked for by its index, or by (epoch, index) as :class:`EpochSampler` draws it; an
    index alone is of epoch 0.

    Args:
        items: as :func:`patch_items` gives them.
        transform: its deterministic first part is cached.
        cache_mb: memory for decoded tiles, megabytes; tiles beyond it are decoded each time.
        tile_bytes: size of a decoded tile, bytes.
        seed: of the experiment.
        views: how many augmentations of each tile.
        seeds_only: leave the augmentation to the device: an item has the tile once and, under
            ``seed``, int64 of one number for each view. Otherwise several views are stacked before
            the channels.

    Raises:
        StageError: a tile cannot be read; so for an item.
        SlideError: a slide that is read itself cannot be opened; so for an item.
    """

    def __init__(
        self,
        items: Sequence[dict[Hashable, Any]],
        transform: Compose,
        *,
        cache_mb: float,
        tile_bytes: int,
        seed: int,
        views: int = 1,
        seeds_only: bool = False,
    ) -> None:
        self._seed = seed
        self._views = views
        self._seeds_only = seeds_only
        with _own_errors():
            super().__init__(
                items,
                transform,
                cache_num=int(cache_mb * 1e6 / tile_bytes),
                num_workers=1,
                progress=False,
                # No transform writes into the cached array, so it need not be copied.
                copy_cache=False,
            )

    def __getitem__(self, draw: int | tuple[int, int]) -> dict[str, Any]:  # type: ignore[override]
        """The item of an index, or of (epoch, index)."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        # One view has the seed that it would have without views.
        views = [(view,) for view in range(self._views)] if self._views > 1 else [()]
        seeds = [seed_of(self._seed, epoch, index, *view) for view in views]
        with _own_errors():
            if self._seeds_only:
                return {**self._plain(index), "seed": torch.tensor(seeds)}
            seen = []
            for seed in seeds:
                self.transform.set_random_state(seed=seed)
                seen.append(self._plain(index))
        if len(seen) == 1:
            return seen[0]
        return {**seen[0], "image": torch.stack([item["image"] for item in seen])}

    def _plain(self, index: int) -> dict[str, Any]:
        item = self._transform(index)
        # Without the traces that MONAI's transforms leave, a list for each tile of its own.
        return {key: item[key] for key in self.data[index]}


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let errors of this project through: MONAI's Compose makes a RuntimeError of each."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, MedkdError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


class EpochSampler(Sampler[tuple[int, int]]):
    """Which tiles an epoch draws, and in which order, as (epoch, index); a function of the seed.

    Args:
        slides: slide of each tile.
        labels: class number of each tile.
        groups: patient or site of each tile, drawn equally often within a class; None: the tiles
            of a class are drawn alike.
        max_tiles_per_slide: draw at most this many tiles of a slide, anew in each epoch.
        balanced: draw each class equally often: what is too large loses tiles, what is too small
            repeats some, and the epoch keeps its length.
        seed: of the experiment.

    Set ``epoch`` before each epoch, and ``skip`` to the number of its tiles that were drawn before.

    Raises:
        ValueError: groups without balance.
    """

    def __init__(
        self,
        slides: Values,
        labels: Values,
        groups: Values | None = None,
        *,
        max_tiles_per_slide: int | None,
        balanced: bool,
        seed: int,
    ) -> None:
        if groups is not None and not balanced:
            raise ValueError("groups are drawn equally often within balanced classes only")
        self._tiles_of_slide = _places_of_each(slides)
        self._labels: np.ndarray = np.asarray(labels)
        self._groups = (
            np.zeros_like(self._labels) if groups is None else pd.factorize(np.asarray(groups))[0]
        )
        self._max = max_tiles_per_slide
        self._balanced = balanced
        self._seed = seed
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        drawn = sum(len(tiles[: self._max]) for tiles in self._tiles_of_slide)
        classes = len(np.unique(self._labels)) if self._balanced else 1
        return drawn // classes * classes - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return iter([(epoch, index) for index in self._draw(epoch)[self.skip :].tolist()])

    def _draw(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, epoch))
        chosen = np.concatenate(
            [random.permutation(tiles)[: self._max] for tiles in self._tiles_of_slide]
        )
        if self._balanced:
            present = np.unique(self._labels)
            share = len(chosen) // len(present)
            chosen = np.concatenate(
                [
                    self._shared_out(chosen[self._labels[chosen] == label], share, random)
                    for label in present
                ]
            )
        return random.permutation(chosen)

    def _shared_out(self, tiles: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """``count`` draws of the tiles of a class, as many of each group, or one more."""
        groups = [tiles[places] for places in _places_of_each(self._groups[tiles])]
        least, over = divmod(count, len(groups))
        # Who gets one more is drawn anew in each epoch.
        counts = least + (random.permutation(len(groups)) < over)
        return np.concatenate(
            [
                np.resize(random.permutation(group), number)
                for group, number in zip(groups, counts, strict=True)
            ]
        )


def _places_of_each(values: Values) -> list[np.ndarray]:
    """Where each value stands, in the order in which the values come first."""
    codes, different = pd.factorize(np.asarray(values))
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=len(different)))[:-1])
