"""Slide heads: the formulas, padding, the order of tiles, and what attention tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import MILModel
from torch import Tensor, nn

from medkd.errors import ConfigError
from medkd.networks.mil import HEAD_ARCHITECTURES, SlideHead
from medkd.networks.zoo import count_parameters

DIMENSION = 12


def head_of(architecture: str, **options: int) -> SlideHead:
    torch.manual_seed(0)
    head = SlideHead(architecture, DIMENSION, **{"hidden": 8, **options})
    head.standardise(torch.randn(DIMENSION), torch.rand(DIMENSION) + 0.5)
    return head.eval()


def bag(tiles: int, seed: int = 1) -> Tensor:
    return torch.randn(1, tiles, DIMENSION, generator=torch.Generator().manual_seed(seed))


def test_gated_attention_is_the_formula() -> None:
    """Eq. 9 of arXiv 1802.04712, tile by tile in float64."""
    head = head_of("gated_attention").double()
    tiles = bag(7).double()
    weights = {name: value.detach().numpy() for name, value in head.state_dict().items()}
    h = [(tile - weights["mean"]) * weights["scale"] for tile in tiles[0].numpy()]
    scores = []
    for tile in h:
        total = 0.0
        for row in range(8):
            v = weights["attention.v.weight"][row] @ tile + weights["attention.v.bias"][row]
            u = weights["attention.u.weight"][row] @ tile + weights["attention.u.bias"][row]
            total += weights["attention.w.weight"][0, row] * np.tanh(v) / (1 + np.exp(-u))
        scores.append(np.exp(total))
    attention = np.array(scores) / sum(scores)
    pooled = sum(a * tile for a, tile in zip(attention, h, strict=True))
    logit = weights["classifier.weight"][0] @ pooled + weights["classifier.bias"][0]
    found, found_attention, *_ = head(tiles)
    assert found.item() == pytest.approx(logit, abs=1e-10)
    np.testing.assert_allclose(found_attention[0].detach(), attention, atol=1e-10)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("attention", "att"), ("mean_embedding", "mean"), ("max_embedding", "max")],
)
def test_modes_of_monai_with_the_same_weights(architecture: str, mode: str) -> None:
    """Its attention has 2048 hidden units; its backbone lets embeddings through."""
    torch.manual_seed(2)
    theirs = MILModel(
        1, mode, pretrained=False, backbone=nn.Identity(), backbone_num_features=DIMENSION
    ).eval()
    head = SlideHead(architecture, DIMENSION, hidden=2048).eval()
    head.classifier.load_state_dict(theirs.myfc.state_dict())
    if mode == "att":
        head.attention.v.load_state_dict(theirs.attention[0].state_dict())
        head.attention.w.weight.data = theirs.attention[2].weight.data
    bags = torch.cat([bag(9), bag(9, seed=3)])
    torch.testing.assert_close(
        head(bags)[0], theirs(bags[..., None, None])[:, 0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("architecture", HEAD_ARCHITECTURES)
def test_padding_changes_nothing(architecture: str) -> None:
    head = head_of(architecture)
    small, large = bag(5), bag(11, seed=2)
    for padding in (0.0, 1e6, float("nan")):
        batch = torch.full((2, 11, DIMENSION), padding)
        batch[0, :5], batch[1] = small[0], large[0]
        mask = torch.arange(11) < torch.tensor([[5], [11]])
        logits, weights, *_ = head(batch, mask)
        for number, alone in enumerate((small, large)):
            logit, weight, *_ = head(alone)
            torch.testing.assert_close(logits[number], logit[0], atol=1e-6, rtol=0)
            tiles = alone.shape[1]
            torch.testing.assert_close(weights[number, :tiles], weight[0], atol=1e-6, rtol=0)
        assert (weights[0, 5:] == 0).all()


@pytest.mark.parametrize("architecture", HEAD_ARCHITECTURES)
def test_the_order_of_tiles_does_not_matter(architecture: str) -> None:
    head, tiles = head_of(architecture), bag(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    logit, weights, *_ = head(tiles)
    moved, moved_weights, *_ = head(tiles[:, order])
    torch.testing.assert_close(moved, logit, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved_weights, weights[:, order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", HEAD_ARCHITECTURES)
def test_weights_sum_to_one(architecture: str) -> None:
    head = head_of(architecture)
    _, weights, *_ = head(bag(20))
    assert weights.shape == (1, 20)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert head(bag(1))[1].item() == pytest.approx(1)


def test_mean_and_max_weigh_as_they_say() -> None:
    _, even, *_ = head_of("mean_embedding")(bag(20))
    torch.testing.assert_close(even, torch.full((1, 20), 0.05))
    head = head_of("max_embedding")
    logit, weights, *_ = head(bag(20))
    alone = torch.stack([head(tile[None, None])[0][0] for tile in bag(20)[0]])
    assert logit.item() == pytest.approx(alone.max().item(), abs=1e-6)
    assert weights[0].argmax() == alone.argmax()


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("mean_embedding", 512 + 1),
        ("max_embedding", 512 + 1),
        ("attention", 512 * 128 + 128 + 128 + 513),
        ("gated_attention", 2 * (512 * 128 + 128) + 128 + 513),
        # Projection; two blocks of three norms (MONAI's block has one for an attention that is
        # not used), qkv without bias, projection and MLP; norm; attention; classifier.
        (
            "transformer",
            (512 * 128 + 128)
            + 2 * (3 * 256 + 3 * 128 * 128 + (128 * 128 + 128))
            + 2 * ((128 * 256 + 256) + (256 * 128 + 128))
            + 256
            + (128 * 128 + 128 + 128)
            + 129,
        ),
    ],
)  # fmt: skip
def test_parameters_by_hand(architecture: str, parameters: int) -> None:
    assert count_parameters(SlideHead(architecture, 512)) == parameters
    assert f"{parameters:,}" in SlideHead.__doc__


def test_channels_without_spread_are_left_as_they_are() -> None:
    head = SlideHead("mean_embedding", 2).eval()
    head.standardise(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    with torch.no_grad():
        head.classifier.weight[:] = torch.tensor([[1.0, 10.0]])
        head.classifier.bias[:] = 0
    assert head(torch.tensor([[[1.5, 6.0]]]))[0].item() == pytest.approx(0.5 + 10)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (
            "gated_attn",
            {},
            "architecture: unknown slide head 'gated_attn'. Did you mean 'gated_attention'?",
        ),
        (
            "transformer",
            {"hidden": 30},
            "hidden: a transformer of 4 heads cannot have 30 channels. Give a multiple of 4.",
        ),
    ],
)
def test_a_wrong_head_is_told(architecture: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlideHead(architecture, 8, **options)
    assert str(caught.value) == message
