"""Figures of detectors on test images, of boxes made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.tasks.detections import Detections
from medkd.training.box_evaluation import (
    Resampling,
    compared_pairs,
    comparison_record,
    counts_at,
    curve,
    evaluated,
    figures_of,
    in_words,
    model_record,
    shipped_model,
)
from medkd.training.box_predictions import BOXES, DENSE, FoundBoxes, in_file

POLYP = ("polyp",)
HOW = Resampling(resamples=300, confidence=0.95, seed=3)
Row = tuple[float, ...]


def found(*rows: Row) -> Detections:
    """Detections of rows of x1, y1, x2, y2 and score, by falling score."""
    values = np.array(rows, np.float32).reshape(-1, 5)
    return Detections(values[:, :4], values[:, 4], np.zeros(len(values), np.int64))


def images(truth: Sequence[Sequence[Row]], **networks: Sequence[Detections]) -> FoundBoxes:
    """Images of 100 x 100 px with these true boxes, and what networks found in them."""
    labels = np.zeros((len(truth), max(map(len, truth)), 5), np.float32)
    labels[..., 0] = -1
    for image, rows in zip(labels, truth, strict=True):
        for place, row in enumerate(rows):
            image[place] = (0, *row)
    names = tuple(f"{number}.png" for number in range(len(truth)))
    sizes = np.full((len(truth), 2), 100, np.int32)
    return FoundBoxes(names, Path(), sizes, np.array(names), labels, networks)


BOX, FAR = (10, 10, 50, 50), (60, 60, 90, 90)
# F1 is best from 0.6 on: both boxes, and nothing else.
VALIDATION = images(
    [[BOX], [BOX], []],
    good=[found((*BOX, 0.8)), found((*BOX, 0.6), (*FAR, 0.3)), found()],
    poor=[found((*FAR, 0.9), (*BOX, 0.2)), found(), found((*FAR, 0.4))],
)
# Of three boxes: found at 0.9, found at 0.5, never found. Wrong: 0.7 (an image with boxes), and 0.6
# and 0.4 in images without one.
TEST = images(
    [[BOX, FAR], [BOX], [], []],
    good=[
        found((*BOX, 0.9), (0, 60, 20, 90, 0.7)),
        found((*BOX, 0.5)),
        found((*FAR, 0.6)),
        found((*FAR, 0.4)),
    ],
    poor=[found((*BOX, 0.2)), found(), found((*FAR, 0.9)), found()],
)


def test_the_threshold_is_that_of_validation_whatever_the_test_images_show() -> None:
    model = evaluated("good", VALIDATION, TEST, POLYP)
    assert model.threshold == np.float32(0.6)
    # Every label of the test images turned into its opposite.
    other = replace(TEST, truth=images([[], [], [FAR], [FAR]]).truth)
    turned = evaluated("good", VALIDATION, other, POLYP)
    assert turned.threshold == model.threshold
    one, two = (figures_of(each, TEST.sources, HOW) for each in (model, turned))
    assert one["ap50"]["value"] != two["ap50"]["value"]
    # The labels of validation images do decide.
    moved = replace(VALIDATION, truth=images([[BOX], [FAR], []]).truth)
    assert evaluated("good", moved, TEST, POLYP).threshold != model.threshold


def test_a_threshold_that_was_frozen_is_taken() -> None:
    model = evaluated("good", VALIDATION, TEST, POLYP, threshold=0.45)
    assert model.threshold == 0.45
    assert counts_at(model) == {"found": 2, "missed": 1, "false_alarms": 2}


def test_figures_and_counts_at_the_threshold() -> None:
    record = model_record(evaluated("good", VALIDATION, TEST, POLYP), VALIDATION, TEST, POLYP, HOW)
    # From 0.6 on: 0.9 right, 0.7 and 0.6 wrong.
    assert record["at_threshold"] == {"found": 1, "missed": 2, "false_alarms": 2}
    values = {name: figure["value"] for name, figure in record["figures"].items()}
    assert values["sensitivity"] == pytest.approx(1 / 2)
    assert values["fp_per_negative_image"] == pytest.approx(1 / 2)
    assert values["mean_iou"] == pytest.approx(1 / 3)
    # Three wrong ones come before or with the box at 0.5: fewer than one of each of four images.
    assert values["recall_at_1_fp"] == pytest.approx(2 / 3)
    # Precision 1 up to recall 1/3 (34 of 101), 2 of 4 up to 2/3 (33 more).
    assert values["ap50"] == pytest.approx((34 + 33 * 0.5) / 101)
    assert record["validation"]["sensitivity"] == 1


def test_curves_have_a_point_for_every_box_that_is_found() -> None:
    points = curve(evaluated("good", VALIDATION, TEST, POLYP).matches)
    assert points is not None
    assert points["score"] == pytest.approx([0.9, 0.5])
    assert points["recall"] == pytest.approx([1 / 3, 2 / 3])
    assert points["precision"] == pytest.approx([1, 1 / 2])
    assert points["false_positives_per_image"] == pytest.approx([0, 2 / 4])
    nothing = replace(TEST, truth=np.zeros((4, 0, 5), np.float32))
    assert curve(evaluated("good", VALIDATION, nothing, POLYP).matches) is None


def test_an_interval_has_its_estimate_inside_and_comes_again() -> None:
    # Ten times the same images: enough for intervals.
    many = images(
        [[BOX, FAR], [BOX], [], []] * 10,
        good=[*TEST.found["good"]] * 10,
        poor=[*TEST.found["poor"]] * 10,
    )
    model = evaluated("good", VALIDATION, many, POLYP)
    figures = figures_of(model, many.sources, HOW)
    assert figures == figures_of(model, many.sources, HOW)
    assert set(figures) == {
        "ap", "ap50", "ap75", "recall_at_1_fp", "fp_per_negative_image", "sensitivity", "mean_iou",
    }  # fmt: skip
    for name, figure in figures.items():
        assert figure["lower"] <= figure["value"] <= figure["upper"], name
        assert figure["lower"] < figure["upper"], name
    # Of two sources with the same images nothing can differ by resampling.
    two = np.array(["one", "other"] * 2).repeat(10)
    assert figures_of(model, np.sort(two), HOW)["ap50"]["lower"] is None


def test_what_cannot_be_had_says_why() -> None:
    with_boxes = images([[BOX], [BOX]], good=[found((*BOX, 0.9)), found()])
    figures = figures_of(evaluated("good", VALIDATION, with_boxes, POLYP), with_boxes.sources, HOW)
    assert figures["fp_per_negative_image"] == {
        "value": None,
        "lower": None,
        "upper": None,
        "reason": "there is no image without a true box",
    }


def test_two_models_are_compared_at_their_own_thresholds() -> None:
    good, poor = (evaluated(name, VALIDATION, TEST, POLYP) for name in ("good", "poor"))
    assert poor.threshold == np.float32(0.2)
    record = comparison_record(good, poor, TEST.sources, HOW)
    assert (record["first"], record["second"]) == ("good", "poor")
    found_here = record["figures"]["ap50"]
    # The poor one: right at 0.2, after a wrong one.
    assert found_here["second"] == pytest.approx(34 * 0.5 / 101)
    assert found_here["difference"]["value"] == pytest.approx((34 + 33 * 0.5 - 17) / 101)
    assert record["figures"]["sensitivity"]["difference"]["value"] == pytest.approx(0)


def test_what_ships_is_compared_with_every_student_and_the_teacher() -> None:
    roles = {"teacher": "teacher", "student_0": "student", "student_1": "student", "m": "mean"}
    assert compared_pairs(DENSE, roles, (DENSE, BOXES)) == [
        (DENSE, "student_0"),
        (DENSE, "student_1"),
        (DENSE, "teacher"),
        (DENSE, BOXES),
    ]
    alone = compared_pairs("student_1", roles, ())
    assert alone == [("student_1", "student_0"), ("student_1", "teacher")]


def test_one_network_ships_as_it_is_and_several_as_an_ensemble() -> None:
    assert shipped_model("boxes", ("student_0",)) == "student_0"
    assert shipped_model("boxes", ("student_0", "student_1")) == BOXES
    assert shipped_model("dense", ("student_0", "student_1")) == DENSE
    assert (in_words(DENSE), in_words("student_0")) == ("ensemble (dense)", "student 0")


def test_boxes_go_back_to_the_file_by_the_way_that_its_own_boxes_came() -> None:
    from medkd.datasets.box_transforms import ResizeBoxedImaged

    given = np.array([[3, 4, 30, 20], [0, 0, 61, 45]], np.float32)
    for keep_aspect in (True, False):
        item = {"image": np.zeros((3, 45, 61), np.uint8), "boxes": given}
        resized = ResizeBoxedImaged("image", 64, keep_aspect=keep_aspect)(item)["boxes"]
        shown = Detections(resized, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))
        back = in_file(shown, (61, 45), 64, keep_aspect)
        np.testing.assert_allclose(back.boxes, given, atol=1e-4)


def test_a_box_in_the_black_beside_the_image_is_none() -> None:
    # 100 x 50 px fill the upper half of the square of 100 px.
    given = found((0, 0, 10, 10, 0.9), (0, 60, 10, 90, 0.8), (20, 40, 30, 70, 0.7))
    kept = in_file(given, (100, 50), 100, True)
    np.testing.assert_allclose(kept.boxes, [[0, 0, 10, 10], [20, 40, 30, 50]])
    np.testing.assert_allclose(kept.scores, [0.9, 0.7])
