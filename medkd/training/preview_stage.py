"""What augmentation makes of training tiles, as a sheet to look at before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medkd.config import AugmentConfig, Config
from medkd.datasets.preview import SheetRow, write_sheet
from medkd.datasets.stain import StainReference
from medkd.datasets.stain_reference import stain_reference, tiles_in_turn
from medkd.datasets.tables import SlideRow
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.training.augmentation import BatchAugmentation
from medkd.training.data import evaluation_batches, load_tile_table, training_loader
from medkd.training.images import device_images


@dataclass(frozen=True)
class Draws:
    """Training tiles and what training sees of them.

    Attributes:
        tiles: N rows of the index, with ``label``.
        stored: uint8 N x 3 x H x W.
        normalised: the same after stain normalisation; None: there is none.
        drawn: uint8 draws x N x 3 x H x W, rounded.
        names: of each draw, such as ``epoch 1`` or ``epoch 1, view 2``.
        synthetic: some slide of the cohort was drawn, not scanned.
    """

    tiles: pd.DataFrame
    stored: np.ndarray
    normalised: np.ndarray | None
    drawn: np.ndarray
    names: tuple[str, ...]
    synthetic: bool


def write_preview(
    config: Config, rows: Sequence[SlideRow], path: Path, *, tiles: int, draws: int
) -> Draws:
    """Write a sheet of training tiles as stored and as training sees them in its first epochs.

    Args:
        config: of the experiment.
        rows: of slides.csv.
        path: of the PNG.
        tiles: how many at most, of each class in turn.
        draws: how many of each.

    Raises:
        StageError: no tiles or no split yet, or a tile cannot be read.
        TrainingError: so during loading.
        OutputError: the picture cannot be written.
    """
    seen = draw_tiles(config, rows, tiles=tiles, draws=draws)
    before = [seen.stored] if seen.normalised is None else [seen.stored, seen.normalised]
    columns = ("stored", "normalised")[: len(before)] + seen.names
    sheet = [
        SheetRow(label, slide_id, [images[n] for images in (*before, *seen.drawn)])
        for n, (label, slide_id) in enumerate(
            zip(seen.tiles["label"], seen.tiles["slide_id"], strict=True)
        )
    ]
    stain = config.stain.normalise
    normalised = f"stain.normalise: {stain}. " if stain != "none" else ""
    note = "Synthetic slides: drawn, not scanned. " if seen.synthetic else ""
    write_sheet(
        path,
        sheet,
        columns,
        title="Training tiles, and what training sees of them",
        note=f"{note}{normalised}train.augment: {augmentation_words(config.train.augment)}",
    )
    return seen


def draw_tiles(config: Config, rows: Sequence[SlideRow], *, tiles: int, draws: int) -> Draws:
    """Training tiles, and the very augmentations that training gives them.

    On a GPU the augmented levels may differ in the last bit, and some tiles may not be drawn in
    these epochs (``train.max_tiles_per_slide``, ``train.balance``).

    Raises:
        As :func:`write_preview`.
    """
    table = load_tile_table(config, rows)
    training = table.tiles[table.tiles["role"] == "train"].reset_index(drop=True)
    chosen = _chosen(training, tiles, config.seed)
    # Some tiles of many: none is cached, and no process is started for them.
    train = config.train.model_copy(update={"cache_mb": 0, "loader_workers": 0, "device": "cpu"})
    graph = expand(load_method(train.method), len(train.students))
    views = graph.views if train.augment.enabled else 1
    alone = config.model_copy(update={"train": train})
    stain = stain_reference(config, table.tiles)
    loader, _ = training_loader(alone, training, views=views, stain=stain)
    augment = BatchAugmentation(train.augment)
    cpu = torch.device("cpu")
    seen: list[Tensor] = []
    order = [[(epoch, n) for n in chosen.index] for epoch in range(math.ceil(draws / views))]
    for batch in loader.load(order):
        images = device_images(batch, cpu, augment)
        seen += images if views > 1 else [images]

    def plain(stain: StainReference | None) -> np.ndarray:
        batches = evaluation_batches(alone, chosen, cache=False, stain=stain)
        return as_levels(torch.cat([device_images(batch, cpu) for batch in batches]))

    view = [f", view {number + 1}" for number in range(views)] if views > 1 else [""]
    names = [f"epoch {epoch + 1}{of_view}" for epoch in range(len(order)) for of_view in view]
    return Draws(
        chosen,
        plain(None),
        plain(stain) if stain is not None else None,
        as_levels(torch.stack(seen[:draws])),
        tuple(names[:draws]),
        table.synthetic,
    )


def augmentation_words(settings: AugmentConfig) -> str:
    """What is switched on, with its probability: ``flip 0.5, turn 0.75, colour 1``."""
    if not settings.enabled:
        return "switched off"
    on = {
        name.removesuffix("_p"): value
        for name, value in settings.model_dump().items()
        if name.endswith("_p") and value > 0
    }
    return ", ".join(f"{name} {value:g}" for name, value in on.items()) or "nothing switched on"


def _chosen(training: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Tiles of each class in turn, and of each slide of a class in turn, sorted by both."""
    of_class = [
        tiles_in_turn(tiles, "slide_id", count, seed=seed) for _, tiles in training.groupby("label")
    ]
    turn = pd.concat([part.assign(turn=range(len(part))) for part in of_class])
    picked = turn.sort_values("turn", kind="stable").head(count)
    return picked.sort_values(["label", "slide_id", "y", "x"]).drop(columns="turn")


def as_levels(images: Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8, rounded."""
    return (images * 255).round().to(torch.uint8).numpy()
