"""The model package as an MLflow model: a table of slide paths in, a table of calls out.

MLflow runs this file to make the model ("models from code"), so nothing is pickled.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

_PACKAGE = "medkd_package"

# What a call imports, beside medkd's own files, which come along: no torch, no MONAI.
_REQUIREMENTS = (
    "imagecodecs", "jinja2", "matplotlib", "numpy", "onnx", "onnxruntime", "openslide-bin",
    "openslide-python", "pandas", "pillow", "psutil", "pyarrow", "pydantic", "pydicom", "PyYAML",
    "reportlab", "rich", "safetensors", "scikit-image", "scipy", "simplejpeg", "tifffile",
)  # fmt: skip

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "slide"),
            ColSpec(DataType.double, "mpp", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "slide_id"),
            ColSpec(DataType.string, "call"),
            ColSpec(DataType.double, "probability_msi"),
            ColSpec(DataType.double, "lower"),
            ColSpec(DataType.double, "upper"),
            ColSpec(DataType.double, "disagreement"),
            ColSpec(DataType.string, "reasons"),
            ColSpec(DataType.string, "error"),
        ]
    ),
)


class SlideCaller(PythonModel):  # type: ignore[misc, unused-ignore]
    """Calls slides with a model package. Research use only.

    Attributes:
        students: of the package, once the context is loaded.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Check the package and load its students."""
        from medkd.inference.engine import Students
        from medkd.inference.package import load_package

        self._package = load_package(Path(context.artifacts[_PACKAGE]))
        self.students = Students(self._package)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  (MLflow's signature)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """A row for each slide; one that cannot be used has the reason in ``error``."""
        from medkd.inference.infer_stage import infer_for_table
        from medkd.inference.slide_files import slide_id_of

        rows = []
        # MLflow passes a dictionary of lists as one row of lists.
        for row in model_input.explode(list(model_input.columns)).to_dict("records"):
            path, mpp = Path(row["slide"]), row.get("mpp")
            result, error = infer_for_table(
                path, self._package, self.students, None if pd.isna(mpp) else float(mpp)
            )
            interval = (None, None) if result is None else (result.interval or (None, None))
            rows.append(
                {
                    "slide_id": slide_id_of(path),
                    "call": "no result" if result is None else result.call,
                    "probability_msi": None if result is None else result.probability_msi,
                    "lower": interval[0],
                    "upper": interval[1],
                    "disagreement": None if result is None else result.disagreement,
                    "reasons": "" if result is None else " ".join(result.reasons),
                    "error": error,
                }
            )
        return pd.DataFrame(rows, columns=SIGNATURE.outputs.input_names())


def _model_of(folder: Path) -> dict[str, Any]:
    """What MLflow is given of a package: its files, medkd's code, and pinned requirements."""
    import medkd

    return {
        "python_model": str(Path(__file__)),
        "artifacts": {_PACKAGE: str(folder)},
        "signature": SIGNATURE,
        "code_paths": [str(Path(medkd.__file__).parent)],
        "pip_requirements": [f"{name}=={version(name)}" for name in _REQUIREMENTS],
    }


def save_package(package: Path, folder: Path) -> None:
    """Write a model package as an MLflow model that needs no store, no network and no medkd.

    Args:
        package: the folder of the package.
        folder: empty, or not there.
    """
    with _without_advice():
        mlflow.pyfunc.save_model(path=str(folder), **_model_of(package))
    # MLflow writes down where on this machine the files were; it loads them from the folder.
    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """An input example would be a path on this machine, stored with the model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")
        yield


@contextlib.contextmanager
def _in_store(uri: str) -> Iterator[None]:
    """Have MLflow's global functions use ``uri``, and undo it: MLflow keeps it in the environment,
    where the next experiment of this process would take it for the user's own choice.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def log_package(
    folder: Path, run_id: str, registered_name: str | None, *, tracking_uri: str
) -> ModelInfo:
    """Log a model package to a run of a store, and register it if a name is given."""
    with (
        _in_store(tracking_uri),
        mlflow.start_run(run_id=run_id),
        _without_advice(),
        # MLflow tells of the registration on standard error; the caller tells it better.
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return mlflow.pyfunc.log_model(
            name="model", registered_model_name=registered_name, **_model_of(folder)
        )


if __name__ != "medkd.inference.mlflow_model":
    set_model(SlideCaller())
