"""The aggregate stage: calls, evaluation, the frozen operating point, and all of it in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from medkd.slide_level.feature_file import FEATURE_FILE
from medkd.slide_level.out_of_distribution_fit import FittedChecks, fit_checks
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
    students = [student.name for student in package.manifest.students]
    date = datetime.now(UTC).date().isoformat()
    checks = fit_checks(
        folder / FEATURE_FILE,
        slide_ids,
        students,
        enabled=config.infer.out_of_distribution,
        share=config.infer.out_of_distribution_share,
        date=date,
    )
    qualities = {
        slide_id: replace(
            SlideQuality.of_record(record), distances=checks.distances.get(slide_id, {})
        )
        for slide_id, record in records.items()
    }
    with progress("pooling", len(slide_ids)) as advance:
        result = aggregate(
            path,
            {row.patient_id: row.label for row in rows},
            qualities,
            students,
            config,
            embeddings=folder / "embeddings",
            date=date,
            synthetic=package.manifest.provenance.trained_on_synthetic,
            distance_limits=checks.packaged.limits,
            advance=advance,
        )
    for warning in (
        *result.decisions.warnings,
        *_without_predictions(rows, result),
        *_not_compared(config, checks),
    ):
        warn(warning)
    result.evaluation["out_of_distribution"] = _out_of_distribution(result, checks)
    _write(config, result, checks)
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


def _not_compared(config: Config, checks: FittedChecks) -> tuple[str, ...]:
    """What slides will not be held against, though nobody turned that off."""
    if not config.infer.out_of_distribution:
        return ()
    return tuple(
        f"calls will not tell slides whose {whats} is out of distribution: {reason}"
        for reason, whats in checks.packaged.reasons.items()
    )


def _out_of_distribution(result: Aggregation, checks: FittedChecks) -> dict[str, Any]:
    """What is compared, and how many slides of each role lie beyond the limits."""
    limits = checks.packaged.limits
    roles = result.slides.drop_duplicates("slide_id").set_index("slide_id")["role"]
    beyond = {
        slide_id: any(distances[what] > limit for what, limit in limits.items())
        for slide_id, distances in checks.distances.items()
    }
    return {
        **checks.packaged.model_dump(mode="json", exclude={"file"}),
        "slides": {
            role: {"slides": len(own), "beyond": sum(beyond[slide_id] for slide_id in own)}
            for role, own in roles.groupby(roles).groups.items()
            if beyond
        },
    }


def _write(config: Config, result: Aggregation, checks: FittedChecks) -> None:
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
        out_of_distribution=checks.packaged,
        files={**result.head_files, **checks.files},
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


def _limit_lines(result: Aggregation) -> tuple[str, ...]:
    known = result.evaluation["out_of_distribution"]
    if not known["checks"]:
        return ()
    limits = ", ".join(
        f"{check['what']} {check['limit']['distance']:.2f} ({check['limit']['rule']})"
        for check in known["checks"]
    )
    limit, tested = known["checks"][0]["limit"], known["slides"]["test"]
    return (
        f"Out of distribution beyond a distance of: {limits}, set on {limit['patients']} "
        f"{limit['cohort']}. Of {tested['slides']} test slides {tested['beyond']} are.",
    )


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
        *_limit_lines(result),
        f"Model package: {config.model_folder}"
        + (f"; in MLflow's registry as {registered}" if registered else ""),
        f"Figures and tables: {config.run_folder}",
    )
