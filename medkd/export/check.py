"""What an export must say of tiles, and how far it is from that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from medkd.errors import ModelPackageError
from medkd.export.torch_students import NoTorchNetworkError, torch_student
from medkd.inference.package import ModelPackage
from medkd.slides.synthetic import SlideSpec
from medkd.slides.synthetic.drawing import draw_slide
from medkd.training.export import ShippedClassifier

TOLERANCE = 1e-4
INT8_TOLERANCE = 1e-2

_ROWS = 4
_NOISE = 4
_AT_ONCE = 5

Said: TypeAlias = Mapping[str, np.ndarray]
"""What a student says of N tiles, float32: ``probabilities``, N x classes, and, if it has them,
``embeddings``, N x channels."""


@dataclass(frozen=True)
class Reference:
    """What an export is held against.

    Attributes:
        tiles: uint8 N x size_px x size_px x 3, RGB.
        said: by student.
        of: what said it, in words.
        tolerance: how far an export may be from it.
    """

    tiles: np.ndarray
    said: Mapping[str, Said]
    of: str
    tolerance: float


@dataclass(frozen=True)
class Agreement:
    """How an export agreed with its reference.

    Attributes:
        of: the reference, in words.
        tiles: on how many.
        largest_difference: of any probability.
        tolerance: the largest that is allowed.
    """

    of: str
    tiles: int
    largest_difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"Held against {self.of} on {self.tiles} drawn tiles: no probability differs by more "
            f"than {self.largest_difference:.1e} ({self.tolerance:g} is allowed)."
        )


def drawn_tiles(size_px: int, mpp: float) -> np.ndarray:
    """Tiles of a drawn slide, and of noise: uint8 N x size_px x size_px x 3, always the same."""
    side_px = max(_ROWS * size_px, 256)
    slide = draw_slide(SlideSpec("MSI", 7, side_px, side_px, float(np.clip(mpp, 0.2, 1))))
    step = side_px // _ROWS
    corners = [(y * step, x * step) for y in range(_ROWS) for x in range(_ROWS)]
    drawn = [slide[y : y + size_px, x : x + size_px] for y, x in corners]
    random = np.random.default_rng(7)
    noise = random.integers(0, 256, (_NOISE, size_px, size_px, 3), np.uint8)
    return np.concatenate([np.stack(drawn), noise])


def by_onnx(model: Path | bytes, tiles: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of tiles: every output by its name.

    Args:
        model: a file, or what is in one; with one input.
        tiles: uint8 N x size_px x size_px x 3.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    (takes,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    # A few at once: detectors take images of many pixels.
    parts = [
        session.run(names, {takes.name: tiles[start : start + _AT_ONCE]})
        for start in range(0, len(tiles), _AT_ONCE)
    ]
    return {name: np.concatenate(of) for name, *of in zip(names, *parts, strict=True)}


def by_torch(package: ModelPackage, tiles: np.ndarray) -> dict[str, Said]:
    """What the students' torch networks say of tiles, by student.

    Raises:
        ModelPackageError: a student cannot be built as a torch network; see :func:`torch_student`.
    """
    said: dict[str, Said] = {}
    for student in package.manifest.students:
        shipped = ShippedClassifier(torch_student(package, student)).eval()
        with torch.no_grad():
            outputs = shipped(torch.from_numpy(tiles))
        names = ("probabilities", "embeddings")[: len(outputs)]
        said[student.name] = {n: o.numpy() for n, o in zip(names, outputs, strict=True)}
    return said


def reference(package: ModelPackage) -> Reference:
    """What an export of a package is held against: the students in torch.

    Students that have no torch network of their own, and int8 students, are held against their
    ONNX.
    """
    tile = package.manifest.preprocessing.tile
    tiles = drawn_tiles(tile.size_px, tile.mpp)
    quantised = package.manifest.quantisation is not None
    if not quantised:
        with contextlib.suppress(NoTorchNetworkError):
            return Reference(tiles, by_torch(package, tiles), "torch", TOLERANCE)
    said = {
        student.name: by_onnx(package.folder / student.onnx, tiles)
        for student in package.manifest.students
    }
    of = "the int8 students of the package" if quantised else "the ONNX students of the package"
    return Reference(tiles, said, of, INT8_TOLERANCE if quantised else TOLERANCE)


def positive_of(held: Reference, package: ModelPackage) -> Reference:
    """A reference of the probability of the positive class alone, N x 1."""
    index = package.manifest.classes.index(package.manifest.positive)
    said = {
        student: {"probabilities": outputs["probabilities"][:, index : index + 1]}
        for student, outputs in held.said.items()
    }
    return replace(held, said=said)


def largest_difference(expected: Mapping[str, Said], found: Mapping[str, Said]) -> float:
    """The largest difference of any probability, of any tile, class and student.

    Embeddings count by their share of the largest of the student's. A student or an output that
    is not in both, another shape, and what is not a number give infinity.
    """
    if expected.keys() != found.keys():
        return math.inf
    largest = 0.0
    for student, outputs in expected.items():
        if outputs.keys() != found[student].keys():
            return math.inf
        for name, values in outputs.items():
            if values.shape != found[student][name].shape:
                return math.inf
            apart = float(np.abs(values - found[student][name]).max())
            if name == "embeddings":
                apart /= max(float(np.abs(values).max()), 1e-6)
            largest = max(largest, math.inf if math.isnan(apart) else apart)
    return largest


def check_same(
    what: str, package: ModelPackage, held: Reference, found: Mapping[str, Said]
) -> Agreement:
    """How well an export agrees with its reference.

    Raises:
        ModelPackageError: not well enough.
    """
    apart = largest_difference(held.said, found)
    if not apart <= held.tolerance:
        raise ModelPackageError(
            f"as {what} its students differ from {held.of} by up to {apart:.2g}; "
            f"{held.tolerance:g} is allowed",
            where=package.folder,
            remedy="Nothing was written. Please report it, with the names of the networks.",
        )
    return Agreement(held.of, len(held.tiles), apart, held.tolerance)
