"""Figures by a column of the cohort's table: site, scanner, stage, sex."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medkd.errors import StageError
from medkd.slide_level.resampling import bootstrap
from medkd.slide_level.scored import checked_rows, scored_patients
from medkd.slide_level.statistics import Estimate, Figure

NOT_GIVEN = "(not given)"


def subgroup_table(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: pd.Series | np.ndarray,
    figures: Sequence[Figure],
    *,
    resamples: int,
    confidence: float,
    patients: np.ndarray | None = None,
    min_patients: int = 10,
    seed: int = 0,
    where: str = "scores",
) -> pd.DataFrame:
    """Every figure of every subgroup, each with its own bootstrap over the subgroup's patients.

    Args:
        labels: bool, (rows,).
        scores: (rows,).
        groups: the subgroup of each row, (rows,); rows without one are a subgroup of their own.
        figures: what to work out.
        resamples, confidence, seed: of the bootstrap.
        patients: patient of each row, (rows,); one with rows in two subgroups counts in both.
        min_patients: a figure needs as many patients of each class that takes part in it; with
            fewer there is the reason instead of a number. With 10 patients the interval of a
            share reaches over half of the scale.
        where: what the scores are of, for messages.

    Returns:
        One row for each subgroup, in alphabetical order, and figure: ``group``, ``rows``,
        ``patients``, ``positives``, ``negatives`` (patients), ``figure``, ``value``, ``lower``,
        ``upper`` (float, not a number where there is none), ``reason``.

    Raises:
        StageError: as :func:`medkd.slide_level.scored.scored_patients` has it, or a group is
            lacking.
    """
    truth, values, numbers = checked_rows(labels, scores, patients, where=where)
    names = pd.Series(np.asarray(groups, object))
    named = names.astype(str).where(names.notna(), NOT_GIVEN).to_numpy()
    if len(named) != len(truth):
        raise StageError(
            f"{len(truth)} labels, {len(values)} scores and {len(named)} groups",
            where=where,
            remedy="Give one group for each row.",
        )
    table = []
    for name in sorted(set(named), key=lambda name: (name == NOT_GIVEN, name)):
        inside = named == name
        cohort = scored_patients(truth[inside], values[inside], numbers[inside], where=where)
        positives, negatives = cohort.positive.patient_count, cohort.negative.patient_count
        enough = [
            figure
            for figure in figures
            if (not figure.of_positives or positives >= min_patients)
            and (not figure.of_negatives or negatives >= min_patients)
        ]
        found = bootstrap(cohort, enough, resamples=resamples, confidence=confidence, seed=seed)
        few = Estimate(None, reason=f"too few: fewer than {min_patients} patients of a class")
        for figure in figures:
            estimate = found.get(figure.name, few)
            table.append(
                {
                    "group": name,
                    "rows": int(inside.sum()),
                    "patients": positives + negatives,
                    "positives": positives,
                    "negatives": negatives,
                    "figure": figure.name,
                    "value": estimate.value,
                    "lower": estimate.lower,
                    "upper": estimate.upper,
                    "reason": estimate.reason,
                }
            )
    frame = pd.DataFrame(table)
    return frame.astype({"value": float, "lower": float, "upper": float}) if table else frame
