"""Where the stain reference of an experiment comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medkd.config import Config
from medkd.datasets.patches import patch_items
from medkd.datasets.stain import PUBLISHED_MACENKO, Method, StainReference, fit
from medkd.datasets.transforms import LoadStoredTiled
from medkd.errors import StageError


def tiles_in_turn(tiles: pd.DataFrame, by: str, count: int, *, seed: int) -> pd.DataFrame:
    """Up to ``count`` rows of ``tiles``, drawn from each value of the column ``by`` in turn."""
    drawn = tiles.sample(frac=1, random_state=seed)
    turn = drawn.groupby(by, sort=False).cumcount()
    return drawn.loc[turn.sort_values(kind="stable").index].head(count)


def stain_reference(config: Config, tiles: pd.DataFrame) -> StainReference | None:
    """The reference that ``stain`` of the configuration asks for; None: nothing is normalised.

    The same whenever and wherever it is asked for: of the configuration and ``tiles`` alone.

    Args:
        config: of the experiment.
        tiles: the tile index with the columns ``label`` and ``role``.

    Raises:
        StageError: there is no such image, or what should give a reference holds too little stain.
    """
    stain = config.stain
    if stain.normalise == "none":
        return None
    if stain.reference == "published":
        return PUBLISHED_MACENKO
    if stain.reference_image is not None:
        return reference_of_image(stain.reference_image, stain.normalise)
    return fit_training_reference(config, tiles, stain.normalise, count=stain.reference_tiles)


def reference_of_image(path: Path, method: Method) -> StainReference:
    """The reference that one image of stained tissue gives.

    Raises:
        StageError: it cannot be read, or holds too little stain.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow tells of a damaged PNG by a SyntaxError.
        raise StageError(
            f"cannot be read as an image: {error}",
            where=path,
            remedy="Set stain.reference_image to a PNG, TIFF or JPEG of stained tissue.",
        ) from error
    reference = fit([pixels.transpose(2, 0, 1)], method)
    if reference is None:
        raise StageError(
            "holds too little stain to be a reference",
            where=path,
            remedy="Take an image that tissue with haematoxylin and eosin fills.",
        )
    return reference


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
            remedy="Look at tiles/report.html for what was taken for tissue, or set "
            "stain.reference to published or image.",
        )
    return reference


def _read(config: Config, tiles: pd.DataFrame) -> Iterator[np.ndarray]:
    load = LoadStoredTiled("image")
    items = patch_items(tiles, config.tiles_folder, config.data.classes, store=config.tile.store)
    for item in items:
        yield load(item)["image"]
