"""The losses that a link between detectors can carry.

Each is a plain function of a target and a learner on the same anchors, as in
:mod:`medkd.distill.links`. ``logits`` of a detector are float N x anchors x (classes + 4): a logit
for each class (sigmoid, no class of background), then the box's code. ``targets`` are what a
detection task makes of labels, float N x anchors x 5: the class that the anchor is matched with,
-1 where it is background, and the box. Boxes are x1, y1, x2, y2 in pixels of the image.

Sums go over the anchors of all images of a batch, so that an image without a box weighs little;
what weighs an anchor never carries a gradient. [ours] says which definition is in no paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medkd.distill.links import LinkLoss

BOX_CODE = 4
"""Numbers at the end of an anchor's logits that say where its box is."""

LEAST_CONFIDENCE = 0.3
"""Below it a target's box teaches no one. [ours]"""

# As torchvision's and MONAI's detectors have it: a box is at most 62.5 times as long as its anchor.
_LARGEST_CODE = math.log(1000 / 16)


def class_kl(target: Tensor, learner: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the weighted mean over anchors of the classes' binary KL(target || learner).

    Each class is a question of its own, sigmoid(z / T) its answer (arXiv 2308.14286); classes add
    up. An anchor weighs 1 where it is foreground by the labels, and elsewhere as much as the
    target's largest probability, untempered [ours]: else the background would drown the rest.

    Args:
        target: logits, float N x anchors x (classes + 4).
        learner: likewise.
        targets: float N x anchors x 5.
        temperature: T, above 0.

    Returns:
        A scalar tensor, as of every loss here.
    """
    z, u = target[..., :-BOX_CODE] / temperature, learner[..., :-BOX_CODE] / temperature
    yes = z.sigmoid() * (F.logsigmoid(z) - F.logsigmoid(u))
    no = (-z).sigmoid() * (F.logsigmoid(-z) - F.logsigmoid(-u))
    weight = torch.maximum(_confidence(target), is_foreground(targets).to(target.dtype))
    return temperature**2 * _weighted_mean((yes + no).sum(dim=-1), weight)


def box(
    target: Tensor,
    learner: Tensor,
    targets: Tensor,
    anchors: Tensor,
    image_px: int,
    least_confidence: float = LEAST_CONFIDENCE,
) -> Tensor:
    """Sum over anchors of 1 - GIoU plus the boxes' L1 distance in sides of the image.

    An anchor weighs as much as the target's largest probability, and nothing below
    ``least_confidence`` [ours]. Distilling boxes by their overlap: arXiv 2308.14286; GIoU and L1
    together: arXiv 2005.12872.

    The sum is divided by the number of anchors in the foreground by the labels, at least 1, as the
    supervised loss of boxes is [ours], so that no anchor pulls harder than a label would. Divided
    by the sum of weights instead, the few anchors of which peers are sure at first pulled as hard
    as all labels together, and mutual learning lost a third of its AP50 on validation images
    (docs/results.md).

    Args:
        target: logits, float N x anchors x (classes + 4).
        learner: likewise.
        targets: float N x anchors x 5.
        anchors: float anchors x 4, boxes.
        image_px: side of the image.
        least_confidence: 0 to 1.
    """
    confidence = _confidence(target)
    weight = torch.where(confidence >= least_confidence, confidence, 0)
    theirs = decoded(target[..., -BOX_CODE:], anchors)
    ours = decoded(learner[..., -BOX_CODE:], anchors)
    apart = 1 - giou(theirs, ours) + (theirs - ours).abs().sum(dim=-1) / image_px
    return (weight * apart).sum() / is_foreground(targets).sum().clamp(min=1)


def kl(
    target: Tensor,
    learner: Tensor,
    targets: Tensor,
    anchors: Tensor,
    image_px: int,
    temperature: float = 1.0,
) -> Tensor:
    """:func:`class_kl` plus :func:`box`: what a detector's ``kl`` is, so that methods serve as is.

    The temperature is of the classes alone.
    """
    classes = class_kl(target, learner, targets, temperature)
    return classes + box(target, learner, targets, anchors, image_px)


def imitation(target: Tensor, learner: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of pyramids in the cells where there is something.

    Near objects alone, as in fine-grained imitation (Wang et al., arXiv 1906.03609); which cells
    these are, those with an anchor in the foreground by the labels, is [ours]. The mean goes over
    the channels and over those cells of all images; it is 0 where there is none. The learner's
    pyramid comes here through a learned 1 x 1 projection to the target's channels.

    Args:
        target: pyramid, float N x channels x cells.
        learner: likewise.
        targets: float N x anchors x 5; a cell's anchors follow one another.
    """
    cells = target.shape[2]
    foreground = is_foreground(targets).unflatten(1, (cells, -1)).any(dim=-1)
    difference = (target - learner).square().mean(dim=1)
    return _weighted_mean(difference, foreground.to(difference.dtype))


def is_foreground(targets: Tensor) -> Tensor:
    """Which anchors are matched with a box: bool N x anchors, of N x anchors x 5."""
    return targets[..., 0] >= 0


def decoded(codes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes of their codes relative to anchors (arXiv 1506.01497, without weights).

    The centre is off the anchor's by dx, dy times its width and height; the width and height are
    the anchor's times exp dw, exp dh. dw and dh are kept between -log(1000 / 16) and that with its
    sign turned, so that every box has an area and what divides by it has a gradient. MONAI's
    ``BoxCoder`` computes in float32 whatever it is given, and asks the device twice whether its
    numbers are finite.

    Args:
        codes: float ... x anchors x 4: dx, dy, dw, dh.
        anchors: float anchors x 4, boxes.

    Returns:
        Boxes, of the shape and type of ``codes``.
    """
    anchors = anchors.to(codes.dtype)
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2 + codes[..., :2] * size
    half = codes[..., 2:].clamp(-_LARGEST_CODE, _LARGEST_CODE).exp() * size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of each box with its like (arXiv 1902.09630).

    Between -1 and 1; 1 for equal boxes that have an area. MONAI's ``box_pair_giou`` computes in
    float32 whatever it is given, asks the device whether boxes are right, and adds a constant to
    its denominators that keeps equal boxes from 1.

    Args:
        a: boxes, float ... x 4.
        b: likewise.

    Returns:
        Float of the shape of ``a`` without its last dimension.
    """
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    intersection, hull = _area(inner.clamp(min=0)), _area(outer)
    union = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - intersection
    # Two boxes without area have neither; so far below a pixel it is no matter what is said.
    least = torch.finfo(a.dtype).eps
    return intersection / union.clamp(min=least) - 1 + union / hull.clamp(min=least)


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def _confidence(logits: Tensor) -> Tensor:
    """The largest probability of an anchor's classes, without gradient: N x anchors."""
    return logits[..., :-BOX_CODE].detach().amax(dim=-1).sigmoid()


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The sum over all anchors over the sum of weights; over 1 where these are less."""
    return (weight * values).sum() / weight.sum().clamp(min=1)


DETECTION_LOSSES: dict[str, LinkLoss] = {
    "kl": LinkLoss(
        kl,
        ("logits",),
        r"L_{class\_kl} + L_{box}",
        "class_kl and box together",
        {"temperature": 1.0},
        needs_labels=True,
    ),
    "class_kl": LinkLoss(
        class_kl,
        ("logits",),
        r"\frac{T^2}{\max(1, \sum_a w_a)} \sum_a w_a \sum_c"
        r" KL(\sigma(z_{ac} / T) \| \sigma(u_{ac} / T)),\;"
        r" w_a = \max([a \in foreground], \max_c \sigma(z_{ac}))",
        "arXiv 2308.14286, with weights of our own",
        {"temperature": 1.0},
        needs_labels=True,
    ),
    "box": LinkLoss(
        box,
        ("logits",),
        r"\frac{1}{\max(1, |foreground|)}"
        r" \sum_a v_a (1 - GIoU(t_a, s_a) + \|t_a - s_a\|_1 / S),\;"
        r" v_a = \max_c \sigma(z_{ac}) \text{ if} \geq 0.3 \text{, else } 0",
        "arXiv 2308.14286 and 2005.12872, with weights of our own",
        needs_labels=True,
    ),
    "imitation": LinkLoss(
        imitation,
        ("pyramid",),
        r"\frac{1}{\max(1, |M|)} \sum_{i \in M} mean_c (F_{p,ci} - (W F_q)_{ci})^2,\;"
        r" M: cells with an anchor in the foreground",
        "arXiv 1906.03609",
        needs_labels=True,
        projects="learner",
    ),
}
"""By the name that a method's links use. A detection task binds ``anchors`` and ``image_px``."""
