"""From the predictions of all tiles to calls of all slides and patients, and how good they are.

A patient's score is the mean over all tiles of the patient's slides: a large slide weighs more than
a small one because it shows more of the tumour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.datasets.split import ROLES
from medkd.errors import StageError
from medkd.slide_level.call import make_call
from medkd.slide_level.operating_point import OperatingPoint, choose_operating_point
from medkd.slide_level.pooling import SlideScore, pool_slide
from medkd.slide_level.resampling import bootstrap
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.statistics import AUROC, auroc, sensitivity_at, specificity_at

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Aggregation:
    """What aggregation came to; the tables are described in docs/files.md."""

    slides: pd.DataFrame
    patients: pd.DataFrame
    operating_point: OperatingPoint
    evaluation: dict[str, Any]


def aggregate(
    predictions: pd.DataFrame,
    labels: dict[str, str],
    tissue_mm2: dict[str, float],
    students: Sequence[str],
    config: Config,
    *,
    date: str,
    synthetic: bool,
) -> Aggregation:
    """Pool, choose the operating point on validation patients, and evaluate on test patients.

    Args:
        predictions: as in docs/files.md.
        labels: of each patient.
        tissue_mm2: of each slide.
        students: names of the networks that ship; their mean is the ensemble.
        config: the experiment.
        date: of the operating point, ISO.
        synthetic: whether any slide was drawn.

    Raises:
        StageError: a role or a student is absent, a probability is not a number.
    """
    _check(predictions, labels, students)
    slides = _pool(predictions, ["slide_id", "patient_id", "role"], students, config)
    patients = _pool(predictions, ["patient_id", "role"], students, config)
    positive = config.data.positive
    for table in (slides, patients):
        table.insert(table.columns.get_loc("role") + 1, "label", table["patient_id"].map(labels))
    chosen_on = patients[(patients["role"] == "validation") & (patients["network"] == ENSEMBLE)]
    point = choose_operating_point(
        (chosen_on["label"] == positive).to_numpy(),
        chosen_on["score"].to_numpy(),
        config.slide_level.target_sensitivity,
        confidence=config.slide_level.confidence,
        date=date,
    )
    by_patient = (
        predictions[["slide_id", "patient_id"]]
        .drop_duplicates()
        .assign(mm2=lambda table: table["slide_id"].map(tissue_mm2))
        .groupby("patient_id")["mm2"]
        .sum()
        .to_dict()
    )
    slides["call"] = _calls(slides, slides["slide_id"].map(tissue_mm2), point, config)
    patients["call"] = _calls(patients, patients["patient_id"].map(by_patient), point, config)
    evaluation = _evaluate(predictions, labels, slides, patients, point, students, config)
    evaluation["synthetic"] = synthetic
    return Aggregation(slides, patients, point, evaluation)


def _check(predictions: pd.DataFrame, labels: dict[str, str], students: Sequence[str]) -> None:
    where = "predictions.parquet"
    again = "Run 'medkd predict' again."
    networks = set(predictions["network"])
    for student in students:
        if student not in networks:
            raise StageError(f"has no predictions of '{student}'", where=where, remedy=again)
    if not predictions["probability"].between(0, 1).all():
        raise StageError(
            "holds a probability that is not a number between 0 and 1", where=where, remedy=again
        )
    for role in ROLES:
        if role not in set(predictions["role"]):
            raise StageError(f"has no {role} patient", where=where, remedy=again)
    for patient in predictions["patient_id"].unique():
        if patient not in labels:
            raise StageError(
                f"patient '{patient}' has no label", where=where, remedy="Add it to slides.csv."
            )


def _pool(
    predictions: pd.DataFrame, keys: list[str], students: Sequence[str], config: Config
) -> pd.DataFrame:
    settings = config.slide_level
    rows = []
    for key, group in predictions.groupby(keys, sort=True):
        values = {
            str(name): part["probability"].to_numpy(np.float64)
            for name, part in group.sort_values(["slide_id", "y", "x"]).groupby("network")
        }

        def pooled(names: Sequence[str], values: dict[str, np.ndarray] = values) -> SlideScore:
            return pool_slide(
                {name: values[name] for name in names},
                resamples=settings.bootstrap_resamples,
                confidence=settings.confidence,
            )

        for network in (*sorted(values), ENSEMBLE):
            score = pooled(students if network == ENSEMBLE else (network,))
            rows.append(
                {
                    **dict(zip(keys, key, strict=True)),
                    "network": network,
                    "tiles": score.tiles,
                    "score": score.score,
                    "lower": score.lower,
                    "upper": score.upper,
                    "disagreement": score.disagreement if network == ENSEMBLE else np.nan,
                }
            )
    return pd.DataFrame(rows).astype({"tiles": "int32"})


def _calls(
    table: pd.DataFrame, tissue_mm2: pd.Series, point: OperatingPoint, config: Config
) -> list[str | None]:
    classes, positive = config.data.classes, config.data.positive
    negative = " or ".join(name for name in classes if name != positive)
    calls: list[str | None] = []
    for row, area in zip(table.itertuples(), tissue_mm2, strict=True):
        if row.network != ENSEMBLE:
            calls.append(None)
            continue
        score = SlideScore(row.score, row.lower, row.upper, {}, row.disagreement, row.tiles)
        calls.append(
            make_call(
                score,
                point.threshold,
                config.infer,
                tissue_area_mm2=float(area),
                tiles_used=row.tiles,
                negative=negative,
                positive=positive,
            ).call
        )
    return calls


def _evaluate(
    predictions: pd.DataFrame,
    labels: dict[str, str],
    slides: pd.DataFrame,
    patients: pd.DataFrame,
    point: OperatingPoint,
    students: Sequence[str],
    config: Config,
) -> dict[str, Any]:
    settings = config.slide_level
    options: dict[str, Any] = {
        "resamples": settings.bootstrap_resamples,
        "confidence": settings.confidence,
    }
    positive = config.data.positive
    tested = patients[patients["role"] == "test"]
    ensemble = tested[tested["network"] == ENSEMBLE]
    truth = (ensemble["label"] == positive).to_numpy()
    at_point = bootstrap(
        scored_patients(truth, ensemble["score"].to_numpy(), where="test patients"),
        [sensitivity_at(point.threshold), specificity_at(point.threshold)],
        **options,
    )
    return {
        "schema_version": 1,
        "roles": {
            "train": "trained on",
            "validation": "chose the epoch and the operating point",
            "test": "every figure here",
        },
        "intervals": f"{settings.confidence:.0%}, {settings.bootstrap_resamples} bootstrap "
        "resamples of patients within each class",
        "test": {
            "patients": len(ensemble),
            "positives": int(truth.sum()),
            "prevalence": float(truth.mean()),
            "slides": int(slides.loc[slides["role"] == "test", "slide_id"].nunique()),
        },
        "operating_point": point.to_json(),
        "at_operating_point": {name: found.to_json() for name, found in at_point.items()},
        "calls": {
            str(label): {str(k): int(v) for k, v in group["call"].value_counts().items()}
            for label, group in ensemble.groupby("label")
        },
        "networks": {
            network: _of_network(
                network, students, predictions, labels, slides, patients, positive, options
            )
            for network in patients["network"].unique()
        },
    }


def _of_network(
    network: str,
    students: Sequence[str],
    predictions: pd.DataFrame,
    labels: dict[str, str],
    slides: pd.DataFrame,
    patients: pd.DataFrame,
    positive: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    slide = slides[(slides["role"] == "test") & (slides["network"] == network)]
    patient = patients[(patients["role"] == "test") & (patients["network"] == network)]
    tiles = predictions[predictions["role"] == "test"]
    if network == ENSEMBLE:
        shipped = tiles[tiles["network"].isin(students)]
        tiles = shipped.groupby(["slide_id", "patient_id", "x", "y"], as_index=False)[
            "probability"
        ].mean()
    else:
        tiles = tiles[tiles["network"] == network]
    tile_truth = (tiles["patient_id"].map(labels) == positive).to_numpy()
    return {
        "tile_auroc": auroc(tile_truth, tiles["probability"].to_numpy()),
        "slide_auroc": _auroc_of(slide, positive, options),
        "patient_auroc": _auroc_of(patient, positive, options),
    }


def _auroc_of(table: pd.DataFrame, positive: str, options: dict[str, Any]) -> dict[str, Any]:
    cohort = scored_patients(
        (table["label"] == positive).to_numpy(),
        table["score"].to_numpy(),
        table["patient_id"].to_numpy(),
        where="test patients",
    )
    return bootstrap(cohort, [AUROC], **options)[AUROC.name].to_json()
