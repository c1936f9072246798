"""Making a pooling, and fitting the one that has weights to patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from medkd.config.slide_level import TilePooling
from medkd.errors import ConfigError
from medkd.schema import hint
from medkd.slide_level.labelled import check_labelled
from medkd.slide_level.pooling_kinds import (
    HistogramLogistic,
    Pooling,
    bin_of,
    checked_tiles,
    pooling_from_json,
)

POOLING_KINDS: tuple[TilePooling, ...] = get_args(TilePooling)


def fit_pooling(
    kind: TilePooling,
    bags: Sequence[Any] = (),
    labels: Any = (),
    *,
    bins: int = 10,
    inverse_penalty: float = 1.0,
    **parameters: Any,
) -> Pooling:
    """A pooling, ready for use; only ``histogram_logistic`` looks at patients.

    Students give better probabilities to tiles that they learnt from than to others, so a
    histogram of their own training patients is flattering. Fit it to patients they did not see
    where there are enough. With ``slides_first`` give the bags of every student, one student after
    another, and the labels as often; with ``tiles_first`` the means over students.

    Args:
        kind: one of :data:`POOLING_KINDS`.
        bags: tile probabilities of each patient, (tiles,) each.
        labels: (patients,), True for the positive class.
        bins: of the histogram.
        inverse_penalty: C of scikit-learn's L2-penalised logistic regression, in which classes
            are weighted to count alike.
        **parameters: of the kind, such as ``share`` of ``top_k``.

    Raises:
        ConfigError: the kind or a parameter is unknown or wrong.
        StageError: a class is absent, or there are fewer than three patients.
        ValueError: a bag without a tile, or with a value that is no probability; bags and labels
            of unequal number.
    """
    if kind not in POOLING_KINDS:
        raise ConfigError(
            f"unknown pooling '{kind}'", where="pooling", remedy=hint(kind, POOLING_KINDS)
        )
    if kind == "histogram_logistic":
        if parameters:
            raise _wrong_parameter(kind, min(parameters), "it has bins and inverse_penalty")
        return _histogram(bags, labels, bins, inverse_penalty)
    try:
        return pooling_from_json({"kind": kind, **parameters})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _wrong_parameter(kind, str(fault["loc"][-1]), fault["msg"]) from error


def _wrong_parameter(kind: str, name: str, why: str) -> ConfigError:
    return ConfigError(
        f"'{name}' is no such parameter, or has no such value: {why[:1].lower()}{why[1:]}",
        where=f"pooling '{kind}'",
        remedy="See docs/pooling.md for the parameters of each kind.",
    )


def _histogram(
    bags: Sequence[Any], labels: Any, bins: int, inverse_penalty: float
) -> HistogramLogistic:
    from sklearn.linear_model import LogisticRegression

    if bins < 2:
        raise _wrong_parameter("histogram_logistic", "bins", "a histogram takes 2 bins")
    if not 0 < inverse_penalty < np.inf:
        raise _wrong_parameter("histogram_logistic", "inverse_penalty", "it lies above 0")
    tiles = [checked_tiles(bag) for bag in bags]
    truth, _ = check_labelled(
        labels,
        [values.mean() for values in tiles],
        cohort="training patients",
        purpose="to fit a pooling to",
    )
    shares = np.stack(
        [np.bincount(bin_of(values, bins), minlength=bins) / len(values) for values in tiles]
    )
    fitted = LogisticRegression(
        C=inverse_penalty, class_weight="balanced", tol=1e-8, max_iter=10_000
    ).fit(shares, truth)
    return HistogramLogistic(
        weights=tuple(fitted.coef_[0].tolist()), intercept=float(fitted.intercept_[0])
    )
