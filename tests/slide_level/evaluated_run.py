"""Run folders as 'medkd aggregate' leaves them, made by hand, for the evaluation.

The cohort of :data:`PATIENTS`: on test patients the shipped pooling, ``mean_probability``, puts
5 of 6 pairs in order and ``gated_attention`` all. Probabilities are the scores; the operating
points are 0.5 and 0.25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medkd.config import Config, load_config
from medkd.inference.package import write_package
from tests.slide_level.test_aggregate_stage import package_content, package_files, track

EXPERIMENT = """\
output: .
data: {slides: slides.csv}
train: {name: NAME}
slide_level: {bootstrap_resamples: 400}
evaluate: {permutations: 400, prevalences: [0.15], sensitivities: [0.5]}
infer: {min_tiles: 4, min_tissue_mm2: 0.5}
mlflow: {experiment: small, registered_model: small}
"""
OPERATING_POINT = {
    "threshold": 0.5,
    "target_sensitivity": 0.95,
    "sensitivity": 1.0,
    "sensitivity_interval": [0.16, 1.0],
    "specificity": 0.5,
    "specificity_interval": [0.01, 0.99],
    "cohort": "validation patients",
    "patients": 4,
    "positives": 2,
    "date": "2030-01-02",
    "method": "highest threshold with at least this sensitivity",
}


@dataclass(frozen=True)
class Row:
    """A patient with one slide, or one slide more where the patient came before.

    ``score`` None: no tile was had of the slide, for ``lost``, a reason as in tiles/report.csv.
    """

    patient: str
    role: str
    label: str
    score: float | None
    head: float | None = None
    call: str = ""
    lost: str = ""
    columns: tuple[tuple[str, str], ...] = ()


PATIENTS = (
    Row("v1", "validation", "MSI", 0.75, 0.75, "MSI suspected"),
    Row("v2", "validation", "MSI", 0.5, 0.5, "MSI suspected"),
    Row("v3", "validation", "MSS", 0.25, 0.125, "MSS"),
    Row("v4", "validation", "MSS", 0.625, 0.125, "MSI suspected"),
    Row("r1", "train", "MSI", 0.875, 0.875, "MSI suspected"),
    Row("r2", "train", "MSS", 0.125, 0.125, "MSS"),
    Row("t1", "test", "MSI", 0.875, 0.75, "MSI suspected"),
    Row("t2", "test", "MSI", 0.375, 0.5, "indeterminate"),
    Row("t3", "test", "MSS", 0.5625, 0.25, "MSI suspected"),
    Row("t4", "test", "MSS", 0.125, 0.125, "MSS"),
    Row("t5", "test", "MSS", 0.0625, 0.0625, "no result"),
    Row("t6", "test", "MSI", None, lost="missing_mpp"),
    Row("t7", "test", "MSS", None, lost="no tiles"),
    Row("t1", "test", "MSI", None, lost="cannot_be_opened"),
)


def aggregated_run(
    folder: Path,
    rows: Sequence[Row] = PATIENTS,
    *,
    name: str = "small",
    synthetic: bool = True,
    tracked: bool = False,
) -> Config:
    """What tile, split, train, predict and aggregate leave of these patients."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(EXPERIMENT.replace("NAME", name))
    config = load_config(path)
    _write_inputs(config, rows, synthetic)
    config.run_folder.mkdir(parents=True)
    scored = [row for row in rows if row.score is not None]
    _write_aggregation(config, scored)
    content = {**package_content(config), "operating_point": OPERATING_POINT}
    content["provenance"] = {**content["provenance"], "trained_on_synthetic": synthetic}
    write_package(config.model_folder, content, package_files())
    if tracked:
        track(config)
    return config


def changed(rows: Sequence[Row], **changes: Mapping[str, object]) -> tuple[Row, ...]:
    """Rows with a score, with fields replaced: ``changed(PATIENTS, t1={"score": 0.5})``."""
    return tuple(
        row if row.score is None else replace(row, **changes.get(row.patient, {})) for row in rows
    )


def write_slides(config: Config, rows: Sequence[Row]) -> None:
    """``slides.csv``."""
    table = []
    for number, row in enumerate(rows):
        slide = {"slide_id": _slide_id(rows, number), "patient_id": row.patient}
        table.append(
            {**slide, "path": f"{slide['slide_id']}.svs", "label": row.label, **dict(row.columns)}
        )
    pd.DataFrame(table).fillna("").to_csv(config.data.slides, index=False)


def _slide_id(rows: Sequence[Row], number: int) -> str:
    earlier = sum(row.patient == rows[number].patient for row in rows[:number])
    return f"{rows[number].patient}_s{earlier}"


def _write_inputs(config: Config, rows: Sequence[Row], synthetic: bool) -> None:
    write_slides(config, rows)
    split = pd.DataFrame([(row.patient, row.label, row.role) for row in rows])
    split.columns = ["patient_id", "label", "role"]
    split.drop_duplicates().to_parquet(config.splits_file, index=False)
    config.tiles_folder.mkdir(exist_ok=True)
    report = [
        {
            "slide_id": _slide_id(rows, number),
            "patient_id": row.patient,
            "status": "failed" if row.lost not in ("", "no tiles") else "ok",
            "reason": row.lost if row.lost != "no tiles" else "",
            "used": "" if row.lost not in ("", "no tiles") else 0 if row.lost else 4,
            "synthetic": synthetic,
        }
        for number, row in enumerate(rows)
    ]
    pd.DataFrame(report).to_csv(config.tiles_folder / "report.csv", index=False)


def _write_aggregation(config: Config, scored: Sequence[Row]) -> None:
    poolings = [
        {
            "pooling": pooling,
            "shipped": shipped,
            "patient_id": row.patient,
            "role": row.role,
            "label": row.label,
            "tiles": 4,
            "score": score,
            "probability": score,
            "threshold": threshold,
        }
        for pooling, shipped, threshold in (
            ("mean_probability", True, 0.5),
            ("gated_attention", False, 0.25),
        )
        for row in scored
        if (score := row.score if shipped else row.head) is not None
    ]
    pd.DataFrame(poolings).astype({"tiles": "int32"}).to_parquet(
        config.run_folder / "patient_poolings.parquet", index=False
    )
    calls = [
        {
            "patient_id": row.patient,
            "role": row.role,
            "label": row.label,
            "network": network,
            "score": row.score,
            "probability": row.score if network == "ensemble" else None,
            "call": row.call if network == "ensemble" else None,
        }
        for row in scored
        for network in ("student_0", "ensemble")
    ]
    pd.DataFrame(calls).to_parquet(config.run_folder / "patient_calls.parquet", index=False)
