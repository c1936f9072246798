"""An MLflow model as a folder: a table of slides in, a table of calls out."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np

from medkd.export.check import Said, check_same, positive_of, reference
from medkd.inference.mlflow_model import save_package
from medkd.inference.package import ModelPackage


def write_mlflow(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write the MLflow model; returns what is to be told of it.

    Raises:
        ModelPackageError: what MLflow loads says something else of tiles than the students.
    """
    save_package(package.folder, folder)
    held = positive_of(reference(package), package)
    agreement = check_same("MLflow model", package, held, _said_by_mlflow(folder, held.tiles))
    return (
        f"MLflow {mlflow.__version__}, pyfunc. It holds medkd's code; its requirements are pinned, "
        "without torch.",
        str(agreement),
    )


def _said_by_mlflow(folder: Path, tiles: np.ndarray) -> dict[str, Said]:
    caller = mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()
    seen = caller.students(tiles)
    return {name: {"probabilities": p[:, None]} for name, p in seen.probabilities.items()}
