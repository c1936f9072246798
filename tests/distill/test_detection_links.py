"""Losses between detectors against naive transcriptions, and against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_pair_giou
from torch import Tensor

from medkd.distill.detection_links import (
    DETECTION_LOSSES,
    box,
    class_kl,
    decoded,
    giou,
    imitation,
    kl,
)
from medkd.distill.links import LOSSES
from tests.distill import naive_detection as naive

IMAGE_PX = 32
CLASSES = 3
IMAGES = 3
CELLS = 20
PER_CELL = 2
CHANNELS = 5


def anchors() -> Tensor:
    """Two sizes on each cell of 16 and of 4: float64 40 x 4."""
    boxes = [
        [x - size / 2, y - size / 2, x + size / 2, y + size / 2]
        for stride, sizes in ((8, (8, 14)), (16, (20, 30)))
        for y in range(stride // 2, IMAGE_PX, stride)
        for x in range(stride // 2, IMAGE_PX, stride)
        for size in sizes
    ]
    return torch.tensor(boxes, dtype=torch.float64)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def logits(seed: int) -> Tensor:
    """Some probabilities are under 0.3 and some over it; some codes are over the largest."""
    values = draw(IMAGES, CELLS * PER_CELL, CLASSES + 4, seed=seed)
    values[..., :CLASSES] -= 2
    return values


def targets(seed: int = 3) -> Tensor:
    """An anchor in five is foreground, and none of the second image."""
    generator = torch.Generator().manual_seed(seed)
    shape = (IMAGES, CELLS * PER_CELL)
    classes = torch.randint(CLASSES, shape, generator=generator)
    background = torch.rand(shape, generator=generator) > 0.2
    background[1] = True
    corners = 20 * torch.rand(*shape, 2, generator=generator)
    sides = 1 + 11 * torch.rand(*shape, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=-1)
    classes = classes.masked_fill(background, -1)
    return torch.cat([classes[..., None], boxes.masked_fill(background[..., None], 0)], dim=-1)


def inputs(name: str) -> tuple[Tensor, Tensor]:
    if DETECTION_LOSSES[name].compares == ("pyramid",):
        shape = (IMAGES, CHANNELS, CELLS)
        return draw(*shape, seed=1), draw(*shape, seed=2)
    return logits(1), logits(2)


def compute(name: str, target: Tensor, learner: Tensor, **settings: float) -> Tensor:
    more: dict[str, object] = {"targets": targets()} if DETECTION_LOSSES[name].needs_labels else {}
    if name in ("kl", "box"):
        more |= {"anchors": anchors(), "image_px": IMAGE_PX}
    return DETECTION_LOSSES[name].compute(target, learner, **more, **settings)


TRANSCRIBED: list[tuple[str, dict[str, float], Callable[[Tensor, Tensor], Tensor]]] = [
    ("class_kl", {}, lambda t, s: naive.class_kl(t, s, targets(), 1)),
    ("class_kl", {"temperature": 4.0}, lambda t, s: naive.class_kl(t, s, targets(), 4)),
    ("box", {}, lambda t, s: naive.box(t, s, targets(), anchors(), IMAGE_PX, 0.3)),
    (
        "box",
        {"least_confidence": 0.7},
        lambda t, s: naive.box(t, s, targets(), anchors(), IMAGE_PX, 0.7),
    ),
    (
        "kl",
        {"temperature": 4.0},
        lambda t, s: (
            naive.class_kl(t, s, targets(), 4)
            + naive.box(t, s, targets(), anchors(), IMAGE_PX, 0.3)
        ),
    ),
    ("imitation", {}, lambda t, s: naive.imitation(t, s, targets())),
]


def test_every_loss_is_transcribed() -> None:
    assert {name for name, _, _ in TRANSCRIBED} == set(DETECTION_LOSSES)


@pytest.mark.parametrize(
    ("name", "settings", "transcription"),
    TRANSCRIBED,
    ids=[f"{name} {list(settings.values())}" for name, settings, _ in TRANSCRIBED],
)
def test_values_and_gradients_equal_the_formula(
    name: str, settings: dict[str, float], transcription: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """The target's gradient too: there is none through what weighs an anchor."""
    target, learner = (x.requires_grad_() for x in inputs(name))
    value = compute(name, target, learner, **settings)
    expected = transcription(target, learner)
    assert value.shape == ()
    assert value > 0.01
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    ours = torch.autograd.grad(value, (target, learner))
    theirs = torch.autograd.grad(expected, (target, learner))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", sorted(DETECTION_LOSSES))
def test_gradients_by_differences(name: str) -> None:
    target, learner = inputs(name)
    assert torch.autograd.gradcheck(lambda s: compute(name, target, s), learner.requires_grad_())


@pytest.mark.parametrize("name", sorted(DETECTION_LOSSES))
def test_a_perfect_target_costs_nothing(name: str) -> None:
    """And pulls nowhere."""
    target, _ = inputs(name)
    learner = target.clone().requires_grad_()
    value = compute(name, target, learner)
    assert value.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, learner)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", sorted(DETECTION_LOSSES))
def test_a_detached_target_learns_nothing(name: str) -> None:
    target, learner = (x.requires_grad_() for x in inputs(name))
    compute(name, target.detach(), learner).backward()
    assert target.grad is None
    assert learner.grad is not None
    assert learner.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(DETECTION_LOSSES))
def test_defaults_are_those_that_links_get(name: str) -> None:
    pair = inputs(name)
    assert compute(name, *pair) == compute(name, *pair, **DETECTION_LOSSES[name].settings)


def test_a_method_can_set_what_it_sets_of_classification() -> None:
    """So that a method's file serves both tasks."""
    assert DETECTION_LOSSES["kl"].settings == LOSSES["kl"].settings
    assert DETECTION_LOSSES["kl"].compares == LOSSES["kl"].compares


# By hand. One image, one or two anchors, one class. ln 3 gives p = 3/4; q = 1/2.

ANCHOR = torch.tensor([[0.0, 0.0, 10.0, 10.0]], dtype=torch.float64)
FOREGROUND = torch.tensor([[[0.0, 1.0, 1.0, 9.0, 9.0]]], dtype=torch.float64)
BACKGROUND = torch.tensor([[[-1.0, 0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
KL = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)


def one(class_logit: float, code: tuple[float, ...] = (0, 0, 0, 0)) -> Tensor:
    return torch.tensor([[[class_logit, *code]]], dtype=torch.float64)


def test_class_kl_by_hand() -> None:
    target, learner = one(math.log(3)), one(0.0)
    assert class_kl(target, learner, FOREGROUND).item() == pytest.approx(KL)
    # Three quarters sure of background: so much it weighs, and less than 1 divides by 1.
    assert class_kl(target, learner, BACKGROUND).item() == pytest.approx(0.75 * KL)
    # Three such anchors weigh 2.25, and that divides.
    three = [x.repeat(1, 3, 1) for x in (target, learner, BACKGROUND)]
    assert class_kl(*three).item() == pytest.approx(KL)
    # Of two classes the losses add up; the other one is equal on both sides.
    two = [torch.cat([one(0.5)[..., :1], x], dim=-1) for x in (target, learner)]
    assert class_kl(*two, FOREGROUND).item() == pytest.approx(KL)


@pytest.mark.parametrize(("temperature", "gradient"), [(1.0, 0.0249792), (4.0, 0.0249987)])
def test_the_gradient_keeps_its_size_at_any_temperature(
    temperature: float, gradient: float
) -> None:
    """T^2 / T (sigmoid(0.1 / T) - 1/2); without T^2 a sixteenth of it at T = 4."""
    learner = one(0.1).requires_grad_()
    class_kl(one(0.0), learner, FOREGROUND, temperature).backward()
    assert learner.grad is not None
    assert learner.grad[0, 0, 0].item() == pytest.approx(gradient, abs=1e-7)


def test_box_by_hand() -> None:
    """dx = 1 puts the box beside the target's: IoU 0, the hull is their union, GIoU 0."""
    target, learner = one(math.log(3)), one(0.0, (1, 0, 0, 0))
    # 3/4 (1 - 0 + 20 px / 100 px)
    assert box(target, learner, FOREGROUND, ANCHOR, 100).item() == pytest.approx(0.75 * 1.2)
    # Half as wide: IoU 1/2 = GIoU; x1 moves by 2.5 px and x2 as much.
    learner = one(0.0, (0, 0, math.log(1 / 2), 0))
    assert box(target, learner, FOREGROUND, ANCHOR, 100).item() == pytest.approx(0.75 * 0.55)


def test_no_anchor_pulls_harder_than_a_label_would() -> None:
    """Three anchors in the foreground, and the target sure of one: a third of what one weighs."""
    target = torch.cat([one(math.log(3)), one(-5.0), one(-5.0)], dim=1)
    learner = one(0.0, (1, 0, 0, 0)).repeat(1, 3, 1)
    three = FOREGROUND.repeat(1, 3, 1)
    value = box(target, learner, three, ANCHOR.repeat(3, 1), 100)
    assert value.item() == pytest.approx(0.75 * 1.2 / 3)
    # Where nothing is, there is no more than one label's worth of it.
    nothing = box(target, learner, BACKGROUND.repeat(1, 3, 1), ANCHOR.repeat(3, 1), 100)
    assert nothing.item() == pytest.approx(0.75 * 1.2)


@pytest.mark.parametrize(("class_logit", "taught"), [(-0.85, False), (-0.84, True)])
def test_a_target_teaches_boxes_from_a_confidence_of_three_tenths(
    class_logit: float, taught: bool
) -> None:
    """logit(0.3) = -0.8473."""
    value = box(one(class_logit), one(0.0, (1, 0, 0, 0)), FOREGROUND, ANCHOR, 100)
    assert (value.item() > 0) == taught


def test_imitation_by_hand() -> None:
    """Cell 1 of two has an anchor in the foreground: its second one of two."""
    target = torch.tensor([[[5.0, 1.0], [7.0, 2.0]]], dtype=torch.float64)
    labels = torch.cat([BACKGROUND, BACKGROUND, BACKGROUND, FOREGROUND], dim=1)
    assert imitation(target, torch.zeros_like(target), labels).item() == pytest.approx((1 + 4) / 2)
    # Both of its anchors: the cell counts once.
    labels = torch.cat([BACKGROUND, BACKGROUND, FOREGROUND, FOREGROUND], dim=1)
    assert imitation(target, torch.zeros_like(target), labels).item() == pytest.approx((1 + 4) / 2)
    # The other cell as well: the mean of 5/2 and (25 + 49) / 2.
    labels = torch.cat([FOREGROUND, BACKGROUND, BACKGROUND, FOREGROUND], dim=1)
    value = imitation(target, torch.zeros_like(target), labels)
    assert value.item() == pytest.approx((5 / 2 + 74 / 2) / 2)


# Where there is nothing, and where numbers are bad.


def test_without_a_box_there_is_nothing_to_imitate() -> None:
    target, learner = inputs("imitation")
    learner.requires_grad_()
    nothing = BACKGROUND.expand(IMAGES, CELLS * PER_CELL, 5)
    value = imitation(target, learner, nothing)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, learner)
    assert not gradient.any()


def test_where_the_target_is_unsure_there_is_no_box_to_learn() -> None:
    target, learner = logits(1), logits(2).requires_grad_()
    target[..., :CLASSES] = -5
    value = box(target, learner, targets(), anchors(), IMAGE_PX)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, learner)
    assert not gradient.any()


def test_background_alone_still_teaches_classes() -> None:
    """The weights are then the target's probabilities; their sum is over 1 or 1 is taken."""
    target, learner = logits(1), logits(2)
    nothing = BACKGROUND.expand(IMAGES, CELLS * PER_CELL, 5)
    value = kl(target, learner, nothing, anchors(), IMAGE_PX)
    expected = naive.class_kl(target, learner, nothing, 1)
    expected = expected + naive.box(target, learner, nothing, anchors(), IMAGE_PX, 0.3)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_huge_logits_have_finite_losses_and_gradients(size: float, dtype: torch.dtype) -> None:
    """Boxes far away, of no size or of the largest; probabilities of 0 and of 1."""
    for sign in (1, -1):
        target = (size * logits(1)).to(dtype).requires_grad_()
        learner = (sign * size * logits(2)).to(dtype).requires_grad_()
        value = compute("kl", target, learner)
        assert value.isfinite()
        for gradient in torch.autograd.grad(value, (target, learner)):
            assert gradient.isfinite().all()


# Boxes.


def test_decoded_boxes_are_those_of_monai() -> None:
    """In its float32; it takes x before y as well as y before x, and has no least size."""
    codes = draw(200, 4, seed=5, scale=1.0).clamp(min=-4).float()
    boxes = anchors().float().repeat(5, 1)
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(codes, boxes)
    torch.testing.assert_close(decoded(codes, boxes), expected, atol=1e-4, rtol=1e-6)


def test_a_box_is_at_most_62_and_a_half_times_its_anchor_and_no_less_than_that_part() -> None:
    codes = torch.tensor([[0.0, 0.0, 99.0, -99.0]], dtype=torch.float64)
    expected = torch.tensor([[5 - 312.5, 5 - 0.08, 5 + 312.5, 5 + 0.08]], dtype=torch.float64)
    torch.testing.assert_close(decoded(codes, ANCHOR), expected)


def test_giou_is_that_of_monai() -> None:
    corners = draw(2, 200, 2, seed=6, scale=10.0)
    sides = 0.1 + draw(2, 200, 2, seed=7, scale=10.0).abs()
    a, b = torch.cat([corners, corners + sides], dim=-1).float()
    torch.testing.assert_close(giou(a, b), box_pair_giou(a, b), atol=1e-5, rtol=0)
    assert (giou(a, b) < 0).any()
    assert (giou(a, b) > 0.2).any()


def test_giou_by_hand() -> None:
    """Squares of 2 px that share one: IoU 1/7, hull 9, union 7."""
    a = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    assert giou(a, a + 1).item() == pytest.approx(1 / 7 - 2 / 9)
    assert giou(a, a).item() == 1


def test_boxes_without_area_have_finite_gradients() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    for other in (point, point + 1, torch.tensor([[0.0, 0.0, 9.0, 9.0]])):
        a, b = point.clone().requires_grad_(), other.clone().requires_grad_()
        value = giou(a, b)
        assert -1 <= value.item() <= 1
        for gradient in torch.autograd.grad(value, (a, b)):
            assert gradient.isfinite().all()
