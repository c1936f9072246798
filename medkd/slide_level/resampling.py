"""Intervals and tests by resampling patients, never slides or tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medkd.errors import StageError
from medkd.slide_level.scored import ScoredPatients, Weighted, checked_rows, scored_patients
from medkd.slide_level.statistics import Comparison, Estimate, Figure

# Rows times resamples that are at work at a time: some ten arrays of 1.6 MB stay in the cache.
_BLOCK = 200_000
# A percentile of fewer resamples than this share of them would describe other patients.
_LEAST_DEFINED = 0.95
# Two figures that differ by rounding alone are equal.
_ROUNDING = 1e-12


def draw_counts(patients: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often each patient comes when as many as there are get drawn with replacement.

    Returns:
        int64, (resamples, patients); each row sums to ``patients``.
    """
    drawn = random.integers(0, max(patients, 1), (resamples, patients))
    drawn += patients * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * patients).reshape(resamples, patients)


def bootstrap(
    cohort: ScoredPatients,
    figures: Sequence[Figure],
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Figures with percentile intervals, all from the same resamples of patients.

    Patients are drawn with replacement within each class (Efron and Tibshirani 1993, chapters 13
    and 8), so that every resample has both classes at the cohort's own prevalence. A patient's
    rows come together. Where a share is 0 or 1 in the cohort, and so in every resample, its
    interval is that of :func:`end_interval`.

    Args:
        cohort: from :func:`medkd.slide_level.scored.scored_patients`.
        figures: what to work out, with different names.
        resamples, confidence, seed: of the bootstrap.

    Returns:
        For each figure's name its estimate. The value is None where the cohort lacks the patients
        for it, and the interval where a class has one patient alone, with the reason.
    """
    once = cohort.unweighted()
    values = {figure.name: float(figure.of(once)[0]) for figure in figures}
    drawn: dict[str, list[np.ndarray]] = {figure.name: [] for figure in figures}
    for resample in _resamples([cohort], resamples, seed):
        for figure in figures:
            drawn[figure.name].append(figure.of(resample[0]))
    return {
        figure.name: _estimate(
            figure, cohort, values[figure.name], np.concatenate(drawn[figure.name]), confidence
        )
        for figure in figures
    }


def bootstrap_values(
    cohort: ScoredPatients,
    of: Callable[[Weighted], np.ndarray],
    *,
    resamples: int,
    seed: int = 0,
) -> np.ndarray:
    """What ``of`` makes of every resample, (resamples, ...); for curves, which are no figures."""
    return np.concatenate([of(drawn) for (drawn,) in _resamples([cohort], resamples, seed)])


def bootstrap_difference(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    figures: tuple[Figure, Figure],
    *,
    resamples: int,
    confidence: float,
    patients: np.ndarray | None = None,
    seed: int = 0,
    where: str = "scores",
) -> Comparison:
    """The difference of two runs on the same rows, with its paired percentile interval.

    Args:
        labels: bool, (rows,).
        first, second: scores of the two runs, (rows,), of the same rows in the same order.
        figures: of the first and of the second run; they differ where the runs have operating
            points of their own.
        resamples, confidence, seed: of the bootstrap; both runs see the same patients.
        patients: patient of each row, (rows,).
        where: what the scores are of, for messages.

    Raises:
        StageError: as :func:`medkd.slide_level.scored.scored_patients` has it.
    """
    cohorts = [
        scored_patients(labels, scores, patients, where=where)
        for scores in _paired(first, second, where)
    ]
    of_first, of_second = (
        float(figure.of(cohort.unweighted())[0])
        for figure, cohort in zip(figures, cohorts, strict=True)
    )
    differences = np.concatenate(
        [
            figures[0].of(one) - figures[1].of(other)
            for one, other in _resamples(cohorts, resamples, seed)
        ]
    )
    plain = Figure("difference", figures[0].of, figures[0].of_positives, figures[0].of_negatives)
    difference = _estimate(plain, cohorts[0], of_first - of_second, differences, confidence)
    return Comparison(_or_none(of_first), _or_none(of_second), difference)


def permutation_test(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    figures: tuple[Figure, Figure],
    *,
    permutations: int,
    patients: np.ndarray | None = None,
    by_rank: bool = False,
    seed: int = 0,
    where: str = "scores",
) -> Comparison:
    """Test the difference of two runs by swapping their scores, patient by patient.

    Under the null hypothesis it makes no difference which run gave which of a patient's scores.
    p = (1 + permutations with at least this difference) / (1 + permutations), two-sided, so it
    is never 0 (Phipson and Smyth 2010).

    Args:
        labels, first, second, patients, where: as :func:`bootstrap_difference` has them.
        figures: must be the same figure at the same threshold; the runs' scores must be on one
            scale, as probabilities are.
        permutations: how many swaps are drawn, each patient with probability 1/2.
        by_rank: replace each run's scores by their midranks first (Bandos, Rockette and Gur
            2005), for runs whose scores are on different scales; not for thresholds.
        seed: of the swaps.

    Raises:
        StageError: as :func:`medkd.slide_level.scored.scored_patients` has it.
    """
    both = _paired(first, second, where)
    labels, _, patients = checked_rows(labels, both[0], patients, where=where)
    for scores in both:
        scored_patients(labels, scores, patients, where=where)
    if by_rank:
        from scipy.stats import rankdata

        both = [rankdata(scores) for scores in both]
    # One cohort holds both scores of every patient; a swap is which of the two copies counts.
    _, numbers = np.unique(patients, return_inverse=True)
    count = int(numbers.max(initial=-1)) + 1
    cohort = scored_patients(
        np.tile(labels, 2),
        np.concatenate(both),
        np.concatenate([numbers, numbers + count]),
        where=where,
    )

    def difference(swapped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        copies = np.concatenate([~swapped, swapped], axis=1)
        one, other = (
            figure.of(
                cohort.weighted(
                    chosen[:, cohort.positive.patient_ids], chosen[:, cohort.negative.patient_ids]
                )
            )
            for figure, chosen in zip(figures, (copies, ~copies), strict=True)
        )
        return one, other

    of_first, of_second = (float(v[0]) for v in difference(np.zeros((1, count), bool)))
    observed = of_first - of_second
    if not np.isfinite(observed):
        reason = _absent(figures[0], cohort) or "a figure cannot be had"
        return Comparison(_or_none(of_first), _or_none(of_second), Estimate(None, reason=reason))
    random = np.random.default_rng(seed)
    extreme = 0
    block = max(1, _BLOCK // (2 * len(labels)))
    for start in range(0, permutations, block):
        swapped = random.random((min(block, permutations - start), count)) < 0.5
        one, other = difference(swapped)
        # A permutation whose figure cannot be had counts against the difference.
        extreme += int((~(np.abs(one - other) < abs(observed) - _ROUNDING)).sum())
    return Comparison(of_first, of_second, Estimate(observed), (1 + extreme) / (1 + permutations))


def end_interval(value: float, patients: int, confidence: float) -> tuple[float, float]:
    """Interval of a share that is 0 or 1, in which resamples do not differ.

    If each of k patients is in the right place with probability p, all are with probability p^k;
    so is the chance that all pairs are in order at most AUROC^k with k the patients of the smaller
    class, since k pairs share no patient. The p at which that is half of 1 - confidence is the
    lower end: Clopper and Pearson's for a proportion, on the safe side for AUROC.

    Args:
        value: 0 or 1.
        patients: k.
        confidence: level of the interval.
    """
    reach = ((1 - confidence) / 2) ** (1 / patients)
    return (reach, 1.0) if value >= 0.5 else (0.0, 1 - reach)


def _resamples(
    cohorts: Sequence[ScoredPatients], resamples: int, seed: int
) -> Iterator[list[Weighted]]:
    """Blocks of resamples, the same patients in every cohort."""
    random = np.random.default_rng(seed)
    sides = cohorts[0].positive, cohorts[0].negative
    rows = max(1, sum(len(side.scores) for side in sides))
    block = max(1, _BLOCK // (rows * len(cohorts)))
    for start in range(0, resamples, block):
        counts = [
            draw_counts(side.patient_count, min(block, resamples - start), random) for side in sides
        ]
        yield [cohort.weighted(*counts) for cohort in cohorts]


def _estimate(
    figure: Figure, cohort: ScoredPatients, value: float, drawn: np.ndarray, confidence: float
) -> Estimate:
    if not np.isfinite(value):
        return Estimate(
            None, reason=_absent(figure, cohort) or "no patient is on that side of the threshold"
        )
    patients = min(_taking_part(figure, cohort))
    if figure.share and value in (0.0, 1.0):
        return Estimate(value, *end_interval(value, patients, confidence))
    if patients == 1:
        return Estimate(value, reason="a class has one patient alone: no interval by resampling")
    known = drawn[np.isfinite(drawn)]
    if len(known) < _LEAST_DEFINED * len(drawn):
        return Estimate(value, reason=f"had in {len(known)} of {len(drawn)} resamples only")
    if np.ptp(known) == 0:
        return Estimate(value, reason="no resample differs: no interval by resampling")
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(lower), float(upper))


def _taking_part(figure: Figure, cohort: ScoredPatients) -> list[int]:
    sides = ((figure.of_positives, cohort.positive), (figure.of_negatives, cohort.negative))
    return [side.patient_count for takes_part, side in sides if takes_part]


def _absent(figure: Figure, cohort: ScoredPatients) -> str:
    return "" if all(_taking_part(figure, cohort)) else "a class is absent"


def _paired(first: np.ndarray, second: np.ndarray, where: str) -> list[np.ndarray]:
    both = [np.asarray(scores, np.float64) for scores in (first, second)]
    if both[0].shape != both[1].shape:
        raise StageError(
            f"the first run has {len(both[0])} scores and the second {len(both[1])}",
            where=where,
            remedy="Compare runs on the same patients, in the same order.",
        )
    return both


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
