"""All students as one ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper

from medkd.errors import ModelPackageError
from medkd.export.check import Said, by_onnx, check_same, reference
from medkd.export.kinds import ExportKind
from medkd.export.record import write_record
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
    manifest = package.manifest
    nodes, values, outputs, initializers, functions = [], [], [], [], []
    opsets: dict[str, int] = {}
    ir_version = 0
    inputs: list[onnx.ValueInfoProto] = []
    for student in manifest.students:
        model = onnx.load(package.folder / student.onnx)
        for opset in model.opset_import:
            if opsets.setdefault(opset.domain, opset.version) != opset.version:
                raise ModelPackageError(
                    f"has students of the opsets {opsets[opset.domain]} and {opset.version}, which "
                    "one ONNX model cannot hold",
                    where=package.folder,
                    remedy="Use the students' own ONNX files, in the package's folder 'students'.",
                )
        ir_version = max(ir_version, model.ir_version)
        model = compose.add_prefix(model, f"{student.name}_", rename_inputs=False)
        graph = model.graph
        inputs = inputs or list(graph.input)
        nodes += list(graph.node)
        values += list(graph.value_info)
        outputs += list(graph.output)
        initializers += list(graph.initializer)
        functions += list(model.functions)
    names = [f"{student.name}_{_PROBABILITIES}" for student in manifest.students]
    nodes.append(helper.make_node("Mean", names, [_PROBABILITIES], name=_PROBABILITIES))
    mean = helper.make_tensor_value_info(
        _PROBABILITIES, TensorProto.FLOAT, ["tiles_in_batch", len(manifest.classes)]
    )
    fused = helper.make_model(
        helper.make_graph(
            nodes, "students", inputs, [mean, *outputs], initializers, value_info=values
        ),
        functions=functions,
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
        ir_version=ir_version,
        producer_name="medkd",
    )
    tile = manifest.preprocessing.tile
    helper.set_model_props(
        fused,
        {
            "model": f"{manifest.name} {manifest.version}",
            "model_sha256": package.sha256,
            "classes": ", ".join(manifest.classes),
            "tile": f"{tile.size_px} px at {tile.mpp:g} um/px",
            "research_use_only": "true",
        },
    )
    onnx.checker.check_model(fused, full_check=True)
    return fused


def write_onnx(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write ``model.onnx`` and the record; returns what is to be told of it.

    Raises:
        ModelPackageError: the model says something else of tiles than the students.
    """
    model = fused_onnx(package)
    onnx.save(model, folder / _FILE)
    held = reference(package)
    found = by_fused(package, folder / _FILE, held.tiles)
    agreement = check_same("one ONNX model", package, held, found)
    opset = opset_of(model)
    write_record(folder, package, ExportKind.ONNX, agreement, {"opset": opset})
    return (f"ONNX opset {opset}, IR version {model.ir_version}.", str(agreement))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model needs."""
    return next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


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
