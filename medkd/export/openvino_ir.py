"""The students as OpenVINO's intermediate representation (IR), a pair of files each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import ConfigError, ModelPackageError
from medkd.export.check import Said, check_same, reference
from medkd.export.kinds import ExportKind
from medkd.export.record import write_record
from medkd.inference.package import ModelPackage

# Processors with bfloat16 would use it by themselves, and keep two to three digits.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def write_openvino(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write ``<student>.xml`` and ``<student>.bin``; returns what is to be told of it.

    Inputs and outputs are those of the package's ONNX students.

    Raises:
        ConfigError: OpenVINO is not installed.
        ModelPackageError: the students are int8, or the IR says something else of tiles than they.
    """
    openvino = _openvino()
    if package.manifest.quantisation is not None:
        # OpenVINO 2026.4 differs from ONNX Runtime by up to 0.5 on the demo's int8 students.
        raise ModelPackageError(
            "has int8 students, of which OpenVINO makes other probabilities",
            where=package.folder,
            remedy="Export the version in float32; int8 goes --to onnx, mlflow or package.",
        )
    held = reference(package)
    core = openvino.Core()
    found = {}
    for student in package.manifest.students:
        path = folder / f"{student.name}.xml"
        # By itself it would round the weights to float16.
        openvino.save_model(
            openvino.convert_model(package.folder / student.onnx), path, compress_to_fp16=False
        )
        found[student.name] = _said(core.compile_model(path, "CPU", _EXACT), held.tiles)
    agreement = check_same("OpenVINO IR", package, held, found)
    release = openvino.__version__.partition("-")[0]
    write_record(folder, package, ExportKind.OPENVINO, agreement, {"openvino": release})
    return (f"OpenVINO {release}, weights in float32.", str(agreement))


def _said(model: Any, tiles: np.ndarray) -> Said:
    outputs = model(tiles)
    return {port.any_name: outputs[port] for port in model.outputs}


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(
            "OpenVINO is not installed",
            where="--to openvino",
            remedy="Install it: pip install 'medkd[openvino]'.",
        ) from error
    return openvino
