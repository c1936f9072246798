"""One image through the students of a detector."""

from __future__ import annotations

import numpy as np
from monai.apps.detection.transforms.box_ops import resize_boxes

from medkd.datasets.box_transforms import ResizeBoxedImaged
from medkd.inference.detector_package import DetectorPackage
from medkd.inference.detector_students import DetectorStudents, together
from medkd.tasks.detections import Detections


class Detector:
    """Finds boxes in images of any size; several threads may call it at once.

    Args:
        package: the model.
        students: of the package, where they are loaded already.

    Raises:
        ModelPackageError: onnxruntime cannot load a student.
    """

    def __init__(self, package: DetectorPackage, students: DetectorStudents | None = None) -> None:
        manifest = package.manifest
        self._manifest = manifest
        self._students = students or DetectorStudents.of(package)
        # The very code that training images went through.
        self._resize = ResizeBoxedImaged(
            "image", manifest.image_px, keep_aspect=manifest.keep_aspect
        )

    def __call__(self, pixels: np.ndarray) -> Detections:
        """The boxes in an image, RGB, uint8 height x width x 3, in its own pixels.

        Raises:
            ModelPackageError: a student is broken.
        """
        manifest = self._manifest
        height, width = pixels.shape[:2]
        item = self._resize(
            {
                "image": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
                # The image's own outline: where it ends up says how to find the way back.
                "boxes": np.array([[0, 0, width, height]], np.float32),
            }
        )
        wide, high = item["boxes"][0, 2:].tolist()
        square = np.ascontiguousarray(item["image"].transpose(1, 2, 0))
        (found,) = together(
            self._students(square[None]),
            manifest.ensemble.kind,
            selection=manifest.selection,
            fusion_iou=manifest.ensemble.fusion_iou,
        )
        boxes = resize_boxes(found.boxes, (wide, high), (width, height))
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        # A box in the black beside the image is none.
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Detections(boxes[inside], found.scores[inside], found.classes[inside])
