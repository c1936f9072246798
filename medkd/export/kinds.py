"""What a model package can be exported to."""

from __future__ import annotations

from enum import StrEnum


class ExportKind(StrEnum):
    """The choices of ``medkd export --to``."""

    MLFLOW = "mlflow"
    BUNDLE = "bundle"
    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    OPENVINO = "openvino"
    PACKAGE = "package"


CALLS_SLIDES = frozenset({ExportKind.MLFLOW, ExportKind.BUNDLE})
"""Those that call slides, and so need an operating point; the others give tiles' probabilities."""
