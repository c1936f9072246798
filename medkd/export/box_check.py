"""How far an exported detector is from the package it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medkd.errors import ModelPackageError
from medkd.export.check import TOLERANCE
from medkd.inference.detector_package import DetectorPackage

TOLERANCE_PX = 1e-2

_OF = "the ONNX students of the package"


@dataclass(frozen=True)
class BoxAgreement:
    """How an export agreed with its reference.

    Attributes:
        of: the reference, in words.
        images: on how many.
        largest_difference: of any probability.
        tolerance: the largest that is allowed.
        largest_difference_px: of any edge of any anchor's box, in pixels of the model's square.
        tolerance_px: the largest that is allowed.
    """

    of: str
    images: int
    largest_difference: float
    tolerance: float
    largest_difference_px: float
    tolerance_px: float

    def __str__(self) -> str:
        return (
            f"Held against {self.of} on {self.images} drawn images: no probability differs by more "
            f"than {self.largest_difference:.1e} ({self.tolerance:g} is allowed), no box by more "
            f"than {self.largest_difference_px:.1e} px ({self.tolerance_px:g} px is allowed)."
        )


def check_same_boxes(
    package: DetectorPackage, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> BoxAgreement:
    """How well an export agrees with its reference.

    Args:
        package: that it was made of.
        expected: what the reference says of each output, float32 N x anchors x (classes + 4):
            probabilities and boxes.
        found: what the export gives.

    Raises:
        ModelPackageError: it does not agree well enough.
    """
    apart, apart_px = largest_differences(expected, found)
    if not (apart <= TOLERANCE and apart_px <= TOLERANCE_PX):
        raise ModelPackageError(
            f"as one ONNX model its probabilities differ from {_OF} by up to {apart:.2g}, and its "
            f"boxes by up to {apart_px:.2g} px; {TOLERANCE:g} and {TOLERANCE_PX:g} px are allowed",
            where=package.folder,
            remedy="Nothing was written. Please report it, with the names of the networks.",
        )
    images = len(next(iter(expected.values())))
    return BoxAgreement(_OF, images, apart, TOLERANCE, apart_px, TOLERANCE_PX)


def largest_differences(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """The largest difference of any probability, and that of any edge of a box, pixels.

    An output that is not in both, another shape, and what is not a number give infinity.
    """
    if expected.keys() != found.keys():
        return math.inf, math.inf
    probabilities, boxes = [0.0], [0.0]
    for name, values in expected.items():
        if values.shape != found[name].shape:
            return math.inf, math.inf
        apart = np.abs(values - found[name])
        apart[np.isnan(apart)] = math.inf
        probabilities.append(float(apart[..., :-4].max()))
        boxes.append(float(apart[..., -4:].max()))
    return max(probabilities), max(boxes)
