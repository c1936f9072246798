"""The model package of a finished training for detection: students only."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medkd import __version__
from medkd.config import Config
from medkd.datasets.split import ROLES
from medkd.inference.detector_package import (
    SCHEMA_VERSION,
    TASK,
    Selection,
    write_package_of_detector,
)
from medkd.inference.detector_students import INPUT, OUTPUT, DetectorStudents, together
from medkd.inference.overlap import overlapped, usable_cores
from medkd.networks.zoo import count_parameters
from medkd.progress import progress, warn
from medkd.tasks import detection_metrics
from medkd.tasks.detections import Detections
from medkd.training.cohorts import configured_task, node_record
from medkd.training.devices import Ranks
from medkd.training.export import export_safetensors, onnx_of
from medkd.training.training_set import Shipped

if TYPE_CHECKING:
    from medkd.distill.task import Task
    from medkd.training.box_set import BoxSet

Kind = Literal["dense", "boxes"]
_KINDS: tuple[Kind, ...] = ("dense", "boxes")

# Of all classes together, as COCO counts them.
_MOST_BOXES = 100


class ShippedDetector(nn.Module):
    """Takes what a decoder gives, and gives boxes that need no anchors to be read.

    Args:
        network: takes RGB in [0, 1], float N x 3 x S x S; gives logits, N x A x (C + 4).
        task: makes predictions of them.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities and boxes, float32 N x A x (C + 4), of RGB images, uint8 N x S x S x 3."""
        return self.task.predictions(
            self.network(images.permute(0, 3, 1, 2).to(torch.float32) / 255)
        )


def detector_onnx(network: nn.Module, task: Task, image_px: int) -> bytes:
    """Export a detector as ONNX.

    Args:
        network: takes RGB in [0, 1], float N x 3 x S x S; gives logits, N x A x (C + 4).
        task: whose anchors it has.
        image_px: S.

    Returns:
        A model with the input ``images``, uint8 N x S x S x 3 with N free, and the output
        ``predictions``, float32 N x A x (C + 4): probabilities, and boxes x1, y1, x2, y2 in pixels
        of the square, cut at its edges.
    """
    shipped = ShippedDetector(network.cpu(), task).eval()
    with torch.no_grad():
        # The anchors are kept from the first use on, which must not be the exporter's.
        shipped(torch.zeros(1, image_px, image_px, 3, dtype=torch.uint8))
    return onnx_of(shipped, image_px, takes=INPUT, gives=[OUTPUT])


def write_detector_package(config: Config, data: BoxSet, shipped: Shipped) -> None:
    """Write ``<run>/model`` with the deployed nodes as they are now.

    What ships is what looks at the validation images: how the students' boxes become one list,
    where the configuration leaves that open, and the threshold are chosen by it.
    """
    settings, graph = config.detection, shipped.graph
    task = configured_task(config)
    files: dict[str, bytes] = {}
    students: list[dict[str, Any]] = []
    for name in shipped.deployed:
        network = shipped.cohort.alone(name)
        paths = {kind: f"students/{name}.{kind}" for kind in ("onnx", "safetensors")}
        files[paths["onnx"]] = detector_onnx(network, task, settings.image_px)
        files[paths["safetensors"]] = export_safetensors(network)
        students.append(
            {
                "name": name,
                **node_record(config, graph, graph.node(name)),
                "parameters": count_parameters(network),
                **paths,
            }
        )
    selection = Selection(
        least_score=settings.least_score, nms_iou=settings.nms_iou, most=_MOST_BOXES
    )
    running = DetectorStudents(
        {one["name"]: files[one["onnx"]] for one in students}, config.model_folder
    )
    metrics = _on_validation(running, data, selection, settings.fusion_iou)
    best: Kind = max(_KINDS, key=lambda kind: metrics[kind]["ap50"])
    kind: Kind = best if settings.ensemble == "auto" else settings.ensemble
    threshold = metrics[kind].pop("threshold")
    if threshold == 1:
        warn("No box that was found in a validation image is right: the model will call none.")
    created = datetime.now(UTC)
    counts = data.counts()
    write_package_of_detector(
        config.model_folder,
        {
            "schema_version": SCHEMA_VERSION,
            "name": config.mlflow.registered_model or config.run_name,
            "version": created.strftime("%Y.%m.%d.%H%M%S"),
            "created": created.isoformat(timespec="seconds"),
            "task": TASK,
            "research_use_only": True,
            "classes": list(settings.classes),
            "image_px": settings.image_px,
            "keep_aspect": settings.keep_aspect,
            "anchors": {
                "strides": list(settings.strides),
                "sizes": list(settings.anchor_sizes),
                "ratios": list(settings.anchor_ratios),
                "channels": settings.channels,
            },
            "students": students,
            "ensemble": {
                "kind": kind,
                "fusion_iou": settings.fusion_iou,
                "validation_ap50": {one: metrics[one]["ap50"] for one in _KINDS},
            },
            "selection": selection.model_dump(mode="json"),
            "threshold": threshold,
            "validation": metrics[kind],
            "provenance": {
                "run_id": shipped.run_id,
                "experiment": config.mlflow.experiment,
                "run_name": config.run_name,
                "method": graph.method,
                "seed": config.seed,
                "epochs": config.train.epochs,
                "best_epoch": shipped.best_epoch,
                "data_digest": data.digest,
                **{
                    what: {role: counts[f"{role}.{what}"] for role in ROLES}
                    for what in ("images", "boxes", "images_without_boxes")
                },
                "software": f"medkd {__version__}",
                "torch": torch.__version__,
            },
        },
        files,
    )


def _on_validation(
    students: DetectorStudents, data: BoxSet, selection: Selection, fusion_iou: float
) -> dict[Kind, dict[str, float]]:
    """Figures on validation images of each way to one list, at its best threshold."""

    def look(batch: dict[str, Tensor]) -> dict[Kind, list[Detections]]:
        images = np.ascontiguousarray(batch["image"].permute(0, 2, 3, 1).numpy())
        predictions = students(images)
        return {
            kind: together(predictions, kind, selection=selection, fusion_iou=fusion_iou)
            for kind in _KINDS
        }

    found: dict[Kind, list[Detections]] = {kind: [] for kind in _KINDS}
    labels: list[Tensor] = []
    batches = data.validation_batches(Ranks())
    with (
        progress("choosing", len(data.items["validation"])) as advance,
        closing(overlapped(look, batches, threads=usable_cores())) as looked,
    ):
        for batch, seen in looked:
            labels.append(batch["label"])
            for kind in _KINDS:
                found[kind] += seen[kind]
            advance(len(batch["label"]))
    truth = torch.cat(labels)
    return {
        kind: detection_metrics.metrics(found[kind], truth, data.items["validation"].classes)
        for kind in _KINDS
    }
