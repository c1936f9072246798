"""Every loss against a naive transcription of its paper's formula, and against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.distill.links import LOSSES
from medkd.distill.method import load_method
from tests.distill import naive

N, C = 5, 4
LOGITS = ("kl", "reverse_kl", "js", "mse", "decoupled", "dist")
LABELS = torch.tensor([0, 3, 1, 1, 2])


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def compute(name: str, target: Tensor, learner: Tensor, **settings: float) -> Tensor:
    more = {"targets": LABELS} if LOSSES[name].needs_labels else {}
    return LOSSES[name].compute(target, learner, **more, **settings)


# name, settings, the transcription
TRANSCRIBED: list[tuple[str, dict[str, float], Callable[[Tensor, Tensor], Tensor]]] = [
    ("kl", {"temperature": 1.0}, lambda t, s: naive.kl(t, s, 1)),
    ("kl", {"temperature": 4.0}, lambda t, s: naive.kl(t, s, 4)),
    ("reverse_kl", {"temperature": 3.0}, lambda t, s: naive.kl(s, t, 3)),
    ("js", {"temperature": 1.0}, lambda t, s: naive.js(t, s, 1)),
    ("js", {"temperature": 2.0}, lambda t, s: naive.js(t, s, 2)),
    ("mse", {}, naive.mse),
    (
        "decoupled",
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
        lambda t, s: naive.decoupled(t, s, LABELS, 4, 1, 8),
    ),
    (
        "decoupled",
        {"temperature": 1.0, "alpha": 0.5, "beta": 0.0},
        lambda t, s: naive.decoupled(t, s, LABELS, 1, 0.5, 0),
    ),
    (
        "dist",
        {"temperature": 4.0, "alpha": 2.0, "beta": 0.5},
        lambda t, s: naive.dist(t, s, 4, 2, 0.5),
    ),
    ("attention", {}, naive.attention),
    ("similarity", {}, naive.similarity),
    ("feature_mse", {}, naive.feature_mse),
    ("contrastive", {"temperature": 0.07}, lambda t, s: naive.contrastive(t, s, 0.07)),
]


def inputs(name: str) -> tuple[Tensor, Tensor]:
    kind = LOSSES[name].compares[0]
    shape = {"logits": (N, C), "vector": (N, 6), "map": (N, 3, 2, 2)}[kind]
    return draw(*shape, seed=1), draw(*shape, seed=2)


def test_every_loss_is_transcribed() -> None:
    assert {name for name, _, _ in TRANSCRIBED} == set(LOSSES)


@pytest.mark.parametrize(
    ("name", "settings", "transcription"),
    TRANSCRIBED,
    ids=[
        f"{name} {' '.join(map(str, settings.values()))}".strip()
        for name, settings, _ in TRANSCRIBED
    ],
)
def test_values_and_gradients_equal_the_formula(
    name: str, settings: dict[str, float], transcription: Callable[[Tensor, Tensor], Tensor]
) -> None:
    target, learner = (x.requires_grad_() for x in inputs(name))
    value = compute(name, target, learner, **settings)
    expected = transcription(target, learner)
    assert value.shape == ()
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    ours = torch.autograd.grad(value, (target, learner))
    theirs = torch.autograd.grad(expected, (target, learner))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_by_differences(name: str) -> None:
    target, learner = (x.requires_grad_() for x in inputs(name))
    assert torch.autograd.gradcheck(lambda t, s: compute(name, t, s), (target, learner))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"contrastive"}))
def test_equal_inputs_cost_nothing(name: str) -> None:
    """And pull nowhere. (A contrastive loss is never zero: there are others in the batch.)"""
    target, _ = inputs(name)
    learner = target.clone().requires_grad_()
    value = compute(name, target, learner)
    assert value.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, learner)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_defaults_are_those_that_links_get(name: str) -> None:
    target, learner = inputs(name)
    assert compute(name, target, learner) == compute(name, target, learner, **LOSSES[name].settings)


# Small cases, worked out by hand. ln 3 gives the odds 3 : 1, so p = (3/4, 1/4); q = (1/2, 1/2).


ODDS = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
EVEN = torch.zeros(1, 2, dtype=torch.float64)


def test_kl_by_hand() -> None:
    """3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2) = 3/4 ln 3 - ln 2, not half of it."""
    assert compute("kl", ODDS, EVEN).item() == pytest.approx(0.75 * math.log(3) - math.log(2))
    # The other way: 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - ln 3 / 2.
    assert compute("kl", EVEN, ODDS).item() == pytest.approx(math.log(2) - math.log(3) / 2)
    assert compute("reverse_kl", ODDS, EVEN).item() == pytest.approx(math.log(2) - math.log(3) / 2)


def test_js_by_hand() -> None:
    """m = (5/8, 3/8): (3/4 ln 6/5 + 1/4 ln 2/3 + 1/2 ln 4/5 + 1/2 ln 4/3) / 2."""
    by_hand = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    by_hand += 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert compute("js", ODDS, EVEN).item() == pytest.approx(by_hand / 2)


def test_mse_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert compute("mse", a, b).item() == pytest.approx((1 + 4 + 9) / 4)


def test_decoupled_by_hand() -> None:
    """p = (1/2, 3/8, 1/8), q = (1/3, 1/3, 1/3), label 0, T = 1.

    Binary: 1/2 ln(3/2) + 1/2 ln(1/2 / (2/3)) = 1/2 ln(9/8). Among the others: (3/4, 1/4) against
    (1/2, 1/2).
    """
    p = torch.tensor([[4.0, 3.0, 1.0]], dtype=torch.float64).log()
    q = torch.zeros(1, 3, dtype=torch.float64)
    settings = {"targets": torch.tensor([0]), "temperature": 1.0}
    loss = LOSSES["decoupled"].compute
    binary, among = math.log(9 / 8) / 2, 0.75 * math.log(3) - math.log(2)
    assert loss(p, q, **settings, alpha=1.0, beta=0.0).item() == pytest.approx(binary)
    assert loss(p, q, **settings, alpha=0.0, beta=1.0).item() == pytest.approx(among)
    assert loss(p, q, **settings).item() == pytest.approx(binary + 8 * among)


def test_dist_by_hand() -> None:
    """Rows (3/4, 1/4) and (1/4, 3/4) against the reverse: all correlations are -1."""
    p = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64).log()
    assert compute("dist", p, p.flip(1)).item() == pytest.approx(2 + 2)
    assert compute("dist", p, p.flip(1), alpha=3.0, beta=0.5).item() == pytest.approx(6 + 1)


def test_attention_by_hand() -> None:
    """One channel, two places: (1, 0) against (1, 1) / sqrt 2."""
    a = torch.tensor([[[[2.0, 0.0]]]])
    b = torch.tensor([[[[3.0, -3.0]]]])
    expected = (1 - 1 / math.sqrt(2)) ** 2 + 1 / 2
    assert compute("attention", a, b).item() == pytest.approx(expected)


@pytest.mark.parametrize("side", [3, 7, 8])
def test_attention_does_not_grow_as_maps_shrink(side: int) -> None:
    """Opposite maps have a distance of 2 at any size; the mean over places would be 2 / side^2."""
    left = torch.zeros(N, 3, side, side)
    left[..., 0] = 1.0
    assert compute("attention", left, left.flip(3)).item() == pytest.approx(2)


@pytest.mark.parametrize("method", ["sokd_features", "learning_styles"])
def test_attention_weighs_as_published_at_the_published_size(method: str) -> None:
    """The authors' code: 1000 / 2 times the mean over images and places, at 8 x 8 on CIFAR."""
    target, learner = draw(N, 3, 8, 8, seed=1), draw(N, 5, 8, 8, seed=2)
    maps = [[torch.stack(naive.attention_map(image)) for image in x] for x in (target, learner)]
    published = 1000 / 2 * (torch.stack(maps[0]) - torch.stack(maps[1])).square().mean()
    links = [link for link in load_method(method).spec.links if link.loss == "attention"]
    assert len(links) == 2
    for link in links:
        found = link.weight * compute("attention", target, learner)
        torch.testing.assert_close(found, published, atol=1e-12, rtol=0)


def test_similarity_by_hand() -> None:
    """Two images at right angles, against two alike: rows (1, 0) against (1, 1) / sqrt 2."""
    a = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    b = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    row = (1 - 1 / math.sqrt(2)) ** 2 + 1 / 2
    assert compute("similarity", a, b).item() == pytest.approx(2 * row / 4)


def test_feature_mse_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0]])
    assert compute("feature_mse", a, torch.zeros(1, 3)).item() == pytest.approx(14 / 3)


def test_contrastive_by_hand() -> None:
    """Two images at right angles, perfectly matched: each finds itself with odds e^(1/T) : 1."""
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    match = compute("contrastive", a, 5 * a, temperature=0.5).item()
    assert match == pytest.approx(math.log(1 + math.exp(-2)))
    swapped = compute("contrastive", a, a.flip(0), temperature=0.5).item()
    assert swapped == pytest.approx(math.log(1 + math.exp(2)))
    # At the usual T the match is all but perfect.
    assert compute("contrastive", a, a).item() == pytest.approx(math.exp(-1 / 0.07), rel=1e-3)


# What must hold for any input.


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js"])
def test_classes_are_summed_and_images_averaged(name: str) -> None:
    target, learner = inputs(name)
    value = compute(name, target, learner)
    # Each class split into two halves of its probability: the sum stays; a mean would halve.
    split = compute(name, target.repeat(1, 2), learner.repeat(1, 2))
    torch.testing.assert_close(split, value, atol=1e-12, rtol=0)
    twice = compute(name, target.repeat(2, 1), learner.repeat(2, 1))
    torch.testing.assert_close(twice, value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "decoupled", "dist"])
def test_temperature_comes_with_its_square(name: str) -> None:
    """The loss at T is T^2 times the loss at 1 of logits divided by T."""
    target, learner = inputs(name)
    at_four = compute(name, target, learner, temperature=4.0)
    by_hand = 16 * compute(name, target / 4, learner / 4, temperature=1.0)
    torch.testing.assert_close(at_four, by_hand, atol=1e-12, rtol=0)


def test_gradient_of_kl_is_known() -> None:
    """d/dz_s of T^2 KL = T (s - t) / N."""
    target, learner = inputs("kl")
    learner.requires_grad_()
    (gradient,) = torch.autograd.grad(compute("kl", target, learner, temperature=4.0), learner)
    t, s = torch.softmax(target / 4, 1), torch.softmax(learner / 4, 1)
    torch.testing.assert_close(gradient, 4 * (s - t) / N, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(set(LOGITS) - {"mse"}))
def test_logits_count_up_to_a_constant(name: str) -> None:
    target, learner = inputs(name)
    moved = compute(name, target + 7, learner + draw(N, 1, seed=9))
    torch.testing.assert_close(moved, compute(name, target, learner), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "decoupled", "dist", "mse"])
def test_sure_networks_stay_finite(name: str) -> None:
    """Logits of 1e4 round one probability to 1 and the others to 0."""
    target = torch.zeros(N, C, dtype=torch.float32)
    target[:, 0] = 1e4
    learner = torch.zeros(N, C, dtype=torch.float32)
    learner[:, 1] = 1e4
    learner.requires_grad_()
    value = compute(name, target, learner)
    (gradient,) = torch.autograd.grad(value, learner)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_js_is_symmetric_and_bounded() -> None:
    target, learner = inputs("js")
    both = [compute("js", target, learner), compute("js", learner, target)]
    torch.testing.assert_close(both[0], both[1])
    far = compute("js", torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]]))
    assert far.item() == pytest.approx(math.log(2), rel=1e-6)


def test_decoupled_with_two_classes_is_the_kl() -> None:
    """There is one other class, so beta weighs nothing, and label and rest are all there is."""
    target, learner, labels = draw(4, 2, seed=1), draw(4, 2, seed=2), torch.tensor([0, 1, 1, 0])
    learner.requires_grad_()
    loss = LOSSES["decoupled"].compute
    value = loss(target, learner, labels, temperature=4.0, alpha=1.0, beta=8.0)
    expected = naive.kl(target, learner, 4)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, learner)[0] for x in (value, expected)), atol=1e-10, rtol=0
    )


def test_decoupled_puts_the_kl_together() -> None:
    """KL = binary KL + (1 - p_y) KL among the others (section 3.2 of the paper), image by image."""
    target, learner = draw(1, C, seed=1), draw(1, C, seed=2)
    label = torch.tensor([2])
    loss = LOSSES["decoupled"].compute
    rest = 1 - torch.softmax(target, 1)[0, 2]
    whole = loss(target, learner, label, temperature=1.0, alpha=1.0, beta=float(rest))
    torch.testing.assert_close(whole, naive.kl(target, learner, 1), atol=1e-12, rtol=0)


def test_dist_looks_at_correlation_alone() -> None:
    """Probabilities that are a line of the target's, a p + b, correlate perfectly."""
    p = torch.softmax(draw(N, C, seed=1), 1)
    flatter = (0.3 * p + 0.7 / C).log()
    assert compute("dist", p.log(), flatter).item() == pytest.approx(0, abs=1e-12)
    assert compute("kl", p.log(), flatter).item() > 0.01


def test_attention_forgets_sign_size_and_order_of_channels() -> None:
    target, learner = draw(N, 3, 4, 4, seed=1), draw(N, 6, 4, 4, seed=2)
    value = compute("attention", target, learner)
    changed = compute("attention", -10 * target, learner.flip(1))
    torch.testing.assert_close(changed, value, atol=1e-12, rtol=0)
    # Twice the channels of the same kind.
    torch.testing.assert_close(compute("attention", target.repeat(1, 2, 1, 1), learner), value)


def test_similarity_forgets_size_and_rotation() -> None:
    target, learner = draw(N, 6, seed=1), draw(N, 3, 4, 4, seed=2)
    value = compute("similarity", target, learner)
    rotation = torch.linalg.qr(draw(6, 6, seed=3)).Q
    changed = compute("similarity", 10 * target @ rotation, -learner.flip(1, 2, 3))
    torch.testing.assert_close(changed, value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["attention", "feature_mse"])
@pytest.mark.parametrize("larger", ["target", "learner"])
def test_the_larger_map_is_averaged(name: str, larger: str) -> None:
    big, small = draw(N, 3, 4, 4, seed=1), draw(N, 3, 2, 2, seed=2)
    pair = (big, small) if larger == "target" else (small, big)
    averaged = [naive.pooled_to(x, 2) for x in pair]
    expected = getattr(naive, name)(*averaged)
    torch.testing.assert_close(compute(name, *pair), expected, atol=1e-10, rtol=0)


def test_similarity_of_maps_of_any_size() -> None:
    big, small = draw(N, 3, 4, 4, seed=1), draw(N, 5, 2, 3, seed=2)
    expected = naive.similarity(big, small)
    torch.testing.assert_close(compute("similarity", big, small), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["attention", "similarity", "contrastive"])
def test_features_of_zero_do_not_end_in_nan(name: str) -> None:
    """A ReLU can leave a map empty at the start."""
    target, learner = inputs(name)
    learner = torch.zeros_like(learner).requires_grad_()
    value = compute(name, target, learner)
    (gradient,) = torch.autograd.grad(value, learner)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_dist_of_equal_probabilities_does_not_end_in_nan() -> None:
    target, _ = inputs("dist")
    learner = torch.zeros_like(target).requires_grad_()
    value = compute("dist", target, learner)
    (gradient,) = torch.autograd.grad(value, learner)
    assert value.isfinite()
    assert gradient.isfinite().all()
