"""What the networks of a finished run find in images with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from medkd.config import Config
from medkd.config.load import read_resolved
from medkd.datasets.box_members import members
from medkd.datasets.boxes import BoxItems
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, expand
from medkd.distill.method import load_method
from medkd.errors import StageError
from medkd.files import sha256_of_file
from medkd.progress import progress
from medkd.tasks.detections import Detections, mean_of_dense, select, weighted_box_fusion
from medkd.training.box_set import BoxSet, load_box_set
from medkd.training.checkpoint import load_network, read_completion
from medkd.training.cohorts import build_cohort
from medkd.training.devices import make_fabric
from medkd.training.evaluation import predict_tiles
from medkd.yaml_file import read_yaml

DENSE, BOXES = "ensemble_dense", "ensemble_boxes"
"""The two ways in which the networks that ship become one: the mean of all their outputs at each
anchor, and weighted box fusion."""


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """What was found in the images of a role, and what is there.

    Attributes:
        images: paths below ``root``.
        root: of the images.
        sizes_px: width and height of the files, int32, images x 2.
        sources: of each image its patient, else its sequence, else its path, as
            :func:`medkd.datasets.box_members.members` names them: what resembles.
        truth: float32 images x M x 5: class number, x1, y1, x2, y2, pixels of the file; class -1
            for padding.
        found: of each network, and of :data:`DENSE` and :data:`BOXES` where several ship, what it
            found in each image, boxes in pixels of the file.
    """

    images: tuple[str, ...]
    root: Path
    sizes_px: np.ndarray
    sources: np.ndarray
    truth: np.ndarray
    found: Mapping[str, Sequence[Detections]]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished training of detectors.

    Attributes:
        completion: what it wrote about itself.
        graph: of its method.
        cohort: with the weights of the chosen epoch.
        data: its images.
        weights: SHA-256 of the file of each network.
    """

    completion: Mapping[str, Any]
    graph: Graph
    cohort: Cohort
    data: BoxSet
    weights: Mapping[str, str]

    @property
    def deployed(self) -> tuple[str, ...]:
        """Names of the nodes that ship."""
        networks = self.completion["networks"]
        return tuple(name for name, one in networks.items() if one["deployed"])


def load_finished_run(config: Config) -> FinishedRun:
    """The networks of a run as they are after training.

    Raises:
        StageError: the run is not finished; images, boxes, roles or the detector's settings changed
            since; the table of boxes or the split is missing.
        TrainingError: weights are missing, or of another architecture.
    """
    completion = read_completion(config.run_folder)
    data = load_box_set(config)
    _check_unchanged(config, completion, data)
    graph = expand(load_method(config.train.method), len(config.train.students))
    cohort = build_cohort(config, graph)
    weights = {}
    for name, network in cohort.own_modules().items():
        path = config.run_folder / "networks" / f"{name}.safetensors"
        load_network(path, network)
        weights[name] = sha256_of_file(path)
    return FinishedRun(completion, graph, cohort, data, weights)


def _check_unchanged(config: Config, completion: Mapping[str, Any], data: BoxSet) -> None:
    trained = read_resolved(read_yaml(config.run_folder / "config.yaml"))
    if trained.task != config.task:
        raise StageError(
            f"was trained for {trained.task}, not for {config.task}",
            where=config.run_folder,
            remedy="Give the configuration that it was trained with.",
        )
    before, now = (one.detection.model_dump(exclude={"boxes"}) for one in (trained, config))
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        key = changed[0]
        raise StageError(
            f"was trained with detection.{key} {_told(before[key])}, and it is {_told(now[key])} "
            "now",
            where=config.run_folder,
            remedy="Bring the earlier settings back, or train again with --restart.",
        )
    if completion["data_digest"] != data.digest:
        raise StageError(
            "was trained on other images, boxes or roles than those now in place",
            where=config.run_folder,
            remedy="Train again with --restart, or bring the earlier boxes and split back.",
        )


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def predict_boxes(
    config: Config, run: FinishedRun, roles: Sequence[str] = ("validation", "test")
) -> dict[str, FoundBoxes]:
    """What every network, and those that ship together, find in the images of some roles.

    Memory grows with what is found, not with the number of anchors.

    Raises:
        StageError: a network gives numbers that are not finite.
        TrainingError: an image cannot be read.
    """
    fabric, _ = make_fabric(config.train.model_copy(update={"devices": 1}))
    if config.train.channels_last:
        run.cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fabric.to_device(run.cohort)
    total = sum(len(run.data.items[role]) for role in roles)
    found = {}
    with progress("predicting", total) as advance:
        for role in roles:
            held: dict[str, list[Detections]] = {}
            for batch in run.data.batches(role):
                for name, detections in _found_in(config, run, fabric, batch).items():
                    held.setdefault(name, []).extend(detections)
                advance(len(batch["image"]))
            found[role] = images_of(run.data, role, held)
    return found


def _found_in(
    config: Config, run: FinishedRun, fabric: Fabric, batch: dict[str, Tensor]
) -> dict[str, list[Detections]]:
    """What is found in the images of a batch, boxes in pixels of what networks see."""
    settings = config.detection
    dense, _ = predict_tiles(run.cohort, fabric, [batch])
    for name, predictions in dense.items():
        if not predictions.isfinite().all():
            raise StageError(
                f"{name} gives numbers that are not finite",
                where=config.run_folder,
                remedy="Train again, with a lower train.learning_rate.",
            )
    if len(run.deployed) > 1:
        dense[DENSE] = mean_of_dense([dense[name] for name in run.deployed])
    found = {
        name: select(predictions, least_score=settings.least_score, nms_iou=settings.nms_iou)
        for name, predictions in dense.items()
    }
    if len(run.deployed) > 1:
        members = [found[name] for name in run.deployed]
        found[BOXES] = weighted_box_fusion(members, iou=settings.fusion_iou)
    return found


def images_of(
    data: BoxSet, role: str, found: Mapping[str, Sequence[Detections]] | None = None
) -> FoundBoxes:
    """The images of a role.

    Args:
        data: of the run.
        role: of the split.
        found: what each network found in them, boxes in pixels of what networks see.
    """
    items, settings = data.items[role], data.config.detection
    names = tuple(items.names.to_pylist())
    known = data.table.images.set_index("image", drop=False).loc[list(names)]
    return FoundBoxes(
        images=names,
        root=items.root,
        sizes_px=items.sizes_px,
        sources=members(known).to_numpy(dtype=object).astype(str),
        truth=_padded(items),
        found={
            name: [
                in_file(one, (int(width), int(height)), settings.image_px, settings.keep_aspect)
                for one, (width, height) in zip(detections, items.sizes_px, strict=True)
            ]
            for name, detections in (found or {}).items()
        },
    )


def in_file(
    detections: Detections, size_px: tuple[int, int], image_px: int, keep_aspect: bool
) -> Detections:
    """Detections in a square that an image was resized to, brought back to the image.

    Boxes are cut at the image's edges; one that lies in what was added to fill the square is left
    out.

    Args:
        detections: boxes in pixels of the square.
        size_px: width and height of the image.
        image_px: side of the square.
        keep_aspect: as of :class:`medkd.datasets.box_transforms.ResizeBoxedImaged`, whose inverse
            this is.
    """
    longer = max(size_px) if keep_aspect else None
    shown = [max(1, round(side * image_px / (longer or side))) for side in size_px]
    scale = np.array([size / side for size, side in zip(size_px, shown, strict=True)] * 2)
    rim = np.array(size_px * 2, np.float32)
    boxes = np.clip((detections.boxes * scale).astype(np.float32), 0, rim)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Detections(boxes[kept], detections.scores[kept], detections.classes[kept])


def _padded(items: BoxItems) -> np.ndarray:
    truth = np.zeros((len(items), int(items.counts.max(initial=0)), 5), np.float32)
    truth[..., 0] = -1
    for row, item in zip(truth, items, strict=True):
        count = len(item["labels"])
        row[:count, 0], row[:count, 1:] = item["labels"], item["boxes"]
    return truth
