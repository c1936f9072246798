"""The stain reference of a cohort, fitted on its training patients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.datasets.patches import patch_items
from medkd.datasets.stain import Method, StainReference, fit
from medkd.datasets.transforms import LoadStoredTiled
from medkd.errors import StageError


def tiles_in_turn(tiles: pd.DataFrame, by: str, count: int, *, seed: int) -> pd.DataFrame:
    """Up to ``count`` rows of ``tiles``, drawn from each value of the column ``by`` in turn."""
    drawn = tiles.sample(frac=1, random_state=seed)
    turn = drawn.groupby(by, sort=False).cumcount()
    return drawn.loc[turn.sort_values(kind="stable").index].head(count)


def fit_training_reference(
    config: Config, tiles: pd.DataFrame, method: Method, *, count: int = 500
) -> StainReference:
    """Fit a reference on tiles of the training patients, each patient's in turn.

    Args:
        config: of the experiment; its seed decides which tiles are drawn.
        tiles: the tile index with the columns ``label`` and ``role``; rows of other roles than
            ``train`` are not looked at.
        method: ``macenko`` or ``reinhard``.
        count: how many tiles at most.

    Raises:
        StageError: no tile of the training patients holds enough stain, or one cannot be read.
    """
    chosen = tiles_in_turn(tiles[tiles["role"] == "train"], "patient_id", count, seed=config.seed)
    reference = fit(_read(config, chosen), method)
    if reference is None:
        raise StageError(
            f"none of {len(chosen)} tiles of training patients holds enough stain to fit a "
            "reference",
            where=config.tiles_folder,
            remedy="Look at tiles/report.html for what was taken for tissue, or use a published "
            "reference.",
        )
    return reference


def _read(config: Config, tiles: pd.DataFrame) -> Iterator[np.ndarray]:
    load = LoadStoredTiled("image")
    items = patch_items(tiles, config.tiles_folder, config.data.classes, store=config.tile.store)
    for item in items:
        yield load(item)["image"]
