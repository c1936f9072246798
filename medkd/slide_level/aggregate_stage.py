"""The aggregate stage: calls, evaluation, the frozen operating point, and all of it in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from medkd.config import Config
from medkd.datasets.split import check_split, read_split
from medkd.datasets.tables import SlideRow, read_slides
from medkd.errors import StageError
from medkd.files import atomic_path, write_bytes, write_json
from medkd.inference.package import freeze_decisions, load_package
from medkd.progress import progress, warn
from medkd.slide_level.aggregate import Aggregation, aggregate
from medkd.slide_level.plots import evaluation_plots
from medkd.slide_level.slide_quality import SlideQuality
from medkd.slide_level.statistics import Estimate
from medkd.slide_level.streaming import ENSEMBLE
from medkd.slides.imported_tiles import slide_records
from medkd.tracking import TrackedRun, store_errors, tracked_runs, tracking_uri


@dataclass(frozen=True)
class AggregateResult:
    """What the terminal shows.

    ``auroc_rows``: network, tile, slide and patient AUROC, as text.
    """

    aggregation: Aggregation
    auroc_rows: tuple[tuple[str, str, str, str], ...]
    lines: tuple[str, ...]


def run_aggregate_stage(config: Config) -> AggregateResult:
    """Aggregate the predictions of a run.

    Raises:
        StageError: predictions, tiles or split are missing, or do not belong together.
        ModelPackageError: the run's package was changed.
        TrackingError: MLflow does not answer.
    """
    folder = config.run_folder
    path = folder / "predictions.parquet"
    if not path.exists():
        raise StageError("no predictions yet", where=path, remedy="Run 'medkd predict' first.")
    rows = read_slides(config.data.slides, config.data.classes)
    split = read_split(config.splits_file, config.split.fold)
    check_split(split, rows, where=config.splits_file)
    package = load_package(config.model_folder, needs_operating_point=False)
    try:
        slide_ids = pc.unique(pq.read_table(path, columns=["slide_id"])["slide_id"]).to_pylist()
    except (OSError, ValueError) as error:
        # pyarrow's own errors are among both.
        raise StageError(
            f"cannot be read: {str(error)[:200]}", where=path, remedy="Run 'medkd predict' again."
        ) from error
    records = slide_records(config.tiles_folder, slide_ids, config.tile)
    with progress("pooling", len(slide_ids)) as advance:
        result = aggregate(
            path,
            {row.patient_id: row.label for row in rows},
            {slide_id: SlideQuality.of_record(record) for slide_id, record in records.items()},
            [student.name for student in package.manifest.students],
            config,
            embeddings=folder / "embeddings",
            date=datetime.now(UTC).date().isoformat(),
            synthetic=package.manifest.provenance.trained_on_synthetic,
            advance=advance,
        )
    for warning in (*result.decisions.warnings, *_without_predictions(rows, result)):
        warn(warning)
    _write(config, result)
    with tracked_runs(config) as runs:
        _log(config, result, runs)
    with store_errors(tracking_uri(config)):
        registered = _register(config, runs["parent"].run_id)
    return AggregateResult(result, _auroc_rows(result), _lines(config, result, registered))


def _without_predictions(rows: Sequence[SlideRow], result: Aggregation) -> tuple[str, ...]:
    """Slides that are listed and were not predicted: in no figure, which has to be said."""
    predicted = set(result.slides["slide_id"])
    lost = [row for row in rows if row.slide_id not in predicted]
    if not lost:
        return ()
    patients = {row.patient_id for row in lost} - set(result.patients["patient_id"])
    return (
        f"{len(lost)} of {len(rows)} slides have no predictions and are in no figure, "
        f"{len(patients)} patients have none at all (the first slide is {lost[0].slide_id}); "
        "tiles/report.csv says why slides were not tiled",
    )


def _write(config: Config, result: Aggregation) -> None:
    folder = config.run_folder
    for name, table in (
        ("slide_calls", result.slides),
        ("patient_calls", result.patients),
        ("patient_poolings", result.poolings),
    ):
        with atomic_path(folder / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    with atomic_path(folder / "slide_calls.csv") as path:
        result.slides.to_csv(path, index=False, float_format="%.6f")
    for name, png in evaluation_plots(result, config.data.positive).items():
        write_bytes(folder / "plots" / name, png)
    write_json(folder / "evaluation.json", result.evaluation)
    freeze_decisions(
        config.model_folder,
        slide_head=result.slide_head,
        head_files=result.head_files,
        trained_mpp=result.trained_mpp,
        calibration=result.decisions.calibration,
        operating_point=result.operating_point.to_json(),
        conformal=result.decisions.conformal,
        test_performance={**result.evaluation["test"], **result.evaluation["networks"][ENSEMBLE]},
    )


def _log(config: Config, result: Aggregation, runs: dict[str, TrackedRun]) -> None:
    folder = config.run_folder
    parent = runs["parent"]
    figures = _figures(result)
    parent.log_metrics({**figures[ENSEMBLE], **_at_operating_point(result)}, step=0)
    for network, values in figures.items():
        if network in runs:
            runs[network].log_metrics(values, step=0)
    for name in ("evaluation.json", "slide_calls.parquet", "slide_calls.csv"):
        parent.log_file(folder / name)
    for path in sorted((folder / "plots").glob("*.png")):
        parent.log_file(path, "plots")


def _register(config: Config, run_id: str) -> str:
    """Log the model package to the run, and return where the registry has it, if it does."""
    from medkd.inference.mlflow_model import log_package

    info = log_package(
        config.model_folder,
        run_id,
        config.mlflow.registered_model,
        tracking_uri=tracking_uri(config),
    )
    version = info.registered_model_version
    return "" if version is None else f"models:/{config.mlflow.registered_model}/{version}"


def _figures(result: Aggregation) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for network, known in result.evaluation["networks"].items():
        values = {
            "test/tile_auroc": known["tile_auroc"],
            "test/slide_auroc": known["slide_auroc"]["value"],
            "test/patient_auroc": known["patient_auroc"]["value"],
            "test/patient_auroc_lower": known["patient_auroc"]["lower"],
            "test/patient_auroc_upper": known["patient_auroc"]["upper"],
        }
        figures[network] = {key: value for key, value in values.items() if value is not None}
    return figures


def _at_operating_point(result: Aggregation) -> dict[str, float]:
    known: dict[str, Any] = result.evaluation["at_operating_point"]
    values = {
        "operating_point/threshold": result.operating_point.threshold,
        "test/sensitivity": known["sensitivity"]["value"],
        "test/specificity": known["specificity"]["value"],
    }
    calibration = result.evaluation["calibration"]["test"]
    if calibration is not None:
        values |= {
            "test/brier_score": calibration["brier_score"]["value"],
            "test/log_loss": calibration["log_loss"]["value"],
            "test/expected_calibration_error": calibration["ece_equal_count"],
        }
    return {key: value for key, value in values.items() if value is not None}


def _auroc_rows(result: Aggregation) -> tuple[tuple[str, str, str, str], ...]:
    rows = []
    for network, known in result.evaluation["networks"].items():
        tile = known["tile_auroc"]
        rows.append(
            (
                network,
                "" if tile is None else f"{tile:.3f}",
                str(Estimate(known["slide_auroc"]["value"])),
                str(Estimate(**known["patient_auroc"])),
            )
        )
    return tuple(rows)


def _lines(config: Config, result: Aggregation, registered: str) -> tuple[str, ...]:
    point, known = result.operating_point, result.evaluation["at_operating_point"]
    test = result.evaluation["test"]
    return (
        f"Calibration: {result.decisions.calibration.kind}. Operating point "
        f"{point.threshold:.4f} ({point.rule}), frozen: sensitivity {point.sensitivity:.2f}, "
        f"specificity {point.specificity:.2f} on {point.patients} validation patients.",
        f"On {test['patients']} test patients ({test['positives']} {config.data.positive}): "
        f"sensitivity {Estimate(**known['sensitivity'])}, specificity "
        f"{Estimate(**known['specificity'])}.",
        f"Model package: {config.model_folder}"
        + (f"; in MLflow's registry as {registered}" if registered else ""),
        f"Figures and tables: {config.run_folder}",
    )
