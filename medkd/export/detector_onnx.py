"""A detector as one ONNX model: all students, and what the shipped ensemble makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from medkd.export.box_check import check_same_boxes
from medkd.export.check import by_onnx, drawn_tiles
from medkd.export.kinds import ExportKind
from medkd.export.one_model import one_model, opset_of
from medkd.export.record import write_record
from medkd.files import write_bytes
from medkd.inference.detector_package import DetectorPackage
from medkd.inference.detector_students import INPUT, OUTPUT, DetectorStudents
from medkd.tasks.detections import CANDIDATES, mean_of_dense

_FILE = "model.onnx"
_DRAWN_MPP = 1.0

# What medkd.datasets.box_transforms.ResizeBoxedImaged does, for programs that do it anew.
_SQUARE = {"resampling": "bilinear, antialiased", "place": "upper left", "fill": 0}


def write_detector_onnx(package: DetectorPackage, folder: Path) -> tuple[str, ...]:
    """Write ``model.onnx`` and the record; returns what is to be told of it.

    Raises:
        ModelPackageError: a student is broken, they are of different opsets, or the model says
            something else of images than they.
    """
    images = drawn_tiles(package.manifest.image_px, _DRAWN_MPP)
    expected = _said_by_package(package, images)
    model = detector_onnx(package)
    write_bytes(folder / _FILE, model.SerializeToString())
    agreement = check_same_boxes(package, expected, by_onnx(folder / _FILE, images))
    opset, ensemble = opset_of(model), package.manifest.ensemble
    if ensemble.kind == "dense":
        boxes_from = [OUTPUT]
        told = f"Boxes are selected from '{OUTPUT}', the mean of the students' predictions"
    else:
        boxes_from = _outputs(package)
        told = (
            f"There is no '{OUTPUT}' of all students: boxes are selected from each one's and then "
            f"fused, where they overlap by more than {ensemble.fusion_iou:g}"
        )
    write_record(
        folder,
        package,
        ExportKind.ONNX,
        agreement,
        {"opset": opset, "square": _SQUARE, "boxes_from": boxes_from, "candidates": CANDIDATES},
    )
    return (
        f"ONNX opset {opset}, IR version {model.ir_version}.",
        f"{told}; export.json says how.",
        str(agreement),
    )


def detector_onnx(package: DetectorPackage) -> onnx.ModelProto:
    """All students side by side in one model.

    Returns:
        A model with the input ``images``, uint8 N x image_px x image_px x 3, RGB, and for each
        student the output ``<name>_predictions``, float32 N x anchors x (classes + 4):
        probabilities, then x1, y1, x2, y2 in pixels of the square. Where the mean of them ships, it
        comes first, as ``predictions``; weighted box fusion, which no ONNX operator does, is left
        to whoever reads the boxes.

    Raises:
        ModelPackageError: the students are of different opsets.
    """
    manifest = package.manifest
    return one_model(
        package,
        takes=INPUT,
        mean_of=OUTPUT if manifest.ensemble.kind == "dense" else None,
        told={"image": f"{manifest.image_px} px", "ensemble": manifest.ensemble.kind},
    )


def _said_by_package(package: DetectorPackage, images: np.ndarray) -> dict[str, np.ndarray]:
    """What each output must be: of images one by one, as ``medkd infer`` looks at them."""
    students = DetectorStudents.of(package)
    of_images = [students(image[None]) for image in images]
    predictions = [torch.cat(of_student) for of_student in zip(*of_images, strict=True)]
    said = {name: one.numpy() for name, one in zip(_outputs(package), predictions, strict=True)}
    if package.manifest.ensemble.kind == "dense":
        said[OUTPUT] = mean_of_dense(predictions).numpy()
    return said


def _outputs(package: DetectorPackage) -> list[str]:
    return [f"{student.name}_{OUTPUT}" for student in package.manifest.students]
