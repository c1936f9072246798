"""Formulas of detection written out in plain loops, in float64; as :mod:`tests.distill.naive`.

Nothing here uses :mod:`medkd`. A box is four numbers: x1, y1, x2, y2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Sequence[Tensor] | Tensor

LARGEST_CODE = math.log(1000 / 16)


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""
    return p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))


def largest_probability(logits: Tensor) -> float:
    """Of an anchor's class logits; a plain number, so that no gradient goes through it."""
    return max(float(sigmoid(z.detach())) for z in logits)


def add(values: list[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros((), dtype=torch.float64))


def class_kl(target: Tensor, learner: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 sum_a w_a sum_c KL(sigma(z / T) || sigma(u / T)) / max(1, sum_a w_a)."""
    terms, weights = [], 0.0
    for z, u, matched in zip(
        target.flatten(0, 1), learner.flatten(0, 1), targets.flatten(0, 1), strict=True
    ):
        foreground = 1.0 if matched[0] >= 0 else 0.0
        weight = max(foreground, largest_probability(z[:-4]))
        for a, b in zip(z[:-4], u[:-4], strict=True):
            divergence = binary_kl(sigmoid(a / temperature), sigmoid(b / temperature))
            terms.append(weight * divergence)
        weights += weight
    return temperature**2 * add(terms) / max(1.0, weights)


def decode(code: Numbers, anchor: Numbers) -> list[Tensor]:
    """Centre: the anchor's plus dx w, dy h; size: exp(dw) w, exp(dh) h."""
    dx, dy, dw, dh = code
    x1, y1, x2, y2 = anchor
    w, h = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    wide, high = (
        torch.exp(torch.clamp(d, min=-LARGEST_CODE, max=LARGEST_CODE)) * side
        for d, side in ((dw, w), (dh, h))
    )
    return [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]


def area(b: Numbers) -> Tensor:
    return (b[2] - b[0]) * (b[3] - b[1])


def iou_and_union(a: Numbers, b: Numbers) -> tuple[Tensor, Tensor]:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    common = wide * high if wide > 0 and high > 0 else 0 * area(a)
    union = area(a) + area(b) - common
    return common / union, union


def giou(a: Numbers, b: Numbers) -> Tensor:
    """IoU - |C minus union| / |C|, C the smallest box around both (arXiv 1902.09630)."""
    iou, union = iou_and_union(a, b)
    around = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
    return iou - (area(around) - union) / area(around)


def box(
    target: Tensor,
    learner: Tensor,
    targets: Tensor,
    anchors: Tensor,
    image_px: int,
    least_confidence: float,
) -> Tensor:
    """sum_a v_a [1 - GIoU(t_a, s_a) + |t_a - s_a|_1 / S] / max(1, |foreground|)."""
    terms, foreground = [], 0
    for theirs, ours, labels in zip(target, learner, targets, strict=True):
        for z, u, matched, anchor in zip(theirs, ours, labels, anchors, strict=True):
            foreground += int(matched[0] >= 0)
            confidence = largest_probability(z[:-4])
            if confidence < least_confidence:
                continue
            t, s = decode(z[-4:], anchor), decode(u[-4:], anchor)
            distance = sum(abs(a - b) for a, b in zip(t, s, strict=True)) / image_px
            terms.append(confidence * (1 - giou(t, s) + distance))
    return add(terms) / max(1, foreground)


def imitation(target: Tensor, learner: Tensor, targets: Tensor) -> Tensor:
    """Mean over channels, and over cells with an anchor in the foreground, of (F_t - F_s)^2."""
    images, channels, cells = target.shape
    per_cell = targets.shape[1] // cells
    squares, count = [], 0
    for n in range(images):
        for cell in range(cells):
            own = targets[n, cell * per_cell : (cell + 1) * per_cell, 0]
            if max(own.tolist()) < 0:
                continue
            count += 1
            for c in range(channels):
                squares.append((target[n, c, cell] - learner[n, c, cell]) ** 2 / channels)
    return add(squares) / max(1, count)


def supervised(logits: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002, alpha 0.25, gamma 2) of all anchors, and 1 - GIoU of those in
    the foreground; over their number, at least 1."""
    terms, foreground = [], 0
    for own, matched_with in zip(logits, targets, strict=True):
        for z, matched, anchor in zip(own, matched_with, anchors, strict=True):
            for c, logit in enumerate(z[:-4]):
                p = sigmoid(logit)
                if int(matched[0]) == c:
                    terms.append(-0.25 * (1 - p) ** 2 * torch.log(p))
                else:
                    terms.append(-0.75 * p**2 * torch.log(1 - p))
            if matched[0] >= 0:
                foreground += 1
                terms.append(1 - giou(decode(z[-4:], anchor), matched[1:]))
    return add(terms) / max(1, foreground)


def atss(
    boxes: list[list[float]],
    anchors: list[list[float]],
    level_sizes: list[int],
    per_cell: int,
    candidates: int,
) -> list[int]:
    """Which box each anchor is matched with, -1 for none: arXiv 1912.02424, algorithm 1.

    Of each level the anchors whose centres are nearest to the box's are its candidates, so many
    for each anchor of a cell; MONAI takes no more than the level has cells. Those whose IoU is at
    least the candidates' mean plus standard deviation, and whose centre is inside the box, are
    positive. An anchor that is positive for several boxes goes to the one with the largest IoU.
    """

    def centre(b: list[float]) -> tuple[float, float]:
        return (b[0] + b[2]) / 2, (b[1] + b[3]) / 2

    def iou(a: list[float], b: list[float]) -> float:
        wide = min(a[2], b[2]) - max(a[0], b[0])
        high = min(a[3], b[3]) - max(a[1], b[1])
        common = max(wide, 0) * max(high, 0)
        return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)

    best = [0.0] * len(anchors)
    matched = [-1] * len(anchors)
    for number, b in enumerate(boxes):
        chosen: list[int] = []
        start = 0
        for size in level_sizes:
            level = sorted(
                range(start, start + size),
                key=lambda i: math.dist(centre(anchors[i]), centre(b)),
            )
            chosen += level[: min(candidates * per_cell, size // per_cell)]
            start += size
        overlaps = [iou(anchors[i], b) for i in chosen]
        mean = sum(overlaps) / len(overlaps)
        spread = math.sqrt(sum((o - mean) ** 2 for o in overlaps) / (len(overlaps) - 1))
        for i, overlap in zip(chosen, overlaps, strict=True):
            x, y = centre(anchors[i])
            inside = b[0] < x < b[2] and b[1] < y < b[3]
            if overlap >= mean + spread and inside and overlap > best[i]:
                best[i], matched[i] = overlap, number
    return matched
