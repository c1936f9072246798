"""Detection metrics by hand, and average precision against pycocotools."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medkd.tasks.detection_metrics import (
    average_precision,
    best_threshold,
    match,
    mean_iou,
    metrics,
    recall_at_false_positives,
    sensitivity,
)
from medkd.tasks.detections import Detections

POLYP = ("polyp",)
ONCE = np.ones((1, 4))


def found(*rows: tuple[float, ...]) -> Detections:
    """Detections of rows of x1, y1, x2, y2, score and perhaps class, by falling score."""
    values = np.array([(*row, 0)[:6] for row in rows], np.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))


def truth(*images: list[tuple[int, float, float, float, float]]) -> torch.Tensor:
    """Labels, N x M x 5, of rows of class and box."""
    labels = torch.zeros(len(images), max(len(rows) for rows in images), 5)
    labels[..., 0] = -1
    for image, rows in zip(labels, images, strict=True):
        image[: len(rows)] = torch.tensor(rows).reshape(-1, 5)
    return labels


# Three true boxes in two images, and two images without one. By falling score: 0.9 right, 0.8 finds
# the same box again, 0.7 overlaps its box by a third, 0.6 right (IoU 0.72), 0.5 where nothing is,
# 0.3 right (IoU 0.64), 0.2 where nothing is.
FOUR_TRUTHS = truth([(0, 0, 0, 10, 10), (0, 20, 20, 40, 40)], [(0, 0, 0, 10, 10)], [], [])
FOUR_IMAGES = [
    found((0, 0, 10, 10, 0.9), (0, 0, 10, 8, 0.8), (20, 20, 40, 32.8, 0.3)),
    found((5, 0, 15, 10, 0.7), (0, 0, 10, 7.2, 0.6)),
    found((0, 0, 10, 10, 0.5), (30, 30, 40, 40, 0.2)),
    found(),
]


def test_average_precision_by_hand() -> None:
    values = metrics(FOUR_IMAGES, FOUR_TRUTHS, POLYP)
    # Precision where a detection is right: 1, 2/4 and 3/6, at recall 1/3, 2/3 and 1. Of the 101
    # recalls, 34 are up to 1/3 and 67 up to 2/3.
    assert values["ap50"] == pytest.approx((34 + 67 * 0.5) / 101)
    # IoU 0.72 and 0.64 are not enough.
    assert values["ap75"] == pytest.approx(34 / 101)
    # At 0.50 to 0.60 all three are right, at 0.65 and 0.70 two, above that one.
    by_iou = [34 + 67 * 0.5] * 3 + [34 + 33 * 0.5] * 2 + [34] * 5
    assert values["ap"] == pytest.approx(sum(by_iou) / 10 / 101)


def test_figures_at_a_threshold_by_hand() -> None:
    """F1 by falling score: 2/4, 2/5, 2/6, 4/7, 4/8, 6/9, 6/10."""
    values = metrics(FOUR_IMAGES, FOUR_TRUTHS, POLYP)
    assert values["threshold"] == np.float32(0.3)
    assert values["fp_per_negative_image"] == 1 / 2
    assert values["sensitivity"] == 1
    assert values["mean_iou"] == pytest.approx((1 + 0.64 + 0.72) / 3)
    # The right box of the second image is not called any more; its best IoU is that of the other.
    stricter = metrics(FOUR_IMAGES, FOUR_TRUTHS, POLYP, threshold=0.65)
    assert stricter["threshold"] == 0.65
    assert stricter["fp_per_negative_image"] == 0
    assert stricter["sensitivity"] == 1 / 2
    assert stricter["mean_iou"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert stricter["ap50"] == values["ap50"]


def test_recall_at_so_many_false_positives_an_image() -> None:
    """Wrong detections by falling score: 0.8, 0.7, 0.5 and 0.2, over four images."""
    matches = match(FOUR_IMAGES, FOUR_TRUTHS, POLYP)
    recalls = {1: 1.0, 0.75: 1.0, 0.74: 2 / 3, 0.5: 2 / 3, 0.49: 1 / 3, 0: 1 / 3}
    for per_image, recall in recalls.items():
        value = recall_at_false_positives(matches, ONCE, per_image)
        assert value == pytest.approx([recall]), per_image
    assert metrics(FOUR_IMAGES, FOUR_TRUTHS, POLYP)["recall_at_1_fp"] == 1


def test_a_threshold_does_not_part_equal_scores() -> None:
    """One image: the right box scores as much as the second wrong one."""
    image = [found((50, 0, 60, 10, 0.9), (0, 0, 10, 10, 0.8), (70, 0, 80, 10, 0.8))]
    assert metrics(image, truth([(0, 0, 0, 10, 10)]), POLYP)["recall_at_1_fp"] == 0
    apart = [found((50, 0, 60, 10, 0.9), (0, 0, 10, 10, 0.8), (70, 0, 80, 10, 0.7))]
    assert metrics(apart, truth([(0, 0, 0, 10, 10)]), POLYP)["recall_at_1_fp"] == 1
    # F1 over both boxes that score 0.8: one is right of two, and one true box.
    twice = [found((0, 0, 10, 10, 0.8), (70, 0, 80, 10, 0.8))]
    assert best_threshold(match(twice, truth([(0, 0, 0, 10, 10)]), POLYP)) == np.float32(0.8)


def test_of_equal_f1_the_highest_threshold() -> None:
    """F1 by falling score: 2/3, 2/4, 2/5, 4/6."""
    image = [
        found(
            (0, 0, 10, 10, 0.9), (50, 0, 60, 10, 0.8), (70, 0, 80, 10, 0.75), (20, 0, 30, 10, 0.7)
        )
    ]
    two = truth([(0, 0, 0, 10, 10), (0, 20, 0, 30, 10)])
    assert best_threshold(match(image, two, POLYP)) == np.float32(0.9)


def test_a_detection_counts_for_its_own_class_alone() -> None:
    labels = truth([(0, 0, 0, 10, 10), (1, 20, 20, 30, 30)])
    swapped = [found((0, 0, 10, 10, 0.9, 1), (20, 20, 30, 30, 0.8, 0))]
    values = metrics(swapped, labels, ("a", "b"))
    assert {
        name: values[name] for name in ("ap50", "recall_at_1_fp", "sensitivity", "mean_iou")
    } == {
        "ap50": 0,
        "recall_at_1_fp": 0,
        "sensitivity": 0,
        "mean_iou": 0,
    }
    right = [found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 1))]
    assert metrics(right, labels, ("a", "b"))["ap"] == pytest.approx(1)
    # A class without a true box takes no part in the mean, whatever is called of it.
    third = [found((0, 0, 10, 10, 0.9, 2), (0, 0, 10, 10, 0.8, 0))]
    assert metrics(third, labels, ("a", "b", "c"))["ap50"] == pytest.approx(1 / 2)


def test_images_without_boxes_and_without_detections() -> None:
    box = [(0, 0.0, 0.0, 10.0, 10.0)]
    # No true box: only what needs none, and no threshold can be chosen.
    assert metrics([found((0, 0, 9, 9, 0.5))], torch.zeros(1, 0, 5), POLYP) == {}
    given = metrics([found((0, 0, 9, 9, 0.5))], torch.zeros(1, 0, 5), POLYP, threshold=0.4)
    assert given == {"fp_per_negative_image": 1, "threshold": 0.4}
    # Nothing is found: zeros, at a threshold that calls nothing.
    nothing = metrics([found(), found()], truth(box, []), POLYP)
    assert nothing == {
        "ap": 0,
        "ap50": 0,
        "ap75": 0,
        "recall_at_1_fp": 0,
        "fp_per_negative_image": 0,
        "sensitivity": 0,
        "mean_iou": 0,
        "threshold": 1,
    }
    # Nothing right is found: likewise.
    wrong = metrics([found((50, 50, 60, 60, 0.4))], truth(box), POLYP)
    assert wrong["threshold"] == 1
    assert wrong["sensitivity"] == 0
    # No image without a box.
    assert "fp_per_negative_image" not in wrong
    assert metrics([], torch.zeros(0, 3, 5), POLYP) == {}


def test_true_boxes_without_area_are_never_found() -> None:
    labels = truth([(0, 5, 5, 5, 9), (0, 0, 0, 10, 10)])
    values = metrics([found((0, 0, 10, 10, 0.9), (5, 5, 5, 9, 0.8))], labels, POLYP)
    assert values["recall_at_1_fp"] == 1 / 2
    assert values["mean_iou"] == 1 / 2


def test_images_count_as_often_as_their_weight_says() -> None:
    """Weights against the same images written out, for all figures."""
    matches = match(FOUR_IMAGES, FOUR_TRUTHS, POLYP)
    counts = np.array([[2, 0, 1, 3], [0, 3, 2, 0], [1, 1, 4, 0]])
    for row in counts:
        drawn = np.repeat(np.arange(4), row)
        again = match([FOUR_IMAGES[i] for i in drawn], FOUR_TRUTHS[drawn], POLYP)
        once = np.ones((1, len(drawn)))
        for figure in (average_precision, recall_at_false_positives):
            assert figure(matches, row[None].astype(float)) == pytest.approx(figure(again, once))
        for at in (sensitivity, mean_iou):
            weighted = at(matches, row[None].astype(float), 0.55)
            assert weighted == pytest.approx(at(again, once, 0.55))


def by_pycocotools(
    detections: list[Detections], labels: np.ndarray, classes: tuple[str, ...]
) -> list[float]:
    """AP, AP50 and AP75 of the COCO project's own code; -1 where no class has a box."""
    boxes = [
        (image, row[0], row[1:], None)
        for image, rows in enumerate(labels)
        for row in rows[rows[:, 0] >= 0]
    ]
    called = [
        (image, *row)
        for image, each in enumerate(detections)
        for row in zip(each.classes, each.boxes, each.scores, strict=True)
    ]
    truths, results = (
        [
            {
                "id": number + 1,
                "image_id": image + 1,
                "category_id": int(of_class) + 1,
                "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
                "area": float((box[2] - box[0]) * (box[3] - box[1])),
                "iscrowd": 0,
                "score": score,
            }
            for number, (image, of_class, box, score) in enumerate(rows)
        ]
        for rows in (boxes, called)
    )
    sets = []
    for rows in (truths, results):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image + 1} for image in range(len(detections))],
            "categories": [{"id": number + 1} for number in range(len(classes))],
            "annotations": rows,
        }
        sets.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        for coco in sets:
            coco.createIndex()
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:3])


def random_case(
    seed: int,
    *,
    images: int = 12,
    classes: int = 1,
    boxes: int = 3,
    most: int = 8,
    score_digits: int = 9,
    grid_px: float = 0,
    without: int | None = None,
) -> tuple[list[Detections], np.ndarray]:
    """True boxes, and detections of which most are near one.

    Args:
        grid_px: round all edges to it, so that many IoUs lie on a threshold.
        without: a class that no true box has.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros((images, boxes, 5))
    labels[..., 0] = -1
    detections = []
    for image in labels:
        count = random.integers(boxes + 1)
        corner = random.random((boxes, 2)) * 150
        image[:count, 0] = random.choice([c for c in range(classes) if c != without], count)
        image[:count, 1:] = np.concatenate(
            [corner, corner + random.random((boxes, 2)) * 50 + 10], 1
        )[:count]
        called = int(random.integers(most + 1))
        corner = random.random((called, 2)) * 150
        found_boxes = np.concatenate([corner, corner + random.random((called, 2)) * 50 + 10], 1)
        found_classes = random.integers(classes, size=called)
        if count:
            near, of = random.random(called) < 0.8, random.integers(count, size=called)
            found_boxes[near] = (image[of, 1:] + random.normal(0, 3, (called, 4)))[near]
            found_classes[near] = image[of, 0][near]
        if grid_px:
            found_boxes = (found_boxes / grid_px).round() * grid_px
            image[:count, 1:] = (image[:count, 1:] / grid_px).round() * grid_px
        found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], found_boxes[:, :2] + 1)
        scores = random.random(called).round(score_digits)
        order = np.argsort(-scores, kind="stable")
        detections.append(
            Detections(
                found_boxes[order].astype(np.float32),
                scores[order].astype(np.float32),
                found_classes[order].astype(np.int64),
            )
        )
    return detections, labels.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"images": 1},
        {"classes": 3, "boxes": 5},
        {"classes": 3, "without": 1},
        {"score_digits": 1, "classes": 2},
        {"grid_px": 10, "boxes": 5},
        {"images": 4, "most": 300, "boxes": 8},
    ],
    ids=["plain", "one image", "classes", "absent class", "ties", "exact IoUs", "many"],
)
def test_average_precision_is_that_of_coco(kind: dict[str, int], seed: int) -> None:
    detections, labels = random_case(seed, **kind)
    classes = ("a", "b", "c")[: kind.get("classes", 1)]
    values = metrics(detections, labels, classes)
    expected = by_pycocotools(detections, labels, classes)
    if expected[0] == -1:
        assert not values.keys() & {"ap", "ap50", "ap75"}
    else:
        assert [values[name] for name in ("ap", "ap50", "ap75")] == pytest.approx(
            expected, abs=1e-9
        )


def test_wrong_calls_are_value_errors() -> None:
    image = found((0, 0, 10, 10, 0.5, 1))
    with pytest.raises(ValueError, match=r"\(2, 5\), not N x M x 5"):
        metrics([image], torch.zeros(2, 5), POLYP)
    with pytest.raises(ValueError, match="1 images of detections and 2 of truth"):
        metrics([image], torch.zeros(2, 1, 5), POLYP)
    with pytest.raises(ValueError, match="class 1 is there, and 1 classes"):
        metrics([image], torch.zeros(1, 1, 5), POLYP)
    with pytest.raises(ValueError, match="truth is not finite"):
        metrics([image], torch.full((1, 1, 5), math.nan), POLYP)
