"""Several models on the same test patients: figures of each, and paired tests against the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medkd.config import Config
from medkd.slide_level.calibration_error import calibration_figures
from medkd.slide_level.confusion import accuracy_measures, confusion_counts
from medkd.slide_level.resampling import bootstrap, bootstrap_difference, permutation_test
from medkd.slide_level.roc import area_intervals, delong, delong_test
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.scored_models import ScoredModel
from medkd.slide_level.statistics import AUROC


def compare_models(
    truth: np.ndarray, shipped: ScoredModel, others: Sequence[ScoredModel], config: Config
) -> list[dict[str, Any]]:
    """Figures of each model, the shipped one first; of the others the difference to it.

    Args:
        truth: True for the positive class, bool, (patients,).
        shipped: what the others are compared with.
        others: on the same patients, in the same order.
        config: the experiment.

    Returns:
        For each model ``name``, ``auroc`` (``delong``, ``bootstrap``), ``brier_score``,
        ``threshold``, ``sensitivity``, ``specificity`` (at its own threshold, exact intervals) and
        ``difference``: of its AUROC to the shipped model's, null for that one itself.
    """
    return [
        {
            **_figures(truth, model, config),
            "difference": None if model is shipped else _difference(truth, model, shipped, config),
        }
        for model in (shipped, *others)
    ]


def _figures(truth: np.ndarray, model: ScoredModel, config: Config) -> dict[str, Any]:
    settings = config.slide_level
    (by_delong,) = area_intervals(
        delong(truth, model.scores, where=model.name), confidence=settings.confidence
    )
    by_bootstrap = bootstrap(
        scored_patients(truth, model.scores, where=model.name),
        [AUROC],
        resamples=settings.bootstrap_resamples,
        confidence=settings.confidence,
    )[AUROC.name]
    at_threshold = accuracy_measures(
        confusion_counts(truth, model.probabilities, model.threshold, where=model.name),
        confidence=settings.confidence,
    )
    brier = calibration_figures(
        truth, model.probabilities, confidence=settings.confidence, cohort=model.name
    ).brier_score
    return {
        "name": model.name,
        "auroc": {"delong": by_delong.to_json(), "bootstrap": by_bootstrap.to_json()},
        "brier_score": brier.to_json(),
        "threshold": model.threshold,
        "sensitivity": at_threshold["sensitivity"].to_json(),
        "specificity": at_threshold["specificity"].to_json(),
    }


def _difference(
    truth: np.ndarray, model: ScoredModel, shipped: ScoredModel, config: Config
) -> dict[str, Any]:
    settings = config.slide_level
    where = f"{model.name} against {shipped.name}"
    tested = delong_test(
        delong(truth, np.stack([model.scores, shipped.scores]), where=where),
        confidence=settings.confidence,
    )
    resampled = bootstrap_difference(
        truth,
        model.scores,
        shipped.scores,
        (AUROC, AUROC),
        resamples=settings.bootstrap_resamples,
        confidence=settings.confidence,
        where=where,
    )
    # By rank: scores of two poolings, or of two runs, are not on one scale.
    permuted = permutation_test(
        truth,
        model.scores,
        shipped.scores,
        (AUROC, AUROC),
        permutations=config.evaluate.permutations,
        by_rank=True,
        where=where,
    )
    return {
        "delong": tested.difference.to_json(),
        "delong_p": tested.p_value,
        "bootstrap": resampled.difference.to_json(),
        "permutation_p": permuted.p_value,
    }
