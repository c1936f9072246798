"""The evaluate stage: report.html, report.json and tripod_ai.md of a finished run, and MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import medkd
from medkd.config import Config
from medkd.errors import StageError
from medkd.files import make_folder, write_json, write_text
from medkd.inference.package import ModelPackage, load_package
from medkd.slide_level.evaluation import cautions, evaluation_figures
from medkd.slide_level.evaluation_input import EvaluationInput, read_evaluation_input
from medkd.slide_level.evaluation_page import evaluation_page, p_value
from medkd.slide_level.scored_models import AGGREGATE_AGAIN
from medkd.slide_level.slide_head import in_words
from medkd.slide_level.statistics import Estimate
from medkd.slide_level.tripod import tripod_items, tripod_markdown
from medkd.tracking import TrackedRun, tracked_runs

SCHEMA_VERSION = 1
FOLDER = "evaluation"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class EvaluateResult:
    """What the terminal shows.

    Attributes:
        report: what ``report.json`` holds.
        model_rows: of each pooling and run: name, AUROC, sensitivity, specificity, difference of
            AUROC and its p-values by DeLong and by permutation, as text.
        lines: the rest.
    """

    report: dict[str, Any]
    model_rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]


def run_evaluate_stage(
    config: Config, *, against: Sequence[str] = (), out: Path | None = None
) -> EvaluateResult:
    """Evaluate a run on its test patients.

    Args:
        config: the experiment.
        against: other runs to compare with, by name or folder.
        out: where the three files go; ``<run>/evaluation`` by default.

    Raises:
        StageError: the run is not aggregated, what it was made from has changed, the test patients
            are too few, or another run was tested on others.
        ModelPackageError: the run's package was changed.
        TrackingError: MLflow does not answer.
        OutputError: the files cannot be written.
    """
    given = read_evaluation_input(config, against)
    package = load_package(config.model_folder)
    report = _report(given, package, config)
    items = tripod_items(report)
    folder = make_folder(out or config.run_folder / FOLDER)
    write_json(folder / "report.json", report)
    write_text(folder / "tripod_ai.md", tripod_markdown(report, items))
    write_text(folder / "report.html", evaluation_page(report, items))
    with tracked_runs(config) as runs:
        _log(report, folder, runs["parent"])
    return EvaluateResult(report, _model_rows(report), _lines(report, folder))


def _report(given: EvaluationInput, package: ModelPackage, config: Config) -> dict[str, Any]:
    manifest, settings = package.manifest, config.slide_level
    point = manifest.operating_point
    if point is None or abs(point.threshold - given.shipped.threshold) > _ROUNDING:
        raise StageError(
            f"has another operating point than the run's patients were called by "
            f"({given.shipped.threshold:g})",
            where=package.folder,
            remedy=AGGREGATE_AGAIN,
        )
    figures = evaluation_figures(given, config)
    origin = manifest.provenance
    return {
        "schema_version": SCHEMA_VERSION,
        "research_use_only": True,
        "evaluated": datetime.now(UTC).date().isoformat(),
        "software": f"medkd {medkd.__version__}",
        "synthetic": {
            "model": origin.trained_on_synthetic,
            "test_slides": given.synthetic_slides,
        },
        "run": {
            "name": config.run_name,
            "mlflow_run_id": origin.run_id,
            "fold": config.split.fold,
            "split_scheme": config.split.scheme,
            "allowed_leakage": list(config.data.allow_leakage),
        },
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "created": manifest.created,
            "sha256": package.sha256,
            "method": origin.method,
            "students": [
                {"name": s.name, "network": s.network, "parameters": s.parameters}
                for s in manifest.students
            ],
            "pooling": given.shipped.name,
            "score": f"a slide's score is {in_words(manifest.slide_head)}",
            "calibration": manifest.calibration.kind,
            "conformal_error": None
            if manifest.conformal is None
            else manifest.conformal.error_rate,
            "operating_point": point.model_dump(mode="json"),
            "gates": manifest.gates.model_dump(mode="json"),
            "tile": {
                **manifest.preprocessing.tile.model_dump(
                    mode="json",
                    include={
                        "mpp",
                        "size_px",
                        "min_tissue",
                        "max_pen",
                        "max_fold",
                        "max_white",
                        "min_focus",
                    },
                ),
                "imported": given.imported,
                "annotated": config.tile.annotations is not None,
                "stain": None
                if manifest.preprocessing.stain is None
                else manifest.preprocessing.stain.method,
            },
            "training": {
                "seed": origin.seed,
                "epochs": origin.epochs,
                "best_epoch": origin.best_epoch,
                "balance": config.train.balance,
                "class_weights": list(config.train.class_weights or ()),
                "data_digest": origin.data_digest,
                "software": origin.software,
                "torch": origin.torch,
            },
        },
        "classes": {
            "positive": config.data.positive,
            "negative": " or ".join(n for n in config.data.classes if n != config.data.positive),
        },
        "settings": {
            "confidence": settings.confidence,
            "bootstrap_resamples": settings.bootstrap_resamples,
            **config.evaluate.model_dump(mode="json"),
        },
        "warnings": cautions(figures, config, threshold_positives=point.positives),
        **figures,
    }


def _log(report: dict[str, Any], folder: Path, run: TrackedRun) -> None:
    run.log_metrics(_metrics(report), step=0)
    for path in sorted(folder.glob("*")):
        if path.name in ("report.html", "report.json", "tripod_ai.md"):
            run.log_file(path, FOLDER)


def _metrics(report: dict[str, Any]) -> dict[str, float]:
    """What the aggregate stage does not log already."""
    accuracy, calibration = report["accuracy"], report["calibration"]
    flow = report["flow"]
    estimates = {
        "auroc_delong": report["discrimination"]["auroc"]["delong"],
        "auprc": report["discrimination"]["auprc"],
        "calibration_slope": calibration["slope"],
        "calibration_intercept": calibration["intercept"],
        "rule_out_sensitivity": accuracy["rule_out"]["sensitivity"],
        "rule_out_share": accuracy["rule_out"]["ruled_out"],
        "likelihood_ratio_positive": accuracy["likelihood_ratios"]["positive"],
        "likelihood_ratio_negative": accuracy["likelihood_ratios"]["negative"],
    }
    for row in accuracy["predictive_values"]:
        for name in ("ppv", "npv"):
            estimates[f"{name}_at_prevalence_{row['prevalence']:g}"] = row[name]
    for row in report["decision_curves"]["ruled_out"]:
        estimates[f"ruled_out_at_sensitivity_{row['sensitivity']:g}"] = row["shares"][0]
    values = {
        f"test/{name}{end}": estimate.get(key)
        for name, estimate in estimates.items()
        for end, key in (("", "value"), ("_lower", "lower"), ("_upper", "upper"))
    }
    values["test/called_share"] = flow["called"] / flow["eligible"]["patients"]
    for kind in ("poolings", "against"):
        for model in report[kind][1:]:
            # A run may be named by its folder, and MLflow's names are not free.
            name = f"test/{kind}/{re.sub(r'[^A-Za-z0-9.-]+', '_', model['name']).strip('_')}"
            difference = model["difference"]
            values |= {
                f"{name}/auroc": model["auroc"]["delong"]["value"],
                f"{name}/auroc_difference": difference["delong"]["value"],
                f"{name}/delong_p": difference["delong_p"],
                f"{name}/permutation_p": difference["permutation_p"],
            }
    return {name: value for name, value in values.items() if value is not None}


def _model_rows(report: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for model in (*report["poolings"], *report["against"][1:]):
        difference = model["difference"]
        rows.append(
            (
                model["name"],
                str(Estimate(**model["auroc"]["delong"])),
                str(Estimate(**model["sensitivity"])),
                str(Estimate(**model["specificity"])),
                *(
                    ("ships", "", "")
                    if difference is None
                    else (
                        f"{difference['delong']['value']:+.3f}",
                        p_value(difference["delong_p"]) or "not available",
                        p_value(difference["permutation_p"]) or "not available",
                    )
                ),
            )
        )
    return tuple(rows)


def _lines(report: dict[str, Any], folder: Path) -> tuple[str, ...]:
    flow, accuracy = report["flow"], report["accuracy"]
    return (
        f"{flow['eligible']['patients']} test patients ({flow['eligible']['positives']} "
        f"{report['classes']['positive']}): {flow['scored']} scored, {flow['called']} called, "
        f"{flow['indeterminate']['patients']} indeterminate, {flow['no_result']['patients']} "
        "without result.",
        f"Sensitivity {Estimate(**accuracy['threshold']['sensitivity'])}, specificity "
        f"{Estimate(**accuracy['threshold']['specificity'])} at the operating point, exact "
        "intervals.",
        *report["warnings"],
        f"Report: {folder / 'report.html'}",
    )
