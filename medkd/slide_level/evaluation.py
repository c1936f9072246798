"""Every figure of an evaluation on test patients, in plain JSON types: what the page shows.

The statistics are in modules of their own (docs/statistics.md); here they meet a cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from medkd.config import Config
from medkd.slide_level.calibration_error import calibration_figures, reliability
from medkd.slide_level.confusion import ConfusionCounts, accuracy_measures, confusion_counts
from medkd.slide_level.decision_curve import decision_curve
from medkd.slide_level.evaluation_input import EvaluationInput
from medkd.slide_level.model_comparison import compare_models
from medkd.slide_level.predictive_values import likelihood_ratios, predictive_values
from medkd.slide_level.resampling import bootstrap
from medkd.slide_level.roc import area_intervals, delong
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.stard import Flow
from medkd.slide_level.statistics import (
    AUPRC,
    AUROC,
    Figure,
    ruled_out_at,
    sensitivity_at,
    specificity_at,
)
from medkd.slide_level.subgroups import subgroup_table

_MOST_RELIABILITY_BINS = 5
_PATIENTS_OF_A_BIN = 10
_HISTOGRAM_BINS = 20
_THRESHOLD_PROBABILITIES = np.arange(1, 100) / 100
_WHERE = "test patients"


def evaluation_figures(given: EvaluationInput, config: Config) -> dict[str, Any]:
    """All figures of the test patients; docs/evaluate.md says what each is.

    Args:
        given: the run, read and checked.
        config: the experiment; its sections ``evaluate`` and ``slide_level`` say what is told.

    Raises:
        StageError: as the statistics have it; not of an input that was checked.
    """
    truth, shipped = given.truth, given.shipped
    counts = confusion_counts(truth, shipped.probabilities, shipped.threshold, where=_WHERE)
    return {
        "cohort": _cohort(given),
        "flow": given.flow.to_json(),
        "discrimination": _discrimination(given, config),
        "accuracy": _accuracy(given.flow, counts, config),
        "calibration": _calibration(given, config),
        "decision_curves": _decision_curves(given, config),
        "subgroups": _subgroups(given, config),
        "poolings": compare_models(truth, shipped, given.poolings[1:], config),
        "against": compare_models(
            truth, replace(shipped, name=config.run_name), given.against, config
        ),
    }


def cautions(figures: Mapping[str, Any], config: Config, *, threshold_positives: int) -> list[str]:
    """What a reader must be told before any figure, a sentence each.

    Args:
        figures: of :func:`evaluation_figures`.
        config: the experiment.
        threshold_positives: positive patients on whom the operating point was chosen.
    """
    cohort, flow = figures["cohort"], figures["flow"]
    told = []
    fewest, positive = config.evaluate.min_patients, config.data.positive
    for number, name in (
        (cohort["positives"], positive),
        (cohort["negatives"], f"not {positive}"),
    ):
        if number < fewest:
            told.append(
                f"Only {number} test patients are {name}: fewer than {fewest} say little, whatever "
                "the figure."
            )
    if threshold_positives < fewest:
        told.append(
            f"The operating point was chosen on {threshold_positives} {positive} patients alone: "
            "on others its sensitivity may be far from what was asked for."
        )
    uncalled = flow["eligible"]["patients"] - flow["called"]
    if uncalled:
        told.append(
            f"{uncalled} of {flow['eligible']['patients']} test patients "
            f"{'has' if uncalled == 1 else 'have'} no call: figures of the threshold alone are not "
            "those of the calls."
        )
    tests = len(figures["poolings"]) + len(figures["against"]) - 2
    if tests > 1:
        told.append(
            f"{tests} models are compared with the one that ships; p-values are not corrected for "
            "that."
        )
    return told


def _cohort(given: EvaluationInput) -> dict[str, Any]:
    truth = given.truth
    return {
        "patients": len(truth),
        "positives": int(truth.sum()),
        "negatives": int((~truth).sum()),
        "prevalence": float(truth.mean()),
        "roles": given.roles,
        "synthetic_slides": given.synthetic_slides,
    }


def _options(config: Config) -> dict[str, Any]:
    settings = config.slide_level
    return {"resamples": settings.bootstrap_resamples, "confidence": settings.confidence}


def _discrimination(given: EvaluationInput, config: Config) -> dict[str, Any]:
    truth, scores = given.truth, given.shipped.scores
    found = bootstrap(
        scored_patients(truth, scores, where=_WHERE), [AUROC, AUPRC], **_options(config)
    )
    (by_delong,) = area_intervals(
        delong(truth, scores, where=_WHERE), confidence=config.slide_level.confidence
    )
    false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, scores)
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    return {
        "auroc": {"delong": by_delong.to_json(), "bootstrap": found[AUROC.name].to_json()},
        "auprc": found[AUPRC.name].to_json(),
        "roc": {"false_positive_rate": false_rate.tolist(), "sensitivity": true_rate.tolist()},
        "precision_recall": {"recall": recall.tolist(), "precision": precision.tolist()},
        "probabilities": {
            "edges": edges.tolist(),
            "positives": np.histogram(given.shipped.probabilities[truth], edges)[0].tolist(),
            "negatives": np.histogram(given.shipped.probabilities[~truth], edges)[0].tolist(),
        },
    }


def _accuracy(flow: Flow, counts: ConfusionCounts, config: Config) -> dict[str, Any]:
    confidence = config.slide_level.confidence
    negative, positive = flow.called_negative, flow.called_positive
    called = ConfusionCounts(
        true_positives=positive.positives,
        false_positives=positive.negatives,
        false_negatives=negative.positives,
        true_negatives=negative.negatives,
    )
    # Who has no call gets the standard test, as who is called positive does.
    rule_out = ConfusionCounts(
        true_positives=flow.eligible.positives - negative.positives,
        false_positives=flow.eligible.negatives - negative.negatives,
        false_negatives=negative.positives,
        true_negatives=negative.negatives,
    )
    ratios = likelihood_ratios(counts, confidence=confidence)
    return {
        "threshold": _measured(counts, confidence),
        "calls": _measured(called, confidence),
        "rule_out": _measured(rule_out, confidence),
        "predictive_values": [
            {"prevalence": prevalence, "ppv": found.ppv.to_json(), "npv": found.npv.to_json()}
            for prevalence in config.evaluate.prevalences
            for found in [predictive_values(counts, prevalence, confidence=confidence)]
        ],
        "likelihood_ratios": {
            "positive": ratios.positive.to_json(),
            "negative": ratios.negative.to_json(),
        },
    }


def _measured(counts: ConfusionCounts, confidence: float) -> dict[str, Any]:
    return {
        "true_positives": counts.true_positives,
        "false_positives": counts.false_positives,
        "false_negatives": counts.false_negatives,
        "true_negatives": counts.true_negatives,
        **{
            name: found.to_json()
            for name, found in accuracy_measures(counts, confidence=confidence).items()
        },
    }


def _calibration(given: EvaluationInput, config: Config) -> dict[str, Any]:
    truth, probabilities = given.truth, given.shipped.probabilities
    confidence = config.slide_level.confidence
    bins = min(max(len(truth) // _PATIENTS_OF_A_BIN, 2), _MOST_RELIABILITY_BINS)
    binned = reliability(
        truth, probabilities, bins=bins, scheme="equal count", confidence=confidence
    )
    return {
        **calibration_figures(truth, probabilities, confidence=confidence).to_json(),
        "reliability": [
            {
                "lower": one.lower,
                "upper": one.upper,
                "patients": one.patients,
                "positives": one.positives,
                "mean_probability": one.mean_probability,
                "share": one.share,
                "interval": list(one.interval),
            }
            for one in binned.bins
        ],
    }


def _decision_curves(given: EvaluationInput, config: Config) -> dict[str, Any]:
    """At the cohort's prevalence first, then at each stated one; and what can be ruled out."""
    cohort = scored_patients(given.truth, given.shipped.probabilities, where=_WHERE)
    curves = [
        decision_curve(
            cohort, _THRESHOLD_PROBABILITIES, prevalence=prevalence, where=_WHERE,
            **_options(config),
        )
        for prevalence in (None, *config.evaluate.prevalences)
    ]  # fmt: skip
    return {
        "threshold_probabilities": _THRESHOLD_PROBABILITIES.tolist(),
        "curves": [
            {
                "prevalence": curve.prevalence,
                "net_benefit": curve.net_benefit.tolist(),
                "lower": curve.lower.tolist(),
                "upper": curve.upper.tolist(),
                "treat_all": curve.treat_all.tolist(),
            }
            for curve in curves
        ],
        "ruled_out": _ruled_out(given, config),
    }


def _ruled_out(given: EvaluationInput, config: Config) -> list[dict[str, Any]]:
    cohort = scored_patients(given.truth, given.shipped.probabilities, where=_WHERE)
    rows = []
    for sensitivity in config.evaluate.sensitivities:
        shares: list[tuple[float | None, Figure]] = [
            (prevalence, ruled_out_at(sensitivity, prevalence))
            for prevalence in (None, *config.evaluate.prevalences)
        ]
        found = bootstrap(cohort, [figure for _, figure in shares], **_options(config))
        rows.append(
            {
                "sensitivity": sensitivity,
                "shares": [
                    {"prevalence": prevalence, **found[figure.name].to_json()}
                    for prevalence, figure in shares
                ],
            }
        )
    return rows


def _subgroups(given: EvaluationInput, config: Config) -> dict[str, Any]:
    """For each column its groups with figures, or null where slides.csv does not have it."""
    return {
        column: _by_group(given, column, config) if column in given.subgroups else None
        for column in config.evaluate.subgroups
    }


def _by_group(given: EvaluationInput, column: str, config: Config) -> list[dict[str, Any]]:
    groups, threshold = given.subgroups[column], given.shipped.threshold
    row_of = {patient: row for row, patient in enumerate(given.patient_ids)}
    index = groups["patient_id"].map(row_of).to_numpy()
    found: dict[str, dict[str, Any]] = {}
    parts: tuple[tuple[np.ndarray, Sequence[Figure]], ...] = (
        (given.shipped.scores, [AUROC]),
        (given.shipped.probabilities, [sensitivity_at(threshold), specificity_at(threshold)]),
    )
    for values, figures in parts:
        table = subgroup_table(
            given.truth[index],
            values[index],
            groups["group"],
            figures,
            patients=given.patient_ids[index],
            min_patients=config.evaluate.min_patients,
            where=_WHERE,
            **_options(config),
        )
        for row in table.to_dict("records"):
            of_group = found.setdefault(
                row["group"],
                {key: row[key] for key in ("group", "patients", "positives", "negatives")},
            )
            of_group[row["figure"]] = {
                key: row[key]
                for key in ("value", "lower", "upper")
                if row[key] == row[key]  # not a number where there is none
            } | ({"reason": row["reason"]} if row["reason"] else {})
    return list(found.values())
