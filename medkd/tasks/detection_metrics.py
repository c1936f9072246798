"""How good detections are, against true boxes.

Detections and true boxes are matched once (:func:`match`). A figure then is a function of how often
each image counts, so that the figure itself and thousands of bootstrap resamples
(:mod:`medkd.tasks.detection_intervals`) come from the same few lines.

A detection is right at an IoU threshold where it is matched to a true box of its class: as COCO has
it, detections take their turn by falling score, each takes the free true box that it overlaps most,
and what is found twice is wrong the second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from monai.apps.detection.metrics.matching import matching_batch
from torch import Tensor

from medkd.tasks.detections import Detections, box_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AT_50, _AT_75 = 0, 5
_RECALLS = np.linspace(0.0, 1.0, 101)
# Of each class and image, as COCO counts them.
_MOST_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections and true boxes of some images, matched; made by :func:`match`.

    Attributes:
        images: how many images there are.
        scores: float64 D, of all images' detections, falling.
        classes: int64 D, their classes.
        image_of: int64 D, numbers of their images.
        right: bool 10 x D, whether each is matched at each of :data:`IOU_THRESHOLDS`.
        truth_classes: int64 G, classes of the true boxes.
        truth_image_of: int64 G, numbers of their images.
        overlaps: float64 P x 3: number of a true box, score of a detection of its class and image,
            their IoU; of all pairs that overlap.
    """

    images: int
    scores: np.ndarray
    classes: np.ndarray
    image_of: np.ndarray
    right: np.ndarray
    truth_classes: np.ndarray
    truth_image_of: np.ndarray
    overlaps: np.ndarray

    @property
    def truth_counts(self) -> np.ndarray:
        """How many true boxes each image has, int64 (images,)."""
        return np.bincount(self.truth_image_of, minlength=self.images)

    @property
    def ends(self) -> np.ndarray:
        """The last detection of every score, int64: a threshold does not part equal scores."""
        return np.flatnonzero(np.diff(self.scores, append=-np.inf) < 0)


@dataclass(frozen=True)
class Figure:
    """A figure of merit.

    Attributes:
        of: matches, and how often each image counts, float64 (resamples, images), to values,
            (resamples,); not a number where the figure cannot be had.
        of_negatives: whether it is of the images without a true box, and not of those with one.
        share: whether it is a share of images, or of their true boxes, that are in order.
    """

    of: Callable[[Matches, np.ndarray], np.ndarray]
    of_negatives: bool = False
    share: bool = False


def match(
    detections: Sequence[Detections], truth: Tensor | np.ndarray, classes: Sequence[str]
) -> Matches:
    """Match detections to true boxes, image by image and class by class.

    Args:
        detections: of each image.
        truth: N x M x 5: class number, x1, y1, x2, y2 in pixels; class -1 for padding.
        classes: their names, for as many as there are.

    Raises:
        ValueError: shapes or numbers of images that do not fit, true boxes that are not finite, or
            a class without a name.
    """
    labels = torch.as_tensor(truth).detach().cpu().numpy().astype(np.float64)
    if labels.ndim != 3 or labels.shape[2] != 5:
        raise ValueError(f"truth has shape {labels.shape}, not N x M x 5")
    if len(labels) != len(detections):
        raise ValueError(f"{len(detections)} images of detections and {len(labels)} of truth")
    if not np.isfinite(labels).all():
        raise ValueError("truth is not finite")
    boxes = [image[image[:, 0] >= 0, 1:] for image in labels]
    numbers = [image[image[:, 0] >= 0, 0].astype(np.int64) for image in labels]
    highest = int(_joined([*numbers, *(image.classes for image in detections)]).max(initial=-1))
    if highest >= len(classes):
        raise ValueError(f"class {highest} is there, and {len(classes)} classes have a name")
    matched = matching_batch(
        box_iou,
        IOU_THRESHOLDS.tolist(),
        [image.boxes for image in detections],
        [image.classes for image in detections],
        [image.scores for image in detections],
        boxes,
        numbers,
        max_detections=_MOST_DETECTIONS,
    )
    parts = [(i, number, part) for i, of in enumerate(matched) for number, part in of.items()]
    scores = _joined([part["dtScores"] for _, _, part in parts])
    # Stable, as COCO's is: of equal scores the earlier image's comes first.
    order = np.argsort(-scores, kind="stable")
    counts = [len(part["dtScores"]) for _, _, part in parts]
    none = np.zeros((len(IOU_THRESHOLDS), 0))
    right = np.concatenate([none, *(part["dtMatches"] for _, _, part in parts)], axis=1) > 0
    return Matches(
        images=len(detections),
        scores=scores[order],
        classes=np.repeat(np.array([n for _, n, _ in parts], np.int64), counts)[order],
        image_of=np.repeat(np.array([i for i, _, _ in parts], np.int64), counts)[order],
        right=right[:, order],
        truth_classes=_joined(numbers).astype(np.int64),
        truth_image_of=np.repeat(np.arange(len(boxes)), [len(n) for n in numbers]),
        overlaps=_overlaps(detections, boxes, numbers),
    )


def _overlaps(
    detections: Sequence[Detections], boxes: Sequence[np.ndarray], numbers: Sequence[np.ndarray]
) -> np.ndarray:
    rows, before = [np.zeros((0, 3))], 0
    for found, true, of_class in zip(detections, boxes, numbers, strict=True):
        ious = box_iou(true, found.boxes) * (of_class[:, None] == found.classes)
        which, by = np.nonzero(ious)
        rows.append(np.stack([which + before, found.scores[by], ious[which, by]], axis=1))
        before += len(true)
    return np.concatenate(rows)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *arrays])


def average_precision(
    matches: Matches, weights: np.ndarray, levels: Sequence[int] = range(len(IOU_THRESHOLDS))
) -> np.ndarray:
    """COCO's average precision: its mean over IoU thresholds and over classes that have a box.

    For one of each it is the mean over the recalls 0, 0.01 ... 1 of the highest precision at that
    recall or more (cocoapi, ``cocoeval.py``; all areas, 100 detections of a class in an image).

    Args:
        matches: from :func:`match`.
        weights: how often each image counts, (resamples, images).
        levels: which of :data:`IOU_THRESHOLDS`.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for number in np.unique(matches.truth_classes):
        of_class = np.flatnonzero(matches.classes == number)
        detected = weights[:, matches.image_of[of_class]].cumsum(axis=1)
        boxes = _weight_of_truth(matches, weights, matches.truth_classes == number)
        for level in levels:
            # Only where a detection is right does recall rise: the rest of the curve is not needed.
            places = np.flatnonzero(matches.right[level, of_class])
            found = weights[:, matches.image_of[of_class[places]]].cumsum(axis=1)
            precision = _ratio(found, detected[:, places], absent=0.0)
            highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = _ratio(found, boxes[:, None], absent=0.0)
            reached = np.searchsorted(_RECALLS, recall, side="right")
            total += (highest * np.diff(reached, axis=1, prepend=0)).sum(1) / len(_RECALLS)
        classes += boxes > 0
    return _ratio(total, classes * len(levels))


def recall_at_false_positives(
    matches: Matches, weights: np.ndarray, per_image: float = 1.0
) -> np.ndarray:
    """A point of the FROC curve: the highest recall with so many false positives an image.

    Over all score thresholds at which wrong detections are at most ``per_image`` on average over
    all images, with a box or without, the share of true boxes that are found, at IoU 0.5.

    Args:
        matches: from :func:`match`.
        weights: how often each image counts, (resamples, images).
        per_image: false positives that are allowed.
    """
    of_detections = weights[:, matches.image_of]
    right, ends = matches.right[_AT_50], matches.ends
    found = (of_detections * right).cumsum(axis=1)[:, ends]
    wrong = (of_detections * ~right).cumsum(axis=1)[:, ends]
    allowed = wrong <= per_image * weights.sum(1, keepdims=True)
    return _ratio((found * allowed).max(axis=1, initial=0), _weight_of_truth(matches, weights))


def false_positives_per_negative_image(
    matches: Matches, weights: np.ndarray, threshold: float
) -> np.ndarray:
    """Detections that score at least ``threshold``, per image without a true box."""
    negative = matches.truth_counts == 0
    called = np.bincount(matches.image_of[matches.scores >= threshold], minlength=matches.images)
    return _ratio(weights @ (called * negative), weights @ negative)


def sensitivity(matches: Matches, weights: np.ndarray, threshold: float) -> np.ndarray:
    """Share of images with a true box in which one is found: by IoU 0.5 and ``threshold``."""
    right = matches.right[_AT_50] & (matches.scores >= threshold)
    found = np.bincount(matches.image_of[right], minlength=matches.images) > 0
    return _ratio(weights @ found, weights @ (matches.truth_counts > 0))


def mean_iou(matches: Matches, weights: np.ndarray, threshold: float) -> np.ndarray:
    """Mean over true boxes of the IoU with the best detection of their class.

    Detections that score at least ``threshold`` count; where none overlaps a box, its IoU is 0.
    """
    best = np.zeros(len(matches.truth_classes))
    which, _, ious = matches.overlaps[matches.overlaps[:, 1] >= threshold].T
    np.maximum.at(best, which.astype(np.int64), ious)
    sums = np.bincount(matches.truth_image_of, best, minlength=matches.images)
    return _ratio(weights @ sums, weights @ matches.truth_counts)


def best_threshold(matches: Matches) -> float | None:
    """The score threshold with the highest F1 at IoU 0.5, to be chosen on validation images.

    F1 = 2 found / (detections + true boxes), over all images and classes. Of equals the highest;
    1.0 where no detection is right.

    Returns:
        One of the scores, or 1.0; None where there is no true box.
    """
    if not len(matches.truth_classes):
        return None
    found = matches.right[_AT_50].cumsum()
    f1 = 2 * found / (np.arange(1, len(found) + 1) + len(matches.truth_classes))
    ends = matches.ends
    if not f1[ends].any():
        return 1.0
    return float(matches.scores[ends[f1[ends].argmax()]])


def figures(threshold: float | None) -> Mapping[str, Figure]:
    """All figures by name; those at a score threshold only where there is one."""
    always = {
        "ap": Figure(average_precision),
        "ap50": Figure(partial(average_precision, levels=(_AT_50,))),
        "ap75": Figure(partial(average_precision, levels=(_AT_75,))),
        "recall_at_1_fp": Figure(recall_at_false_positives, share=True),
    }
    if threshold is None:
        return always
    false_positives = partial(false_positives_per_negative_image, threshold=threshold)
    return always | {
        "fp_per_negative_image": Figure(false_positives, of_negatives=True),
        "sensitivity": Figure(partial(sensitivity, threshold=threshold), share=True),
        "mean_iou": Figure(partial(mean_iou, threshold=threshold)),
    }


def metrics(
    detections: Sequence[Detections],
    truth: Tensor | np.ndarray,
    classes: Sequence[str],
    *,
    threshold: float | None = None,
) -> dict[str, float]:
    """How good detections are.

    Args:
        detections, truth, classes: as :func:`match` has them.
        threshold: score from which on a detection counts, where one must be had; by default that
            of :func:`best_threshold` on these very images, as on validation data.

    Returns:
        ``ap`` (COCO, IoU 0.50 to 0.95), ``ap50``, ``ap75``, ``recall_at_1_fp``,
        ``fp_per_negative_image``, ``sensitivity``, ``mean_iou`` and ``threshold``. What cannot be
        had, because no image has a box or every image has one, is left out.

    Raises:
        ValueError: as :func:`match` has it.
    """
    matches = match(detections, truth, classes)
    threshold = best_threshold(matches) if threshold is None else threshold
    once = np.ones((1, matches.images))
    values = {name: float(f.of(matches, once)[0]) for name, f in figures(threshold).items()}
    values |= {} if threshold is None else {"threshold": threshold}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _weight_of_truth(
    matches: Matches, weights: np.ndarray, which: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """How many true boxes there are, each as often as its image counts, (resamples,)."""
    images = matches.truth_image_of[which]
    return weights @ np.bincount(images, minlength=matches.images)


def _ratio(above: np.ndarray, below: np.ndarray, absent: float = np.nan) -> np.ndarray:
    """The quotient, ``absent`` where it is x / 0."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, absent), where=below > 0)
