"""The students as TorchScript, a file each: for programs that load torch models in C++ or Java."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from medkd.export.check import check_same, reference
from medkd.export.kinds import ExportKind
from medkd.export.record import write_record
from medkd.export.torch_students import torch_student
from medkd.inference.package import ModelPackage
from medkd.training.export import ShippedClassifier

_OUTPUTS = ("probabilities", "embeddings")


def write_torchscript(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write ``<student>.ts``; returns what is to be told of it.

    A file takes tiles, uint8 N x size_px x size_px x 3, RGB, and gives a tuple of probabilities,
    float32 N x classes, and, if the student has them, embeddings, float32 N x channels. The extra
    file ``medkd.json`` in it names the model.

    Raises:
        ModelPackageError: a student cannot be built as a torch network, or TorchScript says
            something else of tiles than the student.
    """
    manifest = package.manifest
    students = {one.name: torch_student(package, one) for one in manifest.students}
    held = reference(package)
    tile = manifest.preprocessing.tile
    example = torch.from_numpy(held.tiles[:2])
    label = {
        "model": f"{manifest.name} {manifest.version}",
        "model_sha256": package.sha256,
        "classes": manifest.classes,
        "tile_px": tile.size_px,
        "tile_mpp": tile.mpp,
        "research_use_only": True,
    }
    found = {}
    for name, network in students.items():
        path = folder / f"{name}.ts"
        # torch advises torch.export instead, whose files only Python and AOTInductor load.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            shipped = ShippedClassifier(network).eval().requires_grad_(False)
            traced = torch.jit.trace(shipped, (example,))
            torch.jit.save(traced, path, _extra_files={"medkd.json": json.dumps(label)})
            outputs = torch.jit.load(path)(torch.from_numpy(held.tiles))
        found[name] = {n: o.numpy() for n, o in zip(_OUTPUTS, outputs, strict=False)}
    agreement = check_same("TorchScript", package, held, found)
    write_record(folder, package, ExportKind.TORCHSCRIPT, agreement, {"torch": torch.__version__})
    return (f"TorchScript of torch {torch.__version__}, traced.", str(agreement))
