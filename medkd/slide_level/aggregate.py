"""From the predictions of all tiles to calls of all slides and patients, and how good they are.

Unless told otherwise a patient's score is the mean over all tiles of the patient's slides: a large
slide weighs more than a small one because it shows more of the tumour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.datasets.split import ROLES
from medkd.errors import StageError, TooFewPatientsError
from medkd.progress import Advance
from medkd.slide_level.calibration_error import calibration_figures
from medkd.slide_level.call import make_call
from medkd.slide_level.decisions import Decisions, decide
from medkd.slide_level.labelled import FEWEST_PATIENTS, label_of
from medkd.slide_level.operating_point import OperatingPoint
from medkd.slide_level.out_of_distribution import WHATS
from medkd.slide_level.pooling import SlideScore
from medkd.slide_level.prediction_file import SlideTiles
from medkd.slide_level.resampling import bootstrap
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.slide_head import PackagedSlideHead
from medkd.slide_level.slide_pooling import ProbabilityPooling, SlidePooling
from medkd.slide_level.slide_pooling_fit import fit_slide_pooling
from medkd.slide_level.slide_quality import SlideQuality
from medkd.slide_level.statistics import AUROC, sensitivity_at, specificity_at
from medkd.slide_level.streaming import ENSEMBLE, pool_predictions
from medkd.slide_level.tile_areas import TileAreas


@dataclass(frozen=True)
class Aggregation:
    """What aggregation came to; the tables are described in docs/files.md.

    Attributes:
        slides, patients: calls.
        poolings: patients' scores by every pooling.
        decisions: what is fitted to validation patients.
        evaluation: figures on test patients.
        slide_head, head_files: how tiles become scores, for the model package.
        trained_mpp: least and largest resolution of training slides, for it too.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame
    poolings: pd.DataFrame
    decisions: Decisions
    evaluation: dict[str, Any]
    slide_head: PackagedSlideHead
    head_files: Mapping[str, bytes]
    trained_mpp: tuple[float, float] | None

    @property
    def operating_point(self) -> OperatingPoint:
        """The frozen threshold."""
        return self.decisions.operating_point


def aggregate(
    predictions: Path,
    labels: Mapping[str, str],
    qualities: Mapping[str, SlideQuality],
    students: Sequence[str],
    config: Config,
    *,
    embeddings: Path,
    date: str,
    synthetic: bool,
    distance_limits: Mapping[str, float] | None = None,
    advance: Advance | None = None,
) -> Aggregation:
    """Pool, fit what is frozen to validation patients, and evaluate on test patients.

    Args:
        predictions: the file, as in docs/files.md.
        labels: of each patient.
        qualities: what the tile stage measured of each slide.
        students: names of the networks that ship; their mean is the ensemble.
        config: the experiment.
        embeddings: the folder, as in docs/files.md; looked at by learned poolings only.
        date: of the operating point, ISO.
        synthetic: whether any slide was drawn.
        distance_limits: how far from the training slides a slide may lie, of what is compared.
        advance: told of every slide that is read.

    Raises:
        StageError: a role, a student or a label is absent, a probability is not a number, or a
            learned pooling has no embeddings or too few patients.
    """
    settings, positive = config.slide_level, config.data.positive
    is_positive = {patient: label == positive for patient, label in labels.items()}

    def fitted(kind: str) -> SlidePooling:
        return fit_slide_pooling(
            kind, predictions, embeddings, is_positive, students, settings, seed=config.seed
        )

    shipped = fitted(settings.pooling)
    others: dict[str, SlidePooling] = {}
    left_out = []
    for kind in settings.compare_poolings:
        try:
            others[kind] = fitted(kind)
        except TooFewPatientsError as error:
            left_out.append(f"{kind} is not compared: {error.where}: {error.what}")
    interval = Interval(settings.confidence, settings.interval)
    areas = TileAreas(is_positive, students, ENSEMBLE)
    compared: list[dict[str, Any]] = []

    def take(of_patient: Sequence[SlideTiles]) -> None:
        patient_id, role = of_patient[0].patient_id, of_patient[0].role
        label = label_of(labels, patient_id, predictions)
        for slide in of_patient:
            areas.add(slide)
        for kind, pooling in others.items():
            found = pooling.score(of_patient, resamples=0, interval=interval)
            key = {"pooling": kind, "patient_id": patient_id, "role": role, "label": label}
            compared.append({**key, "tiles": found.tiles, "score": found.score})

    by_sums = isinstance(shipped, ProbabilityPooling) and shipped.is_mean_of_tiles
    pooled = pool_predictions(
        predictions,
        students,
        resamples=settings.bootstrap_resamples,
        interval=interval,
        pooling=None if by_sums else shipped,
        advance=advance,
        on_patient=take,
    )
    slides, patients = pooled.slides, pooled.patients
    for role in ROLES:
        if role not in set(patients["role"]):
            raise StageError(
                f"has no {role} patient", where=predictions, remedy="Run 'medkd predict' again."
            )
    for table in (slides, patients):
        table.insert(table.columns.get_loc("role") + 1, "label", table["patient_id"].map(labels))
    chosen_on = patients[(patients["role"] == "validation") & (patients["network"] == ENSEMBLE)]
    decisions = _decided(chosen_on, config, date)
    decisions = replace(decisions, warnings=(*decisions.warnings, *left_out))
    of_patients: dict[str, SlideQuality] = {}
    for row in slides[slides["network"] == ENSEMBLE].itertuples():
        own, known = qualities[row.slide_id], of_patients.get(row.patient_id)
        of_patients[row.patient_id] = own if known is None else known + own
    trained_mpp = _trained_mpp(slides, qualities)
    for table, measured in (
        (slides, slides["slide_id"].map(qualities)),
        (patients, patients["patient_id"].map(of_patients)),
    ):
        own = table["network"] == ENSEMBLE
        table["probability"] = np.nan
        table.loc[own, "probability"] = decisions.calibration(table.loc[own, "score"].to_numpy())
        for what in WHATS:
            found = measured.map(lambda one, what=what: one.distances.get(what, np.nan))
            table[f"distance_{what}"] = found.where(own).astype(float)
        table["call"] = _calls(
            table, measured, decisions, config, trained_mpp, distance_limits or {}
        )
    evaluation = _evaluate(slides, patients, decisions, areas.areas(), config)
    evaluation["synthetic"] = synthetic
    return Aggregation(
        slides,
        patients,
        _poolings(patients, decisions, compared, config, date),
        decisions,
        evaluation,
        shipped.packaged,
        shipped.files,
        trained_mpp,
    )


def _trained_mpp(
    slides: pd.DataFrame, qualities: Mapping[str, SlideQuality]
) -> tuple[float, float] | None:
    """Least and largest resolution of level 0 of training slides; None: of some it is not known."""
    training = slides.loc[slides["role"] == "train", "slide_id"].unique()
    known = [mpp for slide_id in training for mpp in qualities[slide_id].mpp]
    return (min(known), max(known)) if len(known) == len(training) else None


def _decided(validation: pd.DataFrame, config: Config, date: str) -> Decisions:
    """What is fitted to validation patients, given as rows with ``label`` and ``score``."""
    return decide(
        (validation["label"] == config.data.positive).to_numpy(),
        validation["score"].to_numpy(),
        config.slide_level,
        seed=config.seed,
        date=date,
    )


def _poolings(
    patients: pd.DataFrame,
    decisions: Decisions,
    compared: list[dict[str, Any]],
    config: Config,
    date: str,
) -> pd.DataFrame:
    """Scores of patients by the pooling that ships and by others, each with its own threshold."""
    settings = config.slide_level
    own = patients[patients["network"] == ENSEMBLE]
    known = ["patient_id", "role", "label", "tiles", "score"]
    table = own[known].assign(pooling=settings.pooling, shipped=True)
    parts = [
        table.assign(probability=own["probability"], threshold=decisions.operating_point.threshold)
    ]
    others = pd.DataFrame(compared, columns=["pooling", *known])
    for kind in dict.fromkeys(others["pooling"]):
        part = others[others["pooling"] == kind].sort_values(["patient_id", "role"])
        decided = _decided(part[part["role"] == "validation"], config, date)
        parts.append(
            part.assign(
                shipped=False,
                probability=decided.calibration(part["score"].to_numpy()),
                threshold=decided.operating_point.threshold,
            )
        )
    columns = ["pooling", "shipped", *known, "probability", "threshold"]
    return pd.concat(parts, ignore_index=True)[columns].astype({"tiles": "int32"})


def _calls(
    table: pd.DataFrame,
    measured: pd.Series,
    decisions: Decisions,
    config: Config,
    trained_mpp: tuple[float, float] | None,
    distance_limits: Mapping[str, float],
) -> list[str | None]:
    classes, positive = config.data.classes, config.data.positive
    negative = " or ".join(name for name in classes if name != positive)
    calls: list[str | None] = []
    for row, quality in zip(table.itertuples(), measured, strict=True):
        if row.network != ENSEMBLE:
            calls.append(None)
            continue
        score = SlideScore(row.score, row.lower, row.upper, {}, row.disagreement, row.tiles)
        calls.append(
            make_call(
                score.calibrated(decisions.calibration),
                decisions.operating_point.threshold,
                config.infer,
                # What was predicted counts, of however many tiles there are now.
                replace(quality, used=row.tiles),
                negative=negative,
                positive=positive,
                conformal=decisions.conformal,
                trained_mpp=trained_mpp,
                distance_limits=distance_limits,
            ).call
        )
    return calls


def _evaluate(
    slides: pd.DataFrame,
    patients: pd.DataFrame,
    decisions: Decisions,
    tile_areas: Mapping[str, float | None],
    config: Config,
) -> dict[str, Any]:
    settings, point = config.slide_level, decisions.operating_point
    options: dict[str, Any] = {
        "resamples": settings.bootstrap_resamples,
        "confidence": settings.confidence,
    }
    positive = config.data.positive
    tested = patients[patients["role"] == "test"]
    ensemble = tested[tested["network"] == ENSEMBLE]
    truth = (ensemble["label"] == positive).to_numpy()
    probabilities = ensemble["probability"].to_numpy()
    at_point = bootstrap(
        scored_patients(truth, probabilities, where="test patients"),
        [sensitivity_at(point.threshold), specificity_at(point.threshold)],
        **options,
    )
    return {
        "schema_version": 1,
        "roles": {
            "train": "trained on",
            "validation": "chose the epoch, the calibration and the operating point",
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
        "calibration": {
            **decisions.calibration_record,
            "test": _calibration_on(truth, probabilities, settings.confidence),
        },
        "conformal": None
        if decisions.conformal is None
        else decisions.conformal.model_dump(mode="json"),
        "warnings": list(decisions.warnings),
        "at_operating_point": {name: found.to_json() for name, found in at_point.items()},
        "calls": {
            str(label): {str(k): int(v) for k, v in group["call"].value_counts().items()}
            for label, group in ensemble.groupby("label")
        },
        "networks": {
            network: {
                "tile_auroc": tile_areas[network],
                "slide_auroc": _auroc_of(_tested(slides, network), positive, options),
                "patient_auroc": _auroc_of(_tested(patients, network), positive, options),
            }
            for network in patients["network"].unique()
        },
    }


def _tested(table: pd.DataFrame, network: str) -> pd.DataFrame:
    return table[(table["role"] == "test") & (table["network"] == network)]


def _calibration_on(
    truth: np.ndarray, probabilities: np.ndarray, confidence: float
) -> dict[str, Any] | None:
    """Calibration on test patients; None where a class is absent or they are too few."""
    if truth.all() or not truth.any() or len(truth) < FEWEST_PATIENTS:
        return None
    return calibration_figures(truth, probabilities, confidence=confidence).to_json()


def _auroc_of(table: pd.DataFrame, positive: str, options: dict[str, Any]) -> dict[str, Any]:
    cohort = scored_patients(
        (table["label"] == positive).to_numpy(),
        table["score"].to_numpy(),
        table["patient_id"].to_numpy(),
        where="test patients",
    )
    return bootstrap(cohort, [AUROC], **options)[AUROC.name].to_json()
