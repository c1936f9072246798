"""The students of a detector's package: from images to one list of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medkd.errors import ModelPackageError
from medkd.inference.detector_package import DetectorPackage, Selection
from medkd.tasks.detections import Detections, mean_of_dense, select, weighted_box_fusion

INPUT, OUTPUT = "images", "predictions"

# float32 sigmoid may end this far outside of 0 to 1.
_ROUNDING = 1e-4


class DetectorStudents:
    """Students in ONNX sessions; loaded once.

    A call keeps to one thread, and several threads may call at once:
    docs/decisions/0004-inference-threads.md says why.

    Args:
        models: name to ONNX model.
        where: what errors tell of.

    Raises:
        ModelPackageError: onnxruntime cannot load a student.
    """

    def __init__(self, models: Mapping[str, bytes], where: object) -> None:
        self._where = where
        self._sessions = {name: _session(name, model, where) for name, model in models.items()}

    @classmethod
    def of(cls, package: DetectorPackage) -> DetectorStudents:
        """Those of a package."""
        students = package.manifest.students
        models = {one.name: (package.folder / one.onnx).read_bytes() for one in students}
        return cls(models, package.folder)

    def __call__(self, images: np.ndarray) -> list[Tensor]:
        """What each student says of images, uint8 N x S x S x 3: float32 N x A x (C + 4).

        Raises:
            ModelPackageError: a student gives something that is not a probability and a box.
        """
        found = []
        for name, session in self._sessions.items():
            (predictions,) = session.run([OUTPUT], {INPUT: images})
            probabilities = predictions[..., :-4]
            within = (probabilities >= -_ROUNDING) & (probabilities <= 1 + _ROUNDING)
            if not (within.all() and np.isfinite(predictions[..., -4:]).all()):
                raise ModelPackageError(
                    f"{name} gave a probability that is not a number between 0 and 1, or a box "
                    "that is not finite",
                    where=self._where,
                    remedy="The network is broken; use another model.",
                )
            np.clip(probabilities, 0, 1, out=probabilities)
            found.append(torch.from_numpy(predictions))
        return found


def together(
    predictions: Sequence[Tensor],
    kind: Literal["dense", "boxes"],
    *,
    selection: Selection,
    fusion_iou: float,
) -> list[Detections]:
    """One list of boxes for each image, of several networks' dense predictions.

    Args:
        predictions: of each network, float32 N x A x (C + 4).
        kind, fusion_iou: see :class:`medkd.inference.detector_package.DetectorEnsemble`.
        selection: which boxes are looked at.
    """
    selected = partial(
        select,
        least_score=selection.least_score,
        nms_iou=selection.nms_iou,
        most=selection.most,
    )
    if kind == "dense":
        return selected(mean_of_dense(predictions))
    return weighted_box_fusion(
        [selected(one) for one in predictions], iou=fusion_iou, most=selection.most
    )


def _session(name: str, model: bytes, where: object) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Images are worked on side by side, a thread each; threads within a run would wait for one
    # another.
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # those of onnxruntime and of protobuf share no other base
        raise ModelPackageError(
            f"onnxruntime {onnxruntime.__version__} cannot load {name}: {error}",
            where=where,
            remedy="Install the onnxruntime of the machine that made the package, or a later one.",
        ) from error
