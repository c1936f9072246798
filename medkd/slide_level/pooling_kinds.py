"""Pooling: from the probabilities of many tiles to one score. Imports numpy and pydantic alone.

Every kind is a frozen model that goes into ``model.json``. Fitting one that has weights is in
:mod:`medkd.slide_level.pooling_fit`; slides and patients are pooled in
:mod:`medkd.slide_level.pooling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from medkd.schema import Strict
from medkd.slide_level.calibration import expit, logit

Share = Annotated[float, Field(gt=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_BLOCK = 1_000_000
"""Elements of the counts that are worked on at a time: some tens of megabytes."""


class MeanProbability(Strict):
    """The mean of the tiles' probabilities."""

    kind: Literal["mean_probability"] = "mean_probability"

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        return _means(probabilities, counts)


class MeanLogit(Strict):
    """The probability of the mean log odds, which is the normalised geometric mean.

    A tile nearer to 0 or 1 than ``medkd.slide_level.calibration.EPSILON``, 1e-6, is taken for that
    far off: its log odds are 13.8 at the most, so that no single tile decides a slide.
    """

    kind: Literal["mean_logit"] = "mean_logit"

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        return expit(_means(logit(probabilities), counts))


class PositiveFraction(Strict):
    """The share of tiles that are called positive (Kather et al., Nature Medicine 2019)."""

    kind: Literal["positive_fraction"] = "positive_fraction"
    threshold: Share = Field(0.5, description="A tile with at least this is positive.")

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        return _means((probabilities >= self.threshold).astype(np.float64), counts)


class TopK(Strict):
    """The mean of the k highest probabilities: ``share`` of the tiles, rounded up.

    k is at least ``min_tiles``, and all tiles where there are fewer.
    """

    kind: Literal["top_k"] = "top_k"
    share: Share = Field(0.1, description="Of the tiles.")
    min_tiles: Annotated[int, Field(ge=1)] = Field(10, description="k is never smaller.")

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        order = np.argsort(-probabilities, kind="stable")
        highest = probabilities[order]

        def scores(block: np.ndarray) -> np.ndarray:
            tiles = block.sum(1)
            # 0.1 x 30 is more than 3 by rounding.
            wanted = np.ceil(self.share * tiles - 1e-9).astype(np.int64)
            k = np.minimum(np.maximum(wanted, self.min_tiles), tiles)
            return _highest(block[:, order], k) @ highest / k

        return _blockwise(scores, counts)


class Quantile(Strict):
    """A quantile of the tiles, linear between two of them (type 7 of Hyndman and Fan 1996)."""

    kind: Literal["quantile"] = "quantile"
    quantile: Annotated[float, Field(ge=0, le=1)] = Field(0.9, description="0.5 is the median.")

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        order = np.argsort(probabilities, kind="stable")
        rising = probabilities[order]

        def scores(block: np.ndarray) -> np.ndarray:
            upto = block[:, order].cumsum(1)
            place = self.quantile * (upto[:, -1] - 1)
            below = np.floor(place)
            low, high = (rising[(upto <= rank[:, None]).sum(1)] for rank in (below, np.ceil(place)))
            return low + (place - below) * (high - low)

        return _blockwise(scores, counts)


class NoisyOr(Strict):
    """``1 - prod(1 - p)``: positive if any tile is (Maron and Lozano-Perez, NIPS 1997).

    It takes tiles for independent and their probabilities for exact, so it saturates: 100 tiles of
    0.05 already give 0.994, and some thousand tiles 1 to the last digit whatever they show. With
    ``most_tiles`` only so many of the highest count, as in Liao et al. (IEEE TNNLS 2019), who take
    5; the score then no longer grows with the size of the slide as such.
    """

    kind: Literal["noisy_or"] = "noisy_or"
    most_tiles: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Of the highest; null: all tiles count."
    )

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        order = np.argsort(-probabilities, kind="stable")
        highest = probabilities[order]
        # A certain tile has a logarithm of minus infinity, which times a count of 0 is no number.
        certain = highest == 1
        log_misses = np.log1p(-np.where(certain, 0, highest))

        def scores(block: np.ndarray) -> np.ndarray:
            taken = block[:, order]
            if self.most_tiles is not None:
                taken = _highest(taken, np.full(len(taken), self.most_tiles))
            missed = np.expm1(taken @ log_misses)
            return np.where(taken[:, certain].any(1), 1, -missed)

        return _blockwise(scores, counts)


class HistogramLogistic(Strict):
    """Logistic regression on the histogram of the tiles' probabilities.

    ``logit score = intercept + sum of weights[i] x share of tiles in bin i`` (decision fusion, Hou
    et al., CVPR 2016; for MSI the patch likelihood histogram of Cao et al., Theranostics 2020).
    Bins have one width; each holds its lower edge, and the last holds 1 as well.
    """

    kind: Literal["histogram_logistic"] = "histogram_logistic"
    weights: Annotated[tuple[Finite, ...], Field(strict=False, min_length=2)]
    intercept: Finite

    def resampled(self, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores as :func:`pool_resamples` gives them, of arguments that were checked."""
        of_tiles = np.array(self.weights)[bin_of(probabilities, len(self.weights))]
        return expit(self.intercept + _means(of_tiles, counts))


Pooling = Annotated[
    MeanProbability | MeanLogit | PositiveFraction | TopK | Quantile | NoisyOr | HistogramLogistic,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Pooling)


def pooling_from_json(content: Any) -> Pooling:
    """The pooling that ``pooling.model_dump(mode="json")`` wrote; a kind alone may be its name.

    Model packages of schema 1 that were written first have ``"mean_probability"``.

    Raises:
        pydantic.ValidationError: an unknown kind, or a wrong parameter.
    """
    return _ADAPTER.validate_python({"kind": content} if isinstance(content, str) else content)


def pool(pooling: Pooling, probabilities: Any) -> float:
    """The score of some tiles.

    Args:
        pooling: how.
        probabilities: of the positive class, (tiles,).

    Raises:
        ValueError: no tile, or a value that is not a probability.
    """
    values = checked_tiles(probabilities)
    return float(pooling.resampled(values, np.ones((1, len(values)), np.int64))[0])


def pool_resamples(pooling: Pooling, probabilities: Any, counts: Any) -> np.ndarray:
    """The score of every bootstrap resample, exactly that of the tiles written out.

    Tiles are sorted once. Beyond ``counts`` the memory is bounded whatever the resamples.

    Args:
        pooling: how.
        probabilities: of the positive class, (tiles,).
        counts: how often each tile comes in a resample, int, (resamples, tiles).

    Returns:
        (resamples,), float64.

    Raises:
        ValueError: no tile, a value that is not a probability, counts that are none or of another
            shape, or a resample without a tile.
    """
    values, counts = checked_tiles(probabilities), np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != len(values) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"counts are {counts.dtype} of shape {counts.shape}, not integers of resamples x "
            f"{len(values)} tiles"
        )
    if (counts < 0).any() or not counts.any(1).all():
        raise ValueError("a count is below 0, or a resample has no tile")
    return np.asarray(pooling.resampled(values, counts), np.float64)


def checked_tiles(probabilities: Any) -> np.ndarray:
    """Probabilities of tiles as float64, (tiles,); errors are those of :func:`pool`."""
    values = np.asarray(probabilities, np.float64)
    if values.ndim != 1:
        raise ValueError(f"probabilities are of shape {values.shape}, not one of each tile")
    if len(values) == 0:
        raise ValueError("there is no tile to pool")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a probability is not a number between 0 and 1")
    return values


def bin_of(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Which of ``bins`` bins of one width each probability falls into, int64, same shape."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def _means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _blockwise(lambda block: block @ values / block.sum(1), counts)


def _highest(counts: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Counts of the first k tiles of each resample, whose tiles come from the highest down."""
    before = counts.cumsum(1) - counts
    return np.clip(k[:, None] - before, 0, counts)


def _blockwise(scores: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    rows = max(1, math.ceil(_BLOCK / counts.shape[1]))
    blocks = [scores(counts[start : start + rows]) for start in range(0, len(counts), rows)]
    return np.concatenate(blocks) if blocks else np.empty(0)
