"""Patches of a tile store as a MONAI dataset, and the order in which an epoch draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from torch.utils.data import Sampler


def seed_of(*parts: int) -> int:
    """A 32-bit seed that is a function of ``parts`` alone, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def patch_items(
    tiles: pd.DataFrame,
    tiles_folder: Path,
    classes: Sequence[str],
    *,
    store: Literal["jpeg", "coordinates"] = "jpeg",
) -> list[dict]:
    """One item per row of ``tiles``.

    Args:
        tiles: rows of the index with a column ``label``.
        tiles_folder: where the stores lie.
        classes: gives the number of each label.
        store: what they hold, ``tile.store`` of the configuration.

    Returns:
        ``{"image": (path, x, y), "label": int}`` for each tile; the path is of the zip of JPEGs,
        or of the record of a slide that is read itself.
    """
    ending = {"jpeg": "zip", "coordinates": "json"}[store]
    number = {name: index for index, name in enumerate(classes)}
    return [
        {"image": (str(tiles_folder / f"{slide}.{ending}"), int(x), int(y)), "label": number[label]}
        for slide, x, y, label in zip(
            tiles["slide_id"], tiles["x"], tiles["y"], tiles["label"], strict=True
        )
    ]


class PatchDataset(CacheDataset):
    """MONAI's CacheDataset over a tile store, with reproducible randomness.

    The random transforms of an item depend on (seed, epoch, index) alone, so that neither the
    number of loader workers nor an interruption changes what a network sees.

    Args:
        items: as :func:`patch_items` gives them.
        transform: its deterministic first part is cached.
        cache_mb: memory for decoded tiles, megabytes; tiles beyond it are decoded each time.
        tile_bytes: size of a decoded tile, bytes.
        seed: of the experiment.
        views: how many augmentations of each tile; more than one are stacked before its channels.
    """

    def __init__(
        self,
        items: list[dict],
        transform: Compose,
        *,
        cache_mb: float,
        tile_bytes: int,
        seed: int,
        views: int = 1,
    ) -> None:
        self.epoch = 0
        self._seed = seed
        self._views = views
        super().__init__(
            items,
            transform,
            cache_num=int(cache_mb * 1e6 / tile_bytes),
            num_workers=1,
            progress=False,
            # No transform writes into the cached array, so it need not be copied.
            copy_cache=False,
        )

    def _transform(self, index: int) -> Any:
        if self._views == 1:
            return self._augmented(index)
        seen = [self._augmented(index, view) for view in range(self._views)]
        return {**seen[0], "image": torch.stack([item["image"] for item in seen])}

    def _augmented(self, index: int, *view: int) -> Any:
        self.transform.set_random_state(seed=seed_of(self._seed, self.epoch, index, *view))
        return super()._transform(index)


class EpochSampler(Sampler[int]):
    """Which tiles an epoch draws, and in which order; a function of (seed, epoch).

    Args:
        slides: slide of each tile.
        labels: class number of each tile.
        max_tiles_per_slide: draw at most this many tiles of a slide, anew in each epoch.
        balance: ``class`` draws each class equally often: the larger class loses tiles, the
            smaller one repeats some, and the epoch keeps its length. ``none`` leaves them.
        seed: of the experiment.

    Set ``epoch`` before each epoch, and ``skip`` to the number of its tiles that were drawn before.
    """

    def __init__(
        self,
        slides: Sequence[str],
        labels: Sequence[int],
        *,
        max_tiles_per_slide: int | None,
        balance: str,
        seed: int,
    ) -> None:
        codes = pd.factorize(np.asarray(slides))[0]
        self._tiles_of_slide = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
        self._labels = np.asarray(labels)
        self._max = max_tiles_per_slide
        self._balance = balance
        self._seed = seed
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return len(self._draw()) - self.skip

    def __iter__(self) -> Iterator[int]:
        return iter(self._draw()[self.skip :].tolist())

    def _draw(self) -> np.ndarray:
        random = np.random.default_rng((self._seed, self.epoch))
        chosen = np.concatenate(
            [random.permutation(tiles)[: self._max] for tiles in self._tiles_of_slide]
        )
        if self._balance == "class":
            present = np.unique(self._labels[chosen])
            share = len(chosen) // len(present)
            chosen = np.concatenate(
                [
                    np.resize(random.permutation(chosen[self._labels[chosen] == label]), share)
                    for label in present
                ]
            )
        return random.permutation(chosen)
