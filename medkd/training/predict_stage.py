"""The predict stage: every network of a finished run over all tiles of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from medkd.config import Config
from medkd.datasets.stain import recorded
from medkd.datasets.stain_reference import stain_reference
from medkd.datasets.tables import SlideRow
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import StageError
from medkd.files import atomic_path
from medkd.progress import progress
from medkd.tracking import sending_leftovers
from medkd.training.checkpoint import load_network, read_completion
from medkd.training.cohorts import build_cohort
from medkd.training.data import evaluation_batches, load_tile_table
from medkd.training.devices import make_fabric
from medkd.training.evaluation import predict_tiles


def run_predict_stage(config: Config, rows: Sequence[SlideRow]) -> tuple[Path, int, int]:
    """Predict all tiles with every network of the run.

    Returns:
        The file of predictions, the number of tiles and the number of networks.

    Raises:
        StageError: the run is not finished, or tiles, labels or split changed since.
    """
    completion = read_completion(config.run_folder)
    table = load_tile_table(config, rows)
    if completion["data_digest"] != table.digest:
        raise StageError(
            "was trained on other tiles, labels or roles than those now in place",
            where=config.run_folder,
            remedy="Train again with --restart, or bring the earlier tiles and split back.",
        )
    stain = stain_reference(config, table.tiles)
    if completion.get("stain") != recorded(stain):
        raise StageError(
            "was trained with another stain normalisation than that in 'stain'",
            where=config.run_folder,
            remedy="Bring the earlier settings back, or train again with --restart.",
        )
    graph = expand(load_method(config.train.method), len(config.train.students))
    cohort = build_cohort(config, graph)
    for name, network in cohort.own_modules().items():
        load_network(config.run_folder / "networks" / f"{name}.safetensors", network)
    # One process does it, however many trained.
    fabric, _ = make_fabric(config.train.model_copy(update={"devices": 1}))
    if config.train.channels_last:
        cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fabric.to_device(cohort)
    positive = config.data.classes.index(config.data.positive)
    with (
        sending_leftovers(config),
        progress("predicting", len(table.tiles)) as advance,
    ):
        batches = evaluation_batches(config, table.tiles, cache=False, stain=stain)
        probabilities, _ = predict_tiles(cohort, fabric, batches, advance)
    columns = table.tiles[["slide_id", "patient_id", "role", "x", "y"]]
    predictions = pd.concat(
        [
            columns.assign(network=name, probability=values[:, positive].numpy())
            for name, values in probabilities.items()
        ],
        ignore_index=True,
    )
    path = config.run_folder / "predictions.parquet"
    with atomic_path(path) as temporary:
        predictions.to_parquet(temporary, index=False)
    return path, len(table.tiles), len(probabilities)
