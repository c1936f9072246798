"""The export stage: a package in, a folder that another program takes out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medkd.errors import ConfigError
from medkd.export.kinds import CALLS_SLIDES, ExportKind
from medkd.files import make_folder
from medkd.inference.detector_package import TASK as DETECTION
from medkd.inference.detector_package import load_detector_package
from medkd.inference.new_version import check_new_folder, folder_in_place
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.package_files import task_of


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where.
        files: relative path and size, bytes, of each file; of a folder within a folder, of all
            that is in it.
        lines: what is to be told of it, a sentence each.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    lines: tuple[str, ...]


def run_export_stage(
    model: Path, kind: ExportKind, out: Path, *, calibrate: Path | None = None
) -> Exported:
    """Export a package: ``out`` is whole and was held against the package, or it is absent.

    Args:
        model: the package, left as it is.
        kind: to what.
        out: must not exist.
        calibrate: a tiles folder or a slide: the students become int8 first, their ranges set on
            its tiles. None: they stay as they are.

    Raises:
        ModelPackageError: the package is not whole, cannot be exported to this, or the export says
            something else of tiles than the package.
        OutputError: ``out`` is there already, or cannot be written.
        ConfigError: a library that the kind needs is not installed, a package is to be exported
            as it is, or the model finds boxes and is to be something else than ONNX.
        StageError, SlideError: the tiles to calibrate on cannot be used.
    """
    if task_of(model) == DETECTION:
        return _of_detector(model, kind, out, quantised=calibrate is not None)
    if kind is ExportKind.PACKAGE and calibrate is None:
        raise ConfigError(
            "a package is what there is already",
            where="--to package",
            remedy="Add --int8 --calibrate TILES, or name another kind.",
        )
    package = load_package(model, needs_operating_point=kind in CALLS_SLIDES)
    check_new_folder(out, model)
    with folder_in_place(out) as folder, tempfile.TemporaryDirectory() as place:
        make_folder(folder)
        lines: tuple[str, ...] = ()
        if calibrate is not None:
            from medkd.export.int8_package import write_int8_package

            to = folder if kind is ExportKind.PACKAGE else Path(place) / "model"
            package, lines = write_int8_package(package, to, calibrate)
        if kind is not ExportKind.PACKAGE:
            lines += _writer(kind)(package, folder)
    return exported(out, lines)


def _of_detector(model: Path, kind: ExportKind, out: Path, *, quantised: bool) -> Exported:
    if kind is not ExportKind.ONNX:
        raise ConfigError(
            f"finds boxes in images, and is exported to onnx alone, not to {kind}",
            where=model,
            remedy="Give --to onnx; docs/export.md says what comes out.",
        )
    if quantised:
        raise ConfigError(
            "finds boxes in images, and 8-bit integers are for models that call slides",
            where=model,
            remedy="Leave out --int8 and --calibrate.",
        )
    package = load_detector_package(model)
    check_new_folder(out, model)
    with folder_in_place(out) as folder:
        from medkd.export.detector_onnx import write_detector_onnx

        make_folder(folder)
        lines = write_detector_onnx(package, folder)
    return exported(out, lines)


def exported(folder: Path, lines: tuple[str, ...]) -> Exported:
    """What lies in the folder of an export; a folder within a folder of it counts as one."""
    sizes: Counter[str] = Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        name = "/".join(parts) if len(parts) <= 2 else f"{parts[0]}/{parts[1]}/"
        sizes[name] += path.stat().st_size
    return Exported(folder, tuple(sizes.items()), lines)


def _writer(kind: ExportKind) -> Callable[[ModelPackage, Path], tuple[str, ...]]:
    # Imported one by one: each brings a heavy library.
    if kind is ExportKind.ONNX:
        from medkd.export.onnx_model import write_onnx

        return write_onnx
    if kind is ExportKind.MLFLOW:
        from medkd.export.mlflow_folder import write_mlflow

        return write_mlflow
    if kind is ExportKind.BUNDLE:
        from medkd.export.bundle import write_bundle

        return write_bundle
    if kind is ExportKind.OPENVINO:
        from medkd.export.openvino_ir import write_openvino

        return write_openvino
    if kind is ExportKind.TORCHSCRIPT:
        from medkd.export.torchscript import write_torchscript

        return write_torchscript
    raise ValueError(f"no writer of {kind}")
