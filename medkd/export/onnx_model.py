"""All students as one ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from medkd.errors import ModelPackageError
from medkd.export.check import Said, by_onnx, check_same, reference
from medkd.export.kinds import ExportKind
from medkd.export.one_model import one_model, opset_of
from medkd.export.record import write_record
from medkd.files import write_bytes
from medkd.inference.fused import INPUT
from medkd.inference.package import ModelPackage

_FILE = "model.onnx"
_PROBABILITIES = "probabilities"
_OUTPUTS = (_PROBABILITIES, "embeddings")


def fused_onnx(package: ModelPackage) -> onnx.ModelProto:
    """All students side by side in one model.

    Returns:
        A model with the input ``tiles``, uint8 N x size_px x size_px x 3, RGB, and the outputs
        ``probabilities``, float32 N x classes, the mean of the students'; and of each student
        ``<name>_probabilities`` and, if it has them, ``<name>_embeddings``, float32 N x channels.

    Raises:
        ModelPackageError: the students are of different opsets.
    """
    tile = package.manifest.preprocessing.tile
    return one_model(
        package,
        takes=INPUT,
        mean_of=_PROBABILITIES,
        told={"tile": f"{tile.size_px} px at {tile.mpp:g} um/px"},
    )


def write_onnx(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write ``model.onnx`` and the record; returns what is to be told of it.

    Raises:
        ModelPackageError: the model says something else of tiles than the students.
    """
    model = fused_onnx(package)
    write_bytes(folder / _FILE, model.SerializeToString())
    held = reference(package)
    found = by_fused(package, folder / _FILE, held.tiles)
    agreement = check_same("one ONNX model", package, held, found)
    opset = opset_of(model)
    write_record(folder, package, ExportKind.ONNX, agreement, {"opset": opset})
    return (f"ONNX opset {opset}, IR version {model.ir_version}.", str(agreement))


def by_fused(package: ModelPackage, model: Path, tiles: np.ndarray) -> dict[str, Said]:
    """What a fused model says of tiles, by student; the mean is that of the students.

    Args:
        package: that it was made of.
        model: the file.
        tiles: uint8 N x size_px x size_px x 3.

    Raises:
        ModelPackageError: the mean is not the students'.
    """
    outputs = by_onnx(model, tiles)
    said: Mapping[str, dict[str, np.ndarray]] = {
        student.name: {
            name: outputs[f"{student.name}_{name}"]
            for name in _OUTPUTS
            if f"{student.name}_{name}" in outputs
        }
        for student in package.manifest.students
    }
    mean = np.mean([one[_PROBABILITIES] for one in said.values()], axis=0)
    if not np.allclose(outputs[_PROBABILITIES], mean, atol=1e-6):
        raise ModelPackageError(
            "as one ONNX model it gives another mean than that of its students",
            where=package.folder,
            remedy="Nothing was written. Please report it, with the names of the networks.",
        )
    return dict(said)
