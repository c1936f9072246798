"""A fitted histogram is where the gradient of its penalised loss vanishes."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.errors import ConfigError, StageError
from medkd.slide_level.pooling_fit import POOLING_KINDS, fit_pooling
from medkd.slide_level.pooling_kinds import HistogramLogistic, TopK, pool


def patients() -> tuple[list[np.ndarray], np.ndarray]:
    """Positive ones have a tenth of bright tiles; the means hardly differ."""
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3 == 0
    bags = []
    for positive in labels:
        tiles = random.uniform(0.2, 0.5, 50 + random.integers(50))
        tiles[: len(tiles) // 10] = 0.95 if positive else 0.35
        bags.append(tiles)
    return bags, labels


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_penalised_loss_is_least(strength: float) -> None:
    """C times the weighted log loss and half the squared weights; the intercept is free."""
    bags, labels = patients()
    fitted = fit_pooling("histogram_logistic", bags, labels, bins=5, inverse_penalty=strength)
    assert isinstance(fitted, HistogramLogistic)
    shares = np.array([np.histogram(bag, bins=5, range=(0, 1))[0] / len(bag) for bag in bags])
    weights = np.array(fitted.weights)
    probability = 1 / (1 + np.exp(-(shares @ weights + fitted.intercept)))
    # Each class counts half: 24 patients, 8 positive.
    residual = np.where(labels, 24 / (2 * 8), 24 / (2 * 16)) * (labels - probability)
    np.testing.assert_allclose(weights, strength * shares.T @ residual, atol=1e-5)
    assert residual.sum() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose([pool(fitted, bag) for bag in bags], probability, atol=1e-12)


def test_it_finds_what_tells_patients_apart() -> None:
    bags, labels = patients()
    fitted = fit_pooling("histogram_logistic", bags, labels)
    scores = np.array([pool(fitted, bag) for bag in bags])
    assert scores[labels].min() > scores[~labels].max()
    assert np.argmax(fitted.weights) == 9


def test_kinds_without_weights_take_their_parameters() -> None:
    assert fit_pooling("top_k", share=0.2, min_tiles=5) == TopK(share=0.2, min_tiles=5)
    for kind in POOLING_KINDS[:-1]:
        assert fit_pooling(kind).kind == kind


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("mean", {}, "pooling: unknown pooling 'mean'. Known: "),
        ("top-k", {}, "pooling: unknown pooling 'top-k'. Did you mean 'top_k'?"),
        (
            "top_k",
            {"share": 2.0},
            "pooling 'top_k': 'share' is no such parameter, or has no such value: input should be "
            "less than or equal to 1. See docs/pooling.md for the parameters of each kind.",
        ),
        (
            "quantile",
            {"q": 0.5},
            "pooling 'quantile': 'q' is no such parameter, or has no such value: extra inputs are "
            "not permitted. See docs/pooling.md for the parameters of each kind.",
        ),
        ("histogram_logistic", {"bins": 1}, "pooling 'histogram_logistic': 'bins' is no such"),
        ("histogram_logistic", {"inverse_penalty": 0.0}, "it lies above 0."),
        ("histogram_logistic", {"share": 0.1}, "it has bins and inverse_penalty."),
    ],
)
def test_a_wrong_kind_or_parameter_is_told(kind: str, parameters: dict, message: str) -> None:
    bags, labels = patients()
    with pytest.raises(ConfigError) as caught:
        fit_pooling(kind, bags, labels, **parameters)
    assert message in str(caught.value)


def test_patients_of_one_class_are_told() -> None:
    bags, labels = patients()
    with pytest.raises(StageError) as caught:
        fit_pooling("histogram_logistic", bags, labels & False)
    assert str(caught.value) == (
        "training patients: there is no positive patient to fit a pooling to. Give validation a "
        "larger share, or add patients."
    )
