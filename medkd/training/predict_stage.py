"""The predict stage: networks of a finished run over all tiles of the store, slide by slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medkd.config import Config
from medkd.datasets.stain import StainReference, recorded
from medkd.datasets.stain_reference import stain_reference
from medkd.datasets.tables import SlideRow
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import StageError
from medkd.files import sha256_of_file
from medkd.progress import progress
from medkd.slide_level.slide_features import TileSums
from medkd.slides.store import INDEX_NAME
from medkd.tracking import sending_leftovers
from medkd.training.checkpoint import load_network, read_completion
from medkd.training.cohorts import build_cohort
from medkd.training.data import TileTable, load_tile_table, slide_batches
from medkd.training.devices import make_fabric
from medkd.training.export import embedding_size, logits_and_pooled
from medkd.training.images import device_images
from medkd.training.prediction_parts import PredictionParts

Looking = Callable[[Tensor], Mapping[str, tuple[Tensor, Tensor | None]]]
"""From images to logits and pooled features by network."""


@dataclass(frozen=True)
class PredictResult:
    """What a prediction came to.

    Attributes:
        path: of the file of predictions.
        tiles: how many there are.
        networks: whose predictions it holds.
        embeddings: networks whose embeddings were kept.
        slides_before: slides that an interrupted prediction had done.
    """

    path: Path
    tiles: int
    networks: tuple[str, ...]
    embeddings: tuple[str, ...]
    slides_before: int


def run_predict_stage(
    config: Config,
    rows: Sequence[SlideRow],
    *,
    students_only: bool = False,
    embeddings: bool = False,
) -> PredictResult:
    """Predict all tiles with the networks of the run, or go on where a prediction stopped.

    Memory does not grow with the number of slides.

    Args:
        config: of the experiment.
        rows: of slides.csv.
        students_only: leave out what does not ship, such as the teacher.
        embeddings: keep each tile's pooled features, of the networks that ship, too.

    Raises:
        StageError: the run is not finished; tiles, labels, split or stain normalisation changed
            since; a network gives numbers that are not finite, or has no pooled features.
        TrainingError: a tile cannot be read.
    """
    completion = read_completion(config.run_folder)
    table = load_tile_table(config, rows)
    stain = stain_reference(config, table.tiles)
    _check_unchanged(config, completion, table, stain)
    graph = expand(load_method(config.train.method), len(config.train.students))
    cohort = build_cohort(config, graph)
    weights = {}
    for name, network in cohort.own_modules().items():
        path = config.run_folder / "networks" / f"{name}.safetensors"
        load_network(path, network)
        weights[name] = sha256_of_file(path)
    shipped = [name for name, one in completion["networks"].items() if one["deployed"]]
    networks = shipped if students_only else [node.name for node in graph.nodes]
    sizes = _embedding_sizes(config, cohort, shipped) if embeddings else {}
    parts = PredictionParts(
        config.run_folder,
        table.tiles,
        {
            "weights": weights,
            "networks": networks,
            "data": table.digest,
            "tiles": sha256_of_file(config.tiles_folder / INDEX_NAME),
            "stain": recorded(stain),
            "precision": config.train.precision,
            "features_of": shipped,
        },
    )
    kept = parts.embeddings(sizes) if sizes else {}
    before = len(parts.done)
    # One process does it, however many trained.
    fabric, _ = make_fabric(config.train.model_copy(update={"devices": 1}))
    if config.train.channels_last:
        cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fabric.to_device(cohort)
    cohort.eval()
    look = _students(cohort, networks) if students_only else _everyone(cohort)
    with sending_leftovers(config):
        _predict(config, table, stain, look, fabric, parts, kept, shipped)
    for file in kept.values():
        file.flush()
    return PredictResult(parts.assemble(), len(table.tiles), tuple(networks), tuple(kept), before)


def _check_unchanged(
    config: Config, completion: Mapping[str, Any], table: TileTable, stain: StainReference | None
) -> None:
    if completion["data_digest"] != table.digest:
        raise StageError(
            "was trained on other tiles, labels or roles than those now in place",
            where=config.run_folder,
            remedy="Train again with --restart, or bring the earlier tiles and split back.",
        )
    if completion.get("stain") != recorded(stain):
        raise StageError(
            "was trained with another stain normalisation than that in 'stain'",
            where=config.run_folder,
            remedy="Bring the earlier settings back, or train again with --restart.",
        )


def _embedding_sizes(config: Config, cohort: Cohort, shipped: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for name in shipped:
        size = embedding_size(cohort.alone(name), config.tile.size_px)
        if size is None:
            raise StageError(
                f"{name} has no pooled features that could be kept",
                where="--embeddings",
                remedy="Leave the option out, or train students that have stages ('medkd networks' "
                "says which).",
            )
        sizes[name] = size
    return sizes


def _everyone(cohort: Cohort) -> Looking:
    def look(images: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        seen = cohort.look(images, learning=False)
        return {name: (one.logits, one.pooled) for name, one in seen.items()}

    return look


def _students(cohort: Cohort, names: Sequence[str]) -> Looking:
    alone: dict[str, nn.Module] = {name: cohort.alone(name).eval() for name in names}
    return lambda images: {
        name: logits_and_pooled(network, images) for name, network in alone.items()
    }


@torch.no_grad()
def _predict(
    config: Config,
    table: TileTable,
    stain: StainReference | None,
    look: Looking,
    fabric: Fabric,
    parts: PredictionParts,
    kept: Mapping[str, np.ndarray],
    shipped: Sequence[str],
) -> None:
    """Every slide that is not done yet."""
    tiles = table.tiles
    todo = [slide for slide in parts.slide_ids if slide not in parts.done]
    remaining = tiles[tiles["slide_id"].isin(todo)]
    if remaining.empty:
        return
    positive = config.data.classes.index(config.data.positive)
    batches = slide_batches(config, remaining, stain=stain)
    with progress("predicting", len(tiles), done=len(tiles) - len(remaining)) as advance:
        for slide in todo:
            first, behind = parts.rows(slide)
            held: dict[str, list[np.ndarray]] = {}
            sums: list[TileSums] = []
            count = 0
            while count < behind - first:
                batch = next(batches)
                images = device_images(
                    batch, fabric.device, channels_last=config.train.channels_last
                )
                with fabric.autocast():
                    seen = look(images)
                embeddings: dict[str, np.ndarray] = {}
                for name, (logits, pooled) in seen.items():
                    probabilities = torch.softmax(logits.float(), dim=1)[:, positive]
                    held.setdefault(name, []).append(probabilities.cpu().numpy())
                    if name in shipped and pooled is not None:
                        embeddings[name] = pooled.float().cpu().numpy()
                    if name in kept:
                        half = embeddings[name].astype(np.float16)
                        held.setdefault(f"{name}/embedding", []).append(half)
                sums.append(TileSums.of(np.moveaxis(batch["image"].numpy(), 1, -1), embeddings))
                count += len(images)
                advance(len(images))
            whole = {name: np.concatenate(values) for name, values in held.items()}
            features = TileSums.together(sums).features()
            _check_finite(config, slide, {**whole, **features.means, **features.variances})
            for name, file in kept.items():
                file[first:behind] = whole.pop(f"{name}/embedding")
            parts.write(slide, whole, features)


def _check_finite(config: Config, slide_id: str, values: Mapping[str, np.ndarray]) -> None:
    for name, found in values.items():
        if not np.isfinite(found).all():
            raise StageError(
                f"{name} gives numbers that are not finite on tiles of slide '{slide_id}'",
                where=config.run_folder,
                remedy="The network is broken, or its features are too large for half precision: "
                "train again, with a lower train.learning_rate.",
            )
