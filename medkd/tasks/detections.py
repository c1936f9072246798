"""Final boxes: of a detector's dense predictions, and of several networks'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data.box_utils import batched_nms
from torch import Tensor

CANDIDATES = 1000
"""Of a class and an anchor, those that :func:`select` looks at in an image: as many as RetinaNet
takes of a level (arXiv 1708.02002)."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 K x 4: x1, y1, x2, y2 in pixels, the right and lower edge outside.
        scores: float32 K, each at most the one before.
        classes: int64 K, numbers of classes.

    Raises:
        ValueError: shapes do not fit, or scores do not fall.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = self.boxes.shape, self.scores.shape, self.classes.shape
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"boxes, scores and classes of shapes {shapes} do not fit")
        if not (np.diff(self.scores) <= 0).all():
            raise ValueError("scores must fall")

    def __len__(self) -> int:
        return len(self.scores)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box with every other.

    In float64, unlike MONAI's: in float32 a box that reaches 0.7 exactly lies below it.

    Args:
        first: K x 4: x1, y1, x2, y2.
        second: L x 4.

    Returns:
        float64 K x L; 0 where a box is empty.
    """
    left, top, right, bottom = np.asarray(first, np.float64).T[:, :, None]
    x1, y1, x2, y2 = np.asarray(second, np.float64).T
    width = np.minimum(right, x2) - np.maximum(left, x1)
    height = np.minimum(bottom, y2) - np.maximum(top, y1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def select(
    predictions: Tensor, *, least_score: float = 0.01, nms_iou: float = 0.5, most: int = 100
) -> list[Detections]:
    """The boxes that stay after greedy non-maximum suppression, class by class.

    An anchor is a candidate once for each class. Boxes without area and values that are not
    finite are none. In each image the best 1,000 candidates are looked at.

    Args:
        predictions: float N x A x (C + 4): probabilities and decoded boxes.
        least_score: candidates with less are left out.
        nms_iou: a box that overlaps a better one of its class by more than this is left out.
        most: boxes that an image keeps, of all classes together.

    Returns:
        One for each image.

    Raises:
        ValueError: predictions of another shape.
    """
    _check_predictions(predictions)
    predictions = predictions.detach().to("cpu", torch.float32)
    probabilities, boxes = predictions[..., :-4], predictions[..., -4:]
    usable = (boxes[..., 2:] > boxes[..., :2]).all(-1) & boxes.isfinite().all(-1)
    usable = usable[..., None] & probabilities.isfinite() & (probabilities >= least_score)
    scores = torch.where(usable, probabilities, -torch.inf).flatten(1)
    # Stable, so that equal scores stay in the order of the anchors on every machine.
    scores, places = scores.sort(dim=1, descending=True, stable=True)
    classes = probabilities.shape[2]
    return [
        _suppressed(
            image_boxes[image_places[:count] // classes],
            image_scores[:count],
            image_places[:count] % classes,
            nms_iou,
            most,
        )
        for image_boxes, image_scores, image_places, count in zip(
            boxes,
            scores,
            places,
            usable.flatten(1).sum(1).clamp_max(CANDIDATES).tolist(),
            strict=True,
        )
    ]


def _suppressed(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_iou: float, most: int
) -> Detections:
    kept = batched_nms(
        boxes, scores, classes, nms_iou, max_proposals=most, box_overlap_metric=_tensor_iou
    )
    return Detections(boxes[kept].numpy(), scores[kept].numpy(), classes[kept].numpy())


def _tensor_iou(first: Tensor, second: Tensor) -> Tensor:
    # MONAI's own converts and checks its input in every round of NMS, which takes 3 times as long.
    return torch.from_numpy(box_iou(first.numpy(), second.numpy()))


def mean_of_dense(predictions: Sequence[Tensor]) -> Tensor:
    """The mean over networks of probabilities and of boxes, anchor by anchor.

    Args:
        predictions: of each network, float N x A x (C + 4), on one anchor grid.

    Returns:
        float N x A x (C + 4), for :func:`select`.

    Raises:
        ValueError: no network, or shapes that are not those of predictions or differ.
    """
    if not predictions:
        raise ValueError("there are no predictions to take the mean of")
    for each in predictions:
        _check_predictions(each)
        if each.shape != predictions[0].shape:
            raise ValueError(
                f"predictions have shapes {tuple(predictions[0].shape)} and {tuple(each.shape)}"
            )
    return torch.stack(list(predictions)).mean(0)


def weighted_box_fusion(
    detections: Sequence[Sequence[Detections]], *, iou: float = 0.55, most: int = 100
) -> list[Detections]:
    """Boxes of several networks, those that overlap fused to their weighted mean.

    Solovyev, Wang and Gabruseva (arXiv 1910.13302, section 3.1). In each image and class all
    networks' boxes are taken by falling score. A box joins the cluster whose fused box it overlaps
    most, if by more than ``iou``, or else founds one. The fused box is the mean of its members'
    edges, weighted by score; its score is the mean of theirs, times
    min(members, networks) / networks. Boxes of score 0 are left out, as they weigh nothing.

    Args:
        detections: of each network, those of each image.
        iou: see above; the paper's value.
        most: boxes that an image keeps, of all classes together.

    Returns:
        One for each image.

    Raises:
        ValueError: no network, or different numbers of images.
    """
    if not detections:
        raise ValueError("there are no networks to fuse")
    if len({len(of_network) for of_network in detections}) > 1:
        raise ValueError("networks have different numbers of images")
    return [_fused_image(of_networks, iou, most) for of_networks in zip(*detections, strict=True)]


def _fused_image(of_networks: Sequence[Detections], iou: float, most: int) -> Detections:
    boxes = np.concatenate([each.boxes for each in of_networks]).astype(np.float64)
    scores = np.concatenate([each.scores for each in of_networks]).astype(np.float64)
    classes = np.concatenate([each.classes for each in of_networks])
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    numbers = np.unique(classes[order])
    fused = [
        _fused_class(boxes[of_class], scores[of_class], len(of_networks), iou)
        for of_class in (order[classes[order] == number] for number in numbers)
    ]
    boxes = np.concatenate([np.zeros((0, 4)), *(fused_boxes for fused_boxes, _ in fused)])
    scores = np.concatenate([np.zeros(0), *(fused_scores for _, fused_scores in fused)])
    classes = np.repeat(numbers, [len(fused_scores) for _, fused_scores in fused])
    best = np.argsort(-scores, kind="stable")[:most]
    return Detections(
        boxes[best].astype(np.float32), scores[best].astype(np.float32), classes[best]
    )


def _fused_class(
    boxes: np.ndarray, scores: np.ndarray, networks: int, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fused boxes and their scores, of boxes in falling order of score."""
    fused, weighted = np.zeros_like(boxes), np.zeros_like(boxes)
    totals, members = np.zeros(len(boxes)), np.zeros(len(boxes))
    clusters = 0
    for box, score in zip(boxes, scores, strict=True):
        overlaps = box_iou(box[None], fused[:clusters])[0]
        joined = int(overlaps.argmax()) if clusters else clusters
        if not clusters or overlaps[joined] <= iou:
            joined, clusters = clusters, clusters + 1
        weighted[joined] += score * box
        totals[joined] += score
        members[joined] += 1
        fused[joined] = weighted[joined] / totals[joined]
    totals, members = totals[:clusters], members[:clusters]
    return fused[:clusters], totals / members * np.minimum(members, networks) / networks


def _check_predictions(predictions: Tensor) -> None:
    if predictions.ndim != 3 or predictions.shape[2] < 5:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)}, not N x A x (classes + 4)"
        )
