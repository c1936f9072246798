"""Making the poolings of a configuration; what is learned is fitted to training patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medkd.config import SlideLevelConfig
from medkd.config.slide_level import HeadArchitecture, PoolingParameters, TilePooling
from medkd.progress import progress
from medkd.slide_level.embedding_file import EmbeddingFile
from medkd.slide_level.labelled import label_of
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.pooling_fit import fit_pooling
from medkd.slide_level.pooling_kinds import Pooling
from medkd.slide_level.prediction_file import PredictionFile
from medkd.slide_level.slide_head import LearnedPooling
from medkd.slide_level.slide_pooling import EmbeddingPooling, ProbabilityPooling, SlidePooling


def fit_slide_pooling(
    kind: str,
    predictions: Path,
    embeddings: Path,
    labels: Mapping[str, bool],
    students: Sequence[str],
    settings: SlideLevelConfig,
    *,
    seed: int,
) -> SlidePooling:
    """A pooling, ready for use.

    ``histogram_logistic`` is fitted to training patients; learned poolings too, and validation
    patients choose the epoch that is kept. No label of another patient is looked at.

    Args:
        kind: of the pooling.
        predictions: the file, as in docs/files.md.
        embeddings: the folder, as there; looked at by learned poolings only.
        labels: of each patient, True for the positive class.
        students: networks that ship.
        settings: parameters of the kinds.
        seed: of the training of a learned pooling.

    Raises:
        StageError: there are no embeddings, or too few patients.
        TrainingError: the training of a learned pooling went wrong.
    """
    if kind in get_args(HeadArchitecture):
        return _learned(kind, embeddings, labels, students, settings, seed)  # type: ignore[arg-type]
    pooling = _of_probabilities(
        kind,  # type: ignore[arg-type]
        predictions,
        labels,
        students,
        settings,
    )
    return ProbabilityPooling(
        pooling, tuple(students), settings.ensembling, settings.patient_pooling
    )


def _of_probabilities(
    kind: TilePooling,
    predictions: Path,
    labels: Mapping[str, bool],
    students: Sequence[str],
    settings: SlideLevelConfig,
) -> Pooling:
    known = settings.pooling_parameters
    if kind != "histogram_logistic":
        return fit_pooling(kind, **_parameters(kind, known))
    bags: list[np.ndarray] = []
    of_bags: list[bool] = []
    for slides in PredictionFile(predictions).patients():
        if slides[0].role != "train":
            continue
        of_students = np.concatenate(
            [
                slide.probabilities[[slide.networks.index(name) for name in students]]
                for slide in slides
            ],
            axis=1,
        )
        tiles_first = settings.ensembling == "tiles_first"
        rows = [of_students.mean(0)] if tiles_first else list(of_students)
        bags += rows
        of_bags += [label_of(labels, slides[0].patient_id, predictions)] * len(rows)
    return fit_pooling(
        kind,
        bags,
        of_bags,
        bins=known.histogram_bins,
        inverse_penalty=known.histogram_inverse_penalty,
    )


def _parameters(kind: TilePooling, known: PoolingParameters) -> dict[str, Any]:
    of_kinds: dict[str, dict[str, Any]] = {
        "positive_fraction": {"threshold": known.positive_from},
        "top_k": {"share": known.top_share, "min_tiles": known.top_min_tiles},
        "quantile": {"quantile": known.quantile},
        "noisy_or": {"most_tiles": known.noisy_or_tiles},
    }
    return of_kinds.get(kind, {})


def _learned(
    kind: HeadArchitecture,
    folder: Path,
    labels: Mapping[str, bool],
    students: Sequence[str],
    settings: SlideLevelConfig,
    seed: int,
) -> EmbeddingPooling:
    # Not on top: these bring torch, which the other poolings do without.
    from medkd.training.slide_head import train_slide_head
    from medkd.training.slide_head_export import export_slide_head

    embeddings = EmbeddingFile(folder, students)
    models = {}
    with progress(f"training {kind}", settings.head.epochs * len(students)) as advance:
        for student in students:
            training, validation = (
                _bags(embeddings, folder, student, role, labels, max_tiles, seed)
                for role, max_tiles in (("train", settings.head.max_tiles), ("validation", None))
            )
            trained = train_slide_head(
                training,
                validation,
                kind,
                settings.head,
                seed=seed,
                on_epoch=lambda epoch, name=student: advance(  # type: ignore[misc]
                    1, note=f"{name}, validation loss {epoch.validation:.3f}"
                ),
            )
            advance(settings.head.epochs - len(trained.epochs))
            models[student] = export_slide_head(trained.head)
    paths = {student: f"slide_head/{student}.onnx" for student in students}
    return EmbeddingPooling(
        LearnedPooling(kind=kind, onnx=paths),
        {paths[student]: model for student, model in models.items()},
        SlideHeads(kind, models),
        embeddings,
        settings.patient_pooling,
    )


def _bags(
    embeddings: EmbeddingFile,
    folder: Path,
    student: str,
    role: str,
    labels: Mapping[str, bool],
    max_tiles: int | None,
    seed: int,
) -> Any:
    from medkd.datasets.embedding_bags import EmbeddingBags

    own = embeddings.tiles[embeddings.tiles["role"] == role]
    of_patients = own.groupby("patient_id", sort=True).indices
    patients = list(of_patients)
    rows = own.index.to_numpy()
    counts = [len(of_patients[patient]) for patient in patients]
    return EmbeddingBags(
        embeddings.arrays[student],
        np.cumsum([0, *counts]),
        np.array([label_of(labels, patient, folder) for patient in patients], np.int64),
        bag_ids=patients,
        rows=np.concatenate([rows[of_patients[p]] for p in patients]) if patients else rows,
        max_tiles=max_tiles,
        seed=seed,
    )
