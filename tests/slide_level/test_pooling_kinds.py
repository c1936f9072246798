"""Each pooling by hand, and every resample as the tiles written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from medkd.slide_level import pooling_kinds
from medkd.slide_level.pooling_kinds import (
    HistogramLogistic,
    MeanLogit,
    MeanProbability,
    NoisyOr,
    Pooling,
    PositiveFraction,
    Quantile,
    TopK,
    pool,
    pool_resamples,
    pooling_from_json,
)

HISTOGRAM = HistogramLogistic(weights=(-2.0, -1.0, 1.0, 2.0), intercept=0.5)
ALL: list[Pooling] = [
    MeanProbability(),
    MeanLogit(),
    PositiveFraction(threshold=0.3),
    TopK(share=0.15, min_tiles=3),
    Quantile(quantile=0.83),
    NoisyOr(),
    NoisyOr(most_tiles=4),
    HISTOGRAM,
]
TILES = [0.5, 0.0, 1.0, 0.2, 0.9]


@pytest.mark.parametrize(
    ("pooling", "tiles", "expected"),
    [
        (MeanProbability(), TILES, 0.52),
        # Log odds -ln 9 and 0 have the mean -ln 3.
        (MeanLogit(), [0.1, 0.5], 1 / 4),
        (MeanLogit(), [0.0, 1.0], 0.5),
        # Log odds of 1e-6 are -ln 999,999; the mean with 0 is half of it.
        (MeanLogit(), [0.0, 0.5], 1 / (1 + math.sqrt(999_999))),
        (MeanLogit(), [1.0], 1 - 1e-6),
        (PositiveFraction(), TILES, 3 / 5),
        (PositiveFraction(threshold=0.95), TILES, 1 / 5),
        (TopK(share=0.4, min_tiles=1), TILES, (1 + 0.9) / 2),
        (TopK(share=0.41, min_tiles=1), TILES, (1 + 0.9 + 0.5) / 3),
        (TopK(share=0.01, min_tiles=2), TILES, (1 + 0.9) / 2),
        (TopK(), TILES, 0.52),
        # 3 of 30, although 0.1 x 30 is more than 3 by rounding.
        (TopK(share=0.1, min_tiles=1), [0.9, 0.8, 0.7] + [0.1] * 27, 0.8),
        (Quantile(quantile=0.5), TILES, 0.5),
        # Place 3.6 of 0 to 4, between 0.9 and 1.
        (Quantile(), TILES, 0.96),
        (Quantile(quantile=1.0), TILES, 1.0),
        (NoisyOr(), [0.5, 0.2, 0.9], 1 - 0.5 * 0.8 * 0.1),
        (NoisyOr(most_tiles=2), [0.5, 0.2, 0.9], 1 - 0.5 * 0.1),
        (NoisyOr(), TILES, 1.0),
        (NoisyOr(), [0.0, 0.0], 0.0),
        # So far from saturation that 1 - p would have lost half of the digits.
        (NoisyOr(), [1e-12] * 3, 3e-12),
        # Edges belong to the bin above, 1 to the last: bins 0, 1, 2, 3, 3 weigh 0.4 on average.
        (HISTOGRAM, [0.0, 0.25, 0.5, 1.0, 0.999], 1 / (1 + math.exp(-0.9))),
    ],
)
def test_scores_worked_out_by_hand(pooling: Pooling, tiles: list[float], expected: float) -> None:
    assert pool(pooling, tiles) == pytest.approx(expected, rel=1e-9)


def test_noisy_or_saturates_and_most_tiles_is_the_remedy() -> None:
    assert pool(NoisyOr(), [0.05] * 100) == pytest.approx(0.9941, abs=5e-5)
    assert pool(NoisyOr(), [0.05] * 5000) == 1
    assert pool(NoisyOr(most_tiles=5), [0.05] * 5000) == pytest.approx(1 - 0.95**5)


@pytest.mark.parametrize("pooling", ALL, ids=lambda pooling: pooling.kind)
def test_one_tile_and_many_equal_ones_are_alike_where_they_should_be(pooling: Pooling) -> None:
    one, many = pool(pooling, [0.4]), pool(pooling, [0.4] * 7)
    expected = {"positive_fraction": 1.0, "histogram_logistic": 1 / (1 + math.exp(0.5))}
    assert one == pytest.approx(expected.get(pooling.kind, 0.4), abs=1e-12)
    if pooling.kind == "noisy_or":
        count = min(7, pooling.most_tiles or 7)
        assert many == pytest.approx(1 - 0.6**count)
    else:
        assert many == pytest.approx(one, abs=1e-12)


@pytest.mark.parametrize("block", [1, 100, 1_000_000])
@pytest.mark.parametrize("pooling", ALL, ids=lambda pooling: pooling.kind)
def test_resamples_are_the_tiles_written_out(
    pooling: Pooling, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ties, with tiles of 0 and 1, and with resamples of unequal size."""
    monkeypatch.setattr(pooling_kinds, "_BLOCK", block)
    random = np.random.default_rng(0)
    tiles = np.round(random.beta(0.5, 1, 41), 1)
    assert {0.0, 1.0} <= set(tiles)
    counts = random.poisson(1, (60, 41))
    counts[:20, tiles == 1] = 0
    written_out = [pool(pooling, np.repeat(tiles, row)) for row in counts]
    np.testing.assert_allclose(pool_resamples(pooling, tiles, counts), written_out, atol=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_quantiles_are_those_of_numpy(q: float) -> None:
    tiles = np.random.default_rng(1).uniform(size=31)
    assert pool(Quantile(quantile=q), tiles) == pytest.approx(np.quantile(tiles, q), abs=1e-14)


@pytest.mark.parametrize("pooling", ALL, ids=lambda pooling: pooling.kind)
def test_json_gives_the_same_pooling_back(pooling: Pooling) -> None:
    written = json.dumps(pooling.model_dump(mode="json"))
    assert pooling_from_json(json.loads(written)) == pooling


def test_the_first_packages_name_the_kind_alone() -> None:
    assert pooling_from_json("mean_probability") == MeanProbability()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("max", "does not match any of the expected tags"),
        ({"kind": "top_k", "share": 0.0}, "greater than 0"),
        ({"kind": "top_k", "share": 0.1, "k": 3}, "Extra inputs are not permitted"),
        ({"kind": "top_k", "min_tiles": 0}, "greater than or equal to 1"),
        ({"kind": "quantile", "quantile": 1.01}, "less than or equal to 1"),
        ({"kind": "noisy_or", "most_tiles": 0}, "greater than or equal to 1"),
        ({"kind": "positive_fraction", "threshold": "0.5"}, "valid number"),
        ({"kind": "histogram_logistic", "weights": [1.0, math.inf], "intercept": 0.0}, "finite"),
        ({"kind": "histogram_logistic", "weights": [1.0], "intercept": 0.0}, "at least 2"),
    ],
)
def test_what_is_no_pooling_is_refused(content: object, what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        pooling_from_json(content)


@pytest.mark.parametrize(
    ("tiles", "what"),
    [
        ([], "there is no tile to pool"),
        ([0.5, math.nan], "a probability is not a number between 0 and 1"),
        ([1.0001], "a probability is not a number between 0 and 1"),
        ([[0.5]], r"probabilities are of shape \(1, 1\), not one of each tile"),
    ],
)
@pytest.mark.parametrize("pooling", ALL, ids=lambda pooling: pooling.kind)
def test_what_cannot_be_pooled_is_refused(pooling: Pooling, tiles: list, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        pool(pooling, tiles)


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ([[1, 1, 1]], r"shape \(1, 3\), not integers of resamples x 2 tiles"),
        ([1, 1], r"shape \(2,\), not integers"),
        ([[0.5, 0.5]], "counts are float64"),
        ([[1, 1], [0, 0]], "a resample has no tile"),
        ([[3, -1]], "a count is below 0"),
    ],
)
def test_counts_that_are_none_are_refused(counts: list, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        pool_resamples(MeanProbability(), [0.2, 0.4], counts)
