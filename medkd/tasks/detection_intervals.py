"""Intervals and comparisons of detection figures, by resampling images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from medkd.tasks.detection_metrics import Figure, Matches, figures

# Detections times resamples that are at work at a time: arrays of 1.6 MB stay in the cache.
_BLOCK = 200_000
# A percentile of fewer resamples than this share of them would describe other images.
_LEAST_DEFINED = 0.95
# Two figures that differ by rounding alone are equal.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; ``reason`` says why the value or the interval cannot be had."""

    value: float | None
    lower: float | None = None
    upper: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        first, second: the figure of each model; None where it cannot be had.
        difference: first minus second.
        p_value: two-sided; None where there is no difference to test.
    """

    first: float | None
    second: float | None
    difference: Estimate
    p_value: float | None = None


def bootstrap(
    matches: Matches,
    *,
    threshold: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Figures with percentile intervals, all from the same resamples of images.

    Images are drawn with replacement, as many as there are with a true box from those, and as many
    as there are without from the others (Efron and Tibshirani 1993, chapters 8 and 13), so that
    every figure can be had in every resample. The threshold stays: intervals do not cover its
    choice. Where a share is 0 or 1, and so in every resample, its interval is Clopper and
    Pearson's for the images with a true box.

    Args:
        matches: from :func:`medkd.tasks.detection_metrics.match`.
        threshold: score from which on a detection counts; None leaves out the figures at one.
        resamples, confidence, seed: of the bootstrap.
        groups: of each image what it comes from (patient, video), (images,): those of a group are
            alike and are drawn together. By default every image stands alone.

    Returns:
        For each name of :func:`medkd.tasks.detection_metrics.figures` its estimate.

    Raises:
        ValueError: groups of another length.
    """
    group_of = _numbered(groups, matches.images)
    wanted = figures(threshold)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for weights in _resamples(matches, group_of, resamples, seed):
        for name, figure in wanted.items():
            drawn[name].append(figure.of(matches, weights))
    return {
        name: _estimate(
            figure,
            _value(matches, figure),
            np.concatenate(drawn[name]),
            _groups_of(figure, matches, group_of),
            confidence,
        )
        for name, figure in wanted.items()
    }


def compare(
    first: Matches,
    second: Matches,
    *,
    thresholds: tuple[float, float] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Differences of two models on the same images, with paired percentile intervals.

    Both models see the same resamples, drawn as :func:`bootstrap` draws them. p is twice the
    smaller share of resamples in which the difference is at most 0, or at least 0, counting the
    sample itself: (1 + so many) / (1 + resamples) (Davison and Hinkley 1997, section 4.4). It
    agrees with the interval. Models' outputs are not swapped, as a permutation test would: their
    scores need not be on one scale.

    Args:
        first, second: of the two models, from :func:`medkd.tasks.detection_metrics.match` with the
            same truth.
        thresholds: each model's own; None leaves out the figures at one.
        resamples, confidence, groups, seed: as :func:`bootstrap` has them.

    Raises:
        ValueError: different truths, or groups of another length.
    """
    _check_same_truth(first, second)
    group_of = _numbered(groups, first.images)
    of_first, of_second = (figures(each) for each in thresholds or (None, None))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in of_first}
    for weights in _resamples(first, group_of, resamples, seed, detections=len(second.scores)):
        for name, values in drawn.items():
            one, other = of_first[name].of(first, weights), of_second[name].of(second, weights)
            values.append(one - other)
    return {
        name: _comparison(
            of_first[name],
            (_value(first, of_first[name]), _value(second, of_second[name])),
            np.concatenate(values),
            _groups_of(of_first[name], first, group_of),
            confidence,
        )
        for name, values in drawn.items()
    }


def compare_means(
    firsts: Sequence[Matches],
    seconds: Sequence[Matches],
    *,
    figure: str = "ap50",
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Comparison:
    """Two methods on the same images, each by several runs: the mean of a figure over its runs.

    All runs see the same resamples of images. The runs are taken as they are: what other seeds
    would have given is not in the interval.

    Args:
        firsts, seconds: of the runs of either method, all with the same truth.
        figure: that needs no threshold, see :func:`medkd.tasks.detection_metrics.figures`.
        resamples, confidence, groups, seed: as :func:`bootstrap` has them.

    Raises:
        ValueError: different truths, groups of another length, or a method without runs.
    """
    if not firsts or not seconds:
        raise ValueError("a method without runs")
    every = [*firsts, *seconds]
    for one in every[1:]:
        _check_same_truth(every[0], one)
    group_of = _numbered(groups, every[0].images)
    chosen = figures(None)[figure]

    def means(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (
            np.mean([chosen.of(one, weights) for one in side], axis=0) for side in (firsts, seconds)
        )
        return first, second

    largest = max(len(one.scores) for one in every)
    drawn = [
        first - second
        for first, second in map(
            means, _resamples(every[0], group_of, resamples, seed, detections=largest)
        )
    ]
    ours, theirs = means(np.ones((1, every[0].images)))
    return _comparison(
        chosen,
        (float(ours[0]), float(theirs[0])),
        np.concatenate(drawn),
        _groups_of(chosen, every[0], group_of),
        confidence,
    )


def _resamples(
    matches: Matches, group_of: np.ndarray, resamples: int, seed: int, *, detections: int = 0
) -> Iterator[np.ndarray]:
    """Blocks of resamples: how often each image comes, float64 (resamples, images)."""
    random = np.random.default_rng(seed)
    positive = np.bincount(group_of, matches.truth_counts) > 0
    counts = np.zeros((resamples, len(positive)))
    for side in (positive, ~positive):
        size = int(side.sum())
        if size:
            counts[:, side] = random.multinomial(size, np.full(size, 1 / size), resamples)
    rows = max(1, len(matches.scores), detections)
    block = max(1, _BLOCK // rows)
    for start in range(0, resamples, block):
        yield counts[start : start + block][:, group_of]


def _value(matches: Matches, figure: Figure) -> float:
    return float(figure.of(matches, np.ones((1, matches.images)))[0])


def _groups_of(figure: Figure, matches: Matches, group_of: np.ndarray) -> int:
    """How many groups have an image that the figure is of."""
    has_box = matches.truth_counts > 0
    return len(np.unique(group_of[~has_box if figure.of_negatives else has_box]))


def _estimate(
    figure: Figure, value: float, drawn: np.ndarray, groups: int, confidence: float
) -> Estimate:
    which = "without a true box" if figure.of_negatives else "with a true box"
    if not np.isfinite(value):
        return Estimate(None, reason=f"there is no image {which}")
    if groups == 1:
        return Estimate(value, reason=f"images {which} come from one source: no interval")
    known = drawn[np.isfinite(drawn)]
    if len(known) < _LEAST_DEFINED * len(drawn):
        return Estimate(value, reason=f"had in {len(known)} of {len(drawn)} resamples only")
    if np.ptp(known) < _ROUNDING:
        if figure.share and value in (0.0, 1.0):
            interval = binomtest(round(value * groups), groups).proportion_ci(confidence)
            return Estimate(value, float(interval.low), float(interval.high))
        return Estimate(value, reason="no resample differs: no interval by resampling")
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(lower), float(upper))


def _comparison(
    figure: Figure,
    values: tuple[float, float],
    drawn: np.ndarray,
    groups: int,
    confidence: float,
) -> Comparison:
    # A difference is no share: -1, 0 and 1 are values like others.
    plain = Figure(figure.of, of_negatives=figure.of_negatives)
    difference = _estimate(plain, values[0] - values[1], drawn, groups, confidence)
    first, second = (value if np.isfinite(value) else None for value in values)
    if difference.value is None or groups == 1:
        return Comparison(first, second, difference)
    # A resample whose figure cannot be had counts against the difference, whichever its sign.
    least = min((~(drawn > _ROUNDING)).sum(), (~(drawn < -_ROUNDING)).sum())
    p_value = min(1.0, 2 * (1 + int(least)) / (1 + len(drawn)))
    return Comparison(first, second, difference, p_value)


def _numbered(groups: np.ndarray | None, images: int) -> np.ndarray:
    """Numbers of the images' groups from 0, int64 (images,)."""
    if groups is None:
        return np.arange(images)
    if np.shape(groups) != (images,):
        raise ValueError(f"groups have shape {np.shape(groups)}, and there are {images} images")
    return np.unique(groups, return_inverse=True)[1]


def _check_same_truth(first: Matches, second: Matches) -> None:
    same = first.images == second.images and all(
        np.array_equal(one, other)
        for one, other in (
            (first.truth_classes, second.truth_classes),
            (first.truth_image_of, second.truth_image_of),
        )
    )
    if not same:
        raise ValueError("the two models were matched with different true boxes")
