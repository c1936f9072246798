"""Selection and fusion of boxes by hand, by naive loops, and by the authors' own fusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.tasks.detections import (
    Detections,
    box_iou,
    mean_of_dense,
    select,
    weighted_box_fusion,
)


def dense(rows: list[tuple[tuple[float, ...], tuple[float, float, float, float]]]) -> Tensor:
    """Predictions of one image: probabilities and box of each anchor."""
    return torch.tensor([[*probabilities, *box] for probabilities, box in rows])[None]


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of rows of x1, y1, x2, y2, score and class."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    values = values[np.argsort(-values[:, 4], kind="stable")]
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))


def random_predictions(images: int, anchors: int, classes: int, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    corner = random.random((images, anchors, 2)) * 40
    side = random.random((images, anchors, 2)) * 30 + 2
    scores = random.random((images, anchors, classes)) ** 2
    return torch.tensor(np.concatenate([scores, corner, corner + side], 2), dtype=torch.float32)


def test_iou_by_hand() -> None:
    first = np.array([[0, 0, 10, 10], [5, 5, 5, 9]])
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 7], [20, 0, 30, 10]])
    # Shared 100 of 100, 50 of 150, 70 of 100 (exactly), 0; an empty box shares nothing.
    assert box_iou(first, second).tolist() == [[1.0, 50 / 150, 0.7, 0.0], [0.0] * 4]
    assert box_iou(first[:0], second).shape == (0, 4)


def test_what_overlaps_a_better_box_of_its_class_is_left_out() -> None:
    predictions = dense(
        [
            ((0.6, 0.0), (0, 0, 10, 10)),
            ((0.9, 0.0), (0, 1, 10, 11)),  # 90 of 110 with the first, which is worse
            ((0.7, 0.3), (0, 6, 10, 16)),  # 40 of 160 with the first, 50 of 150 with the second
            ((0.0, 0.8), (0, 0, 10, 10)),  # of the other class
        ]
    )
    (kept,) = select(predictions)
    assert kept.scores == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert kept.classes.tolist() == [0, 1, 0, 1]
    assert kept.boxes[:, 1].tolist() == [1, 0, 6, 6]
    assert [kept.boxes.dtype, kept.scores.dtype, kept.classes.dtype] == ["<f4", "<f4", "<i8"]
    # A stricter threshold: a third is too much, a quarter (40 / 160) is not.
    (strict,) = select(predictions, nms_iou=0.3)
    assert strict.scores == pytest.approx([0.9, 0.8, 0.3])
    assert select(predictions, least_score=0.5)[0].scores == pytest.approx([0.9, 0.8, 0.7])
    assert select(predictions, most=2)[0].scores == pytest.approx([0.9, 0.8])


def test_x_comes_before_y() -> None:
    """Two wide boxes, one above the other: with x and y mixed up they would overlap or be empty."""
    (kept,) = select(dense([((0.9,), (0, 0, 100, 4)), ((0.8,), (0, 5, 100, 9))]))
    assert kept.boxes.tolist() == [[0, 0, 100, 4], [0, 5, 100, 9]]


def test_it_equals_a_naive_loop() -> None:
    predictions = random_predictions(images=3, anchors=120, classes=2, seed=0)
    for image, kept in zip(predictions.double().numpy(), select(predictions, most=40), strict=True):
        candidates = [
            (row[number], number, row[2:]) for row in image for number in (0, 1) if row[number] > 0
        ]
        expected: list[tuple[float, int, np.ndarray]] = []
        for score, number, box in sorted(candidates, key=lambda c: -c[0]):
            if score < 0.01:
                continue
            rivals = [other for _, of_class, other in expected if of_class == number]
            if all(naive_iou(box, rival) <= 0.5 for rival in rivals):
                expected.append((score, number, box))
        assert len(expected) > 40
        for row, (score, number, box) in enumerate(expected[:40]):
            assert kept.scores[row] == pytest.approx(score)
            assert kept.classes[row] == number
            assert kept.boxes[row] == pytest.approx(box)


def naive_iou(first: np.ndarray, second: np.ndarray) -> float:
    sides = [min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return float(shared / (sum(areas) - shared))


def test_only_the_best_thousand_candidates_are_looked_at() -> None:
    """1,010 boxes: all but the last ten lie on the first one."""
    boxes = [((0.9 - i / 10_000,), (0.0, 0.0, 10.0, 10.0)) for i in range(1000)]
    apart = [((0.5,), (20.0 * i, 20.0, 20.0 * i + 10, 30.0)) for i in range(10)]
    assert len(select(dense(boxes[:999] + apart))[0]) == 2
    assert len(select(dense(boxes + apart))[0]) == 1


def test_boxes_without_area_and_values_that_are_not_finite_are_no_candidates() -> None:
    nan, inf = float("nan"), float("inf")
    predictions = dense(
        [
            ((0.9,), (5, 5, 5, 9)),
            ((0.8,), (5, 5, 9, 4)),
            ((nan,), (0, 0, 9, 9)),
            ((0.7,), (0, 0, inf, 9)),
            ((0.6,), (0, nan, 9, 9)),
            ((0.5,), (1, 2, 3, 4)),
        ]
    )
    (kept,) = select(predictions)
    assert kept.boxes.tolist() == [[1, 2, 3, 4]]
    (nothing,) = select(predictions[:, :5])
    assert nothing.boxes.shape == (0, 4)
    assert len(nothing) == 0
    assert select(predictions[:0]) == []


def test_mean_of_dense_predictions() -> None:
    first = dense([((0.2,), (0, 0, 10, 10)), ((0.9,), (4, 4, 8, 8))])
    second = dense([((0.6,), (2, 4, 14, 10)), ((0.1,), (4, 4, 8, 8))])
    mean = mean_of_dense([first, second])
    assert mean[0, 0].tolist() == pytest.approx([0.4, 1, 2, 12, 10])
    assert mean[0, 1].tolist() == pytest.approx([0.5, 4, 4, 8, 8])
    assert torch.equal(mean_of_dense([first]), first)


def test_fusion_by_hand() -> None:
    """Three networks. Two of them share a box; one box stands alone; one is of another class."""
    networks = [
        [found((0, 0, 10, 10, 0.8, 0), (50, 50, 60, 60, 0.6, 0))],
        [found((0, 0, 10, 12, 0.4, 0))],
        [found((0, 0, 10, 10, 0.3, 1))],
    ]
    (fused,) = weighted_box_fusion(networks)
    # 0.8 and 0.4: mean score 0.6 times 2 of 3; lower edge (0.8 * 10 + 0.4 * 12) / 1.2. Alone: a
    # third of the score.
    assert fused.scores == pytest.approx([0.4, 0.2, 0.1])
    assert fused.classes.tolist() == [0, 0, 1]
    assert fused.boxes[0] == pytest.approx([0, 0, 10, 12.8 / 1.2])
    assert fused.boxes[1:].tolist() == [[50, 50, 60, 60], [0, 0, 10, 10]]
    assert weighted_box_fusion(networks, most=1)[0].scores == pytest.approx([0.4])


def test_a_box_joins_the_fused_box_not_its_members() -> None:
    """Of 12 and 8 px the fused box has 10: a third box of 6 px overlaps it by 0.6, and 12 by 0.5.

    The cluster then has three members of two networks, whose mean is not raised.
    """
    networks = [
        [found((0, 0, 10, 12, 0.5, 0), (0, 0, 10, 6, 0.2, 0))],
        [found((0, 0, 10, 8, 0.5, 0))],
    ]
    (fused,) = weighted_box_fusion(networks)
    assert fused.scores == pytest.approx([0.4])
    assert fused.boxes[0] == pytest.approx([0, 0, 10, (0.5 * 12 + 0.5 * 8 + 0.2 * 6) / 1.2])


THREE_NETWORKS = [
    [
        found(
            (57, 34, 75, 48, 0.71, 1),
            (24, 64, 55, 100, 0.65, 1),
            (57, 25, 87, 55, 0.46, 1),
            (20, 64, 51, 97, 0.26, 0),
            (8, 9, 35, 43, 0.16, 0),
        )
    ],
    [
        found(
            (56, 25, 92, 61, 0.74, 1),
            (25, 64, 56, 95, 0.57, 0),
            (13, 17, 37, 45, 0.48, 0),
            (28, 19, 51, 51, 0.43, 0),
            (25, 59, 52, 92, 0.3, 0),
        )
    ],
    [
        found(
            (16, 41, 51, 61, 0.77, 1),
            (19, 64, 57, 93, 0.76, 0),
            (57, 16, 92, 63, 0.38, 1),
            (12, 11, 43, 39, 0.2, 0),
        )
    ],
]
# What the authors' package ensemble-boxes 1.0.9 makes of them (weighted_boxes_fusion, conf_type
# "avg"; coordinates divided by 100, and its result times 100). It needs numba and LLVM, 200 MB, so
# it is no test dependency.
BY_THE_AUTHORS = {
    0.55: [
        (56.5316, 22.8354, 90.5443, 59.7342, 0.526667, 1),
        (21.8995, 63.2064, 55.0794, 93.9947, 0.4725, 0),
        (16.0, 41.0, 51.0, 61.0, 0.256667, 1),
        (57.0, 34.0, 75.0, 48.0, 0.236667, 1),
        (24.0, 64.0, 55.0, 100.0, 0.216667, 1),
        (13.0, 17.0, 37.0, 45.0, 0.16, 0),
        (28.0, 19.0, 51.0, 51.0, 0.143333, 0),
        (10.2222, 10.1111, 39.4444, 40.7778, 0.12, 0),
    ],
    0.4: [
        (56.5316, 22.8354, 90.5443, 59.7342, 0.526667, 1),
        (21.8995, 63.2064, 55.0794, 93.9947, 0.4725, 0),
        (11.8095, 14.0476, 38.0476, 43.1905, 0.28, 0),
        (16.0, 41.0, 51.0, 61.0, 0.256667, 1),
        (57.0, 34.0, 75.0, 48.0, 0.236667, 1),
        (24.0, 64.0, 55.0, 100.0, 0.216667, 1),
        (28.0, 19.0, 51.0, 51.0, 0.143333, 0),
    ],
}


@pytest.mark.parametrize("iou", BY_THE_AUTHORS)
def test_fusion_gives_what_the_authors_code_gives(iou: float) -> None:
    (fused,) = weighted_box_fusion(THREE_NETWORKS, iou=iou)
    expected = np.array(BY_THE_AUTHORS[iou])
    assert fused.boxes == pytest.approx(expected[:, :4], abs=1e-3)
    assert fused.scores == pytest.approx(expected[:, 4], abs=1e-6)
    assert fused.classes.tolist() == expected[:, 5].tolist()


def test_fusion_of_one_network_without_overlaps_changes_nothing() -> None:
    (kept,) = select(random_predictions(images=1, anchors=60, classes=2, seed=1))
    (fused,) = weighted_box_fusion([[kept]])
    assert fused.scores == pytest.approx(kept.scores)
    assert fused.boxes == pytest.approx(kept.boxes)
    assert fused.classes.tolist() == kept.classes.tolist()


def test_fusion_of_images_without_boxes() -> None:
    """An image in which nobody sees anything, one in which one network does, one with score 0."""
    here = found((0, 0, 4, 4, 0.5, 0))
    fused = weighted_box_fusion(
        [[found(), here, found((0, 0, 4, 4, 0.0, 0))], [found(), found(), found()]]
    )
    assert [len(image) for image in fused] == [0, 1, 0]
    assert fused[1].scores == pytest.approx([0.25])
    assert fused[0].boxes.shape == (0, 4)


def test_wrong_calls_are_value_errors() -> None:
    boxes, scores = np.zeros((2, 4), np.float32), np.array([0.2, 0.9], np.float32)
    with pytest.raises(ValueError, match="scores must fall"):
        Detections(boxes, scores, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        Detections(boxes[:1], scores[::-1], np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"\(3, 8\), not N x A x \(classes \+ 4\)"):
        select(torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"\(1, 3, 4\), not"):
        select(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match=r"\(1, 3, 5\) and \(1, 2, 5\)"):
        mean_of_dense([torch.zeros(1, 3, 5), torch.zeros(1, 2, 5)])
    with pytest.raises(ValueError, match="no predictions"):
        mean_of_dense([])
    with pytest.raises(ValueError, match="no networks"):
        weighted_box_fusion([])
    with pytest.raises(ValueError, match="different numbers of images"):
        weighted_box_fusion([[found()], []])
