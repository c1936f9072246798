"""One image through students that find a white square: its box, in the image's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.errors import ModelPackageError
from medkd.inference.detect import Detector
from medkd.inference.detector_package import load_detector_package
from tests.inference.square_finders import image_with_square, write_finders


def found(folder: Path, pixels: np.ndarray):
    return Detector(load_detector_package(folder))(pixels)


@pytest.mark.parametrize(
    ("size", "keep_aspect", "box"),
    [
        ((64, 64), True, (10, 20, 31, 45)),
        ((512, 256), True, (128, 64, 256, 192)),  # an eighth, black below
        ((256, 512), True, (0, 256, 128, 512)),  # black to the right, the box at the rim
        ((32, 16), True, (4, 2, 12, 10)),  # twice as large
        ((256, 128), False, (64, 32, 128, 96)),  # each axis by itself
        ((64, 1), True, (8, 0, 24, 1)),
    ],
)
def test_the_box_comes_back_in_pixels_of_the_image(tmp_path, size, keep_aspect, box) -> None:
    folder = write_finders(tmp_path / "model", keep_aspect=keep_aspect)
    detections = found(folder, image_with_square(size, box))
    assert detections.boxes.tolist() == [list(map(float, box))]
    # The mean of 0.9 and 0.5.
    assert detections.scores == pytest.approx([0.7])
    assert detections.classes.tolist() == [0]


def test_a_size_that_does_not_divide_is_right_to_a_pixel_of_the_square(tmp_path) -> None:
    # 300 x 201 becomes 64 x 43: a pixel of the square is 4.69 px wide and 4.67 px high.
    box = (70, 41, 190, 122)
    (got,) = found(write_finders(tmp_path / "model"), image_with_square((300, 201), box)).boxes
    assert np.abs(got - box).max() < 4.69


def test_an_image_with_nothing_has_no_boxes(tmp_path) -> None:
    detections = found(write_finders(tmp_path / "model"), image_with_square((100, 50), None))
    assert (detections.boxes.shape, len(detections)) == ((0, 4), 0)


def test_a_box_in_the_black_beside_the_image_is_none(tmp_path) -> None:
    # Of a square at the right rim, boxes 16 px further right lie in the black.
    students = {"student_0": (0.9, 16.0), "student_1": (0.5, 16.0)}
    folder = write_finders(tmp_path / "model", students)
    assert len(found(folder, image_with_square((32, 64), (24, 8, 32, 16)))) == 0
    # Elsewhere they are cut at the rim.
    (cut,) = found(folder, image_with_square((32, 64), (8, 8, 24, 16))).boxes
    assert cut.tolist() == [24, 8, 32, 16]


@pytest.mark.parametrize(
    ("kind", "boxes", "scores"),
    [
        # The mean of boxes, and of scores.
        ("dense", [[15, 8, 31, 24]], [0.7]),
        # Apart (IoU 1/7), each counts half, as one of two networks found it.
        ("boxes", [[10, 8, 26, 24], [20, 8, 36, 24]], [0.45, 0.25]),
    ],
)
def test_both_ways_to_one_list(tmp_path, kind, boxes, scores) -> None:
    ensemble = {"kind": kind, "fusion_iou": 0.55, "validation_ap50": {"dense": 0, "boxes": 0}}
    students = {"student_0": (0.9, 0.0), "student_1": (0.5, 10.0)}
    folder = write_finders(tmp_path / "model", students, ensemble=ensemble)
    detections = found(folder, image_with_square((64, 64), (10, 8, 26, 24)))
    assert detections.boxes.tolist() == boxes
    assert detections.scores == pytest.approx(scores)


def test_several_classes(tmp_path) -> None:
    folder = write_finders(tmp_path / "model", classes=["polyp", "adenoma"])
    detections = found(folder, image_with_square((64, 64), (10, 8, 26, 24)))
    assert detections.classes.tolist() == [0]


@pytest.mark.parametrize("broken", [(1.5, 0.0), (np.nan, 0.0), (0.5, np.inf)])
def test_a_student_that_gives_nonsense_is_refused(tmp_path, broken) -> None:
    folder = write_finders(tmp_path / "model", {"student_0": (0.9, 0.0), "student_1": broken})
    with pytest.raises(ModelPackageError, match=r"student_1 gave a probability .* use another"):
        found(folder, image_with_square((64, 64), (10, 8, 26, 24)))
