"""The students of a package side by side in one ONNX model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from medkd.errors import ModelPackageError
from medkd.inference.detector_package import DetectorPackage
from medkd.inference.fused import fused
from medkd.inference.package import ModelPackage


def one_model(
    package: ModelPackage | DetectorPackage,
    *,
    takes: str,
    mean_of: str | None,
    told: Mapping[str, str],
) -> onnx.ModelProto:
    """All students of a package in one model.

    Args:
        package: whose students give the same outputs.
        takes: name of their input, and of the model's.
        mean_of: an output of theirs, whose mean over them becomes the model's first, under the same
            name; None: there is no mean.
        told: what the model's metadata say beside the package, its classes and its use.

    Returns:
        A model that gives ``<student>_<output>`` for each output of each student, and that mean.

    Raises:
        ModelPackageError: the students are of different opsets.
    """
    manifest = package.manifest
    models = {one.name: onnx.load(package.folder / one.onnx) for one in manifest.students}
    versions = sorted({opset_of(model) for model in models.values()})
    if len(versions) > 1:
        raise ModelPackageError(
            f"has students of the opsets {' and '.join(map(str, versions))}, which one ONNX model "
            "cannot hold",
            where=package.folder,
            remedy="Use the students' own ONNX files, in the package's folder 'students'.",
        )
    model = fused(models, takes)
    if mean_of is not None:
        _add_mean(model, mean_of, [f"{name}_{mean_of}" for name in models])
    model.producer_name = "medkd"
    helper.set_model_props(
        model,
        {
            "model": f"{manifest.name} {manifest.version}",
            "model_sha256": package.sha256,
            "classes": ", ".join(manifest.classes),
            **told,
            "research_use_only": "true",
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model needs."""
    return next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _add_mean(model: onnx.ModelProto, name: str, of: list[str]) -> None:
    """Add the mean of outputs of one shape to a model, as its first output."""
    mean = onnx.ValueInfoProto()
    mean.CopyFrom(next(output for output in model.graph.output if output.name == of[0]))
    mean.name = name
    model.graph.node.append(helper.make_node("Mean", of, [name], name=name))
    model.graph.output.insert(0, mean)
