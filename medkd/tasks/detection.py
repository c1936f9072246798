"""What a detection task is: boxes of classes, on a grid of anchors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import torch
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.distill.detection_links import BOX_CODE, DETECTION_LOSSES, decoded, giou, is_foreground
from medkd.distill.ensembles import Member, finite
from medkd.distill.links import LOSSES, LinkLoss
from medkd.distill.task import Criterion
from medkd.networks.anchor_grid import AnchorGrid
from medkd.networks.detector import Detector
from medkd.tasks import detection_metrics
from medkd.tasks.detections import mean_of_dense, select

_AP50 = Criterion("ap50", higher_is_better=True, label="AP50")

# Of the focal loss (arXiv 1708.02002, section 4.1).
_ALPHA, _GAMMA = 0.25, 2.0

# Of each level, for each shape of anchor: the k of arXiv 1912.02424, where 7 to 17 do the same. On
# 256 px with strides of 8 to 64 px it leaves a box of 24 px or more 3 to 8 anchors in the
# foreground where a cell has one shape, and 15 to 23 where it has three; MONAI's default of 4 half
# as many.
_CANDIDATES = 9


@dataclass(frozen=True)
class Detection:
    """The task of finding boxes; a :class:`medkd.distill.task.Task`.

    Attributes:
        grid: the anchors, the same for every network.
        classes: names of what is looked for; background is not among them.
        least_score: boxes of a lower score are no part of :meth:`metrics`.
        nms_iou: of two boxes of a class that overlap more, the better one is a part of it.

    Labels are float32 N x M x 5: class number, x1, y1, x2, y2 in pixels of the image, the right
    and lower edge outside; rows of class -1 are padding, and M may be 0. Logits are float N x
    anchors x (classes + 4), as :mod:`medkd.distill.detection_links` has them.
    """

    grid: AnchorGrid
    classes: tuple[str, ...]
    least_score: float = 0.01
    nms_iou: float = 0.5

    @cached_property
    def link_losses(self) -> Mapping[str, LinkLoss]:
        """The losses that links can carry, by name; they know the anchors.

        Beside those of detectors, what classification compares of features. Its losses of logits
        are of classes that exclude one another.
        """
        of_features = {name: loss for name, loss in LOSSES.items() if "logits" not in loss.compares}
        on_anchors = {
            name: replace(loss, compute=partial(self._on_anchors, loss.compute))
            for name, loss in DETECTION_LOSSES.items()
            if name in ("kl", "box")
        }
        return of_features | DETECTION_LOSSES | on_anchors

    @property
    def criterion(self) -> Criterion:
        """Epochs are chosen by AP50."""
        return _AP50

    def refusal(self, network: nn.Module) -> str:
        """Why the network cannot do the task: no detector, other anchors, other classes."""
        if not isinstance(network, Detector):
            return "it is no detector, and boxes are looked for"
        if network.grid != self.grid:
            return f"its anchors are {_told(network.grid)}, and the task's {_told(self.grid)}"
        if network.classes != len(self.classes):
            return f"its classes are {network.classes}, and the task's {len(self.classes)}"
        return ""

    @torch.no_grad()
    def targets(self, labels: Tensor) -> Tensor:
        """Each anchor's box, by adaptive training sample selection (ATSS, arXiv 1912.02424).

        Boxes are cut at the image's edges; one that has no area there is left out. By the paper's
        rule a box without an anchor's centre in it has no anchor, and is background. That can be
        where it is narrower than the finest stride: of squares of 6 px on a stride of 8 px, 44%.

        Args:
            labels: float N x M x 5.

        Returns:
            float32 N x anchors x 5, on the device of the labels: the class, -1 for background, and
            the box, zeros for background.
        """
        boxes = labels[..., 1:].float().clamp(0, self.grid.image_px)
        rows = torch.cat([labels[..., :1].float(), boxes], dim=-1)
        kept = (rows[..., 0] >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        return torch.stack([self._matched(row[keep]) for row, keep in zip(rows, kept, strict=True)])

    def _matched(self, rows: Tensor) -> Tensor:
        """Each anchor's row, anchors x 5, of the true boxes of one image, K x 5."""
        nothing = rows.new_tensor([-1.0, 0.0, 0.0, 0.0, 0.0])
        if not len(rows):
            return nothing.expand(self.grid.count, -1)
        # MONAI takes x before y as it would y before x, and of levels the number of their cells.
        cells = [side * side for side in self.grid.sides]
        _, matches = _matcher()(rows[:, 1:], self._anchors(rows), cells, self.grid.per_cell)
        return torch.where(matches[:, None] >= 0, rows[matches.clamp(min=0)], nothing)

    def supervised_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Focal loss of the classes (arXiv 1708.02002) plus 1 - GIoU of boxes (1902.09630).

        The first is a sum over all anchors and classes, the second over anchors in the foreground;
        both are divided by the number of these in the batch, at least 1.

        Args:
            logits: float N x anchors x (classes + 4).
            targets: float N x anchors x 5, from :meth:`targets`.
        """
        scores = logits[..., :-BOX_CODE]
        foreground = is_foreground(targets)
        of_class = targets[..., :1] == torch.arange(scores.shape[-1], device=targets.device)
        # Their own formula, but in the type that it gets; a number for alpha would be copied there.
        alpha = scores.new_full((), _ALPHA)
        focal = sigmoid_focal_loss(scores, of_class.to(scores.dtype), _GAMMA, alpha)
        boxes = decoded(logits[..., -BOX_CODE:], self._anchors(logits))
        apart = (1 - giou(boxes, targets[..., 1:].to(boxes.dtype))) * foreground
        return (focal.sum() + apart.sum()) / foreground.sum().clamp(min=1)

    def mean_probabilities(self, members: Sequence[Member]) -> Tensor:
        """Logits whose sigmoid is the mean of the living members', and the mean of their codes.

        The logit of a mean: log sum sigmoid(z) - log sum sigmoid(-z). Without a living member
        there is nothing to say: all logits are 0.
        """
        logits = [finite(member.logits, member.alive) for member in members]

        def log_sum(sign: int) -> Tensor:
            logs = [
                torch.where(m.alive, F.logsigmoid(sign * z[..., :-BOX_CODE]), -torch.inf)
                for m, z in zip(members, logits, strict=True)
            ]
            return torch.stack(logs).logsumexp(dim=0)

        alive = torch.stack([member.alive for member in members])
        scores = torch.where(alive.any(), log_sum(1) - log_sum(-1), 0)
        codes = torch.stack([z[..., -BOX_CODE:] for z in logits])
        mean_codes = torch.einsum("k,k...->...", alive.to(codes.dtype), codes)
        return torch.cat([scores, mean_codes / alive.sum().clamp(min=1)], dim=-1)

    def predictions(self, logits: Tensor) -> Tensor:
        """Probabilities and boxes, the boxes cut at the image's edges: N x anchors x (classes + 4).

        Which of them are detections: :func:`medkd.tasks.detections.select`.
        """
        boxes = decoded(logits[..., -BOX_CODE:], self._anchors(logits))
        probabilities = logits[..., :-BOX_CODE].sigmoid()
        return torch.cat([probabilities, boxes.clamp(0, self.grid.image_px)], dim=-1)

    def mean_prediction(self, predictions: Sequence[Tensor]) -> Tensor:
        """The mean of probabilities and of boxes, anchor by anchor."""
        return mean_of_dense(predictions)

    def metrics(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """See :func:`medkd.tasks.detection_metrics.metrics`.

        Args:
            predictions: float N x anchors x (classes + 4), from :meth:`predictions`.
            labels: float N x M x 5.
        """
        found = select(predictions, least_score=self.least_score, nms_iou=self.nms_iou)
        return detection_metrics.metrics(found, labels, self.classes)

    def example_labels(self, count: int, device: torch.device) -> Tensor:
        """A box of the first class in the middle of each image, half as wide and high."""
        near, far = self.grid.image_px / 4, self.grid.image_px * 3 / 4
        return torch.tensor([0, near, near, far, far], device=device).expand(count, 1, -1)

    def _anchors(self, like: Tensor) -> Tensor:
        return _anchors(self.grid, like.device, like.dtype)

    def _on_anchors(
        self, compute: Callable[..., Tensor], target: Tensor, learner: Tensor, **more: object
    ) -> Tensor:
        anchors = self._anchors(learner)
        return compute(target, learner, anchors=anchors, image_px=self.grid.image_px, **more)


@lru_cache(maxsize=8)
def _anchors(grid: AnchorGrid, device: torch.device, dtype: torch.dtype) -> Tensor:
    # What is kept must serve whoever comes next, whatever mode the first to ask is in.
    with torch.inference_mode(False):
        return grid.boxes().to(device, dtype)


@lru_cache(maxsize=1)
def _matcher() -> ATSSMatcher:
    # It greets the root logger, which would then write what every library says to the terminal.
    silence = logging.NullHandler()
    logging.root.addHandler(silence)
    try:
        return ATSSMatcher(_CANDIDATES)
    finally:
        logging.root.removeHandler(silence)


def _told(grid: AnchorGrid) -> str:
    sizes = " / ".join(", ".join(f"{size:g}" for size in level) for level in grid.sizes_px)
    ratios = ", ".join(f"{ratio:g}" for ratio in grid.ratios)
    strides = ", ".join(map(str, grid.strides))
    return (
        f"of {sizes} px with ratios {ratios}, on strides of {strides} px in images of "
        f"{grid.image_px} px"
    )
