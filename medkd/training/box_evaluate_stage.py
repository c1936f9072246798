"""The evaluate stage of a detector: evaluation.json, evaluation.html, the boxes, and MLflow."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import medkd
from medkd.config import Config
from medkd.files import make_folder, write_bytes, write_json, write_text
from medkd.inference.detector_package import DetectorPackage, load_detector_package
from medkd.slide_level.evaluation_page import p_value
from medkd.slide_level.statistics import Estimate
from medkd.tracking import TrackedRun, tracked_runs
from medkd.training.box_comparison import against_record, check_same_images, other_run
from medkd.training.box_evaluation import (
    Evaluated,
    Resampling,
    compared_pairs,
    comparison_record,
    evaluated,
    model_record,
    shipped_model,
)
from medkd.training.box_evaluation_page import box_evaluation_page
from medkd.training.box_examples import above, as_image_file, choose_examples, draw_example
from medkd.training.box_predictions import (
    BOXES,
    DENSE,
    FinishedRun,
    FoundBoxes,
    images_of,
    load_finished_run,
    predict_boxes,
)
from medkd.training.detections_file import FOLDER, NAME, SavedDetections, write_detections

SCHEMA_VERSION = 1
REPORT, PAGE, EXAMPLES = "evaluation.json", "evaluation.html", "examples"


@dataclass(frozen=True)
class BoxEvaluateResult:
    """What the terminal shows.

    Attributes:
        report: what ``evaluation.json`` holds.
        model_rows: of each model: name, AP50, AP, recall at one false positive an image,
            sensitivity, false positives per image without a box, and what AP50 of the ensemble is
            more than its own, with p, as text.
        lines: the rest.
    """

    report: dict[str, Any]
    model_rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]


def run_box_evaluation(
    config: Config, *, against: Sequence[str] = (), out: Path | None = None
) -> BoxEvaluateResult:
    """Evaluate the networks of a finished run, and their ensemble, on its test images.

    Args:
        config: the experiment.
        against: other evaluated runs to compare with, by name or folder.
        out: where the files go; ``<run>/evaluation`` by default.

    Raises:
        StageError: the run is not finished, what it was made from has changed, or another run was
            not evaluated, or on other images.
        TrainingError: weights are missing, or an image cannot be read.
        ModelPackageError: the run's package is missing, or was changed.
        TrackingError: MLflow does not answer.
        OutputError: the files cannot be written.
    """
    others = [other_run(name, config) for name in dict.fromkeys(against)]
    run = load_finished_run(config)
    package = load_detector_package(config.model_folder)
    for name, other in others:
        check_same_images(name, other, images_of(run.data, "test"), config.detection.classes)
    with tracked_runs(config) as runs:
        report, folder = _evaluate(config, run, package, others, out, runs["parent"])
        _log(report, folder, runs["parent"])
    return BoxEvaluateResult(report, _model_rows(report), _lines(report, folder))


def _evaluate(
    config: Config,
    run: FinishedRun,
    package: DetectorPackage,
    others: Sequence[tuple[str, SavedDetections]],
    out: Path | None,
    tracked: TrackedRun,
) -> tuple[dict[str, Any], Path]:
    """The report, and the folder that all files were written to."""
    found = predict_boxes(config, run)
    test, classes = found["test"], config.detection.classes
    # The threshold of what ships was frozen when it was packed.
    shipped = shipped_model(package.manifest.ensemble.kind, run.deployed)
    frozen = {shipped: package.manifest.threshold}
    models = {
        name: evaluated(name, found["validation"], test, classes, threshold=frozen.get(name))
        for name in _in_order(test.found, shipped, run)
    }
    report = {
        **_about(config, run, package, found, tracked.run_id),
        **_figures(config, run, models, shipped, found, others),
    }
    folder = make_folder(out or config.run_folder / FOLDER)
    report["examples"], pictures = _write_examples(folder, models[shipped], test, classes)
    report["warnings"] = _warnings(config, report)
    threshold = models[shipped].threshold
    saved = SavedDetections(config.run_name, shipped, threshold, classes, run.weights, test)
    write_detections(folder / NAME, saved)
    write_json(folder / REPORT, report)
    write_text(folder / PAGE, box_evaluation_page(report, pictures))
    return report, folder


def _in_order(found: Mapping[str, Any], shipped: str, run: FinishedRun) -> list[str]:
    """What ships, the other form of the ensemble, students, teachers, and the rest."""
    ranks = {DENSE: 1, BOXES: 1}
    roles = {node.name: {"student": 2, "teacher": 3}.get(node.role, 4) for node in run.graph.nodes}
    return sorted(found, key=lambda name: 0 if name == shipped else (ranks | roles)[name])


def _about(
    config: Config,
    run: FinishedRun,
    package: DetectorPackage,
    found: Mapping[str, FoundBoxes],
    mlflow_run_id: str,
) -> dict[str, Any]:
    settings, manifest = config.detection, package.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "research_use_only": True,
        "evaluated": datetime.now(UTC).date().isoformat(),
        "software": f"medkd {medkd.__version__}",
        "synthetic": run.data.synthetic,
        "run": {
            "name": config.run_name,
            "mlflow_run_id": mlflow_run_id,
            "method": run.completion["method"],
            "seed": config.seed,
            "epochs": run.completion["epochs"],
            "best_epoch": run.completion["best_epoch"],
            "fold": config.split.fold,
            "split_scheme": config.split.scheme,
            "allowed_leakage": list(config.data.allow_leakage),
            "data_digest": run.data.digest,
            "weights": dict(run.weights),
        },
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "created": manifest.created,
            "sha256": package.sha256,
            "ensemble": manifest.ensemble.model_dump(mode="json"),
            "threshold": manifest.threshold,
        },
        "classes": list(settings.classes),
        "settings": {
            "confidence": config.slide_level.confidence,
            "bootstrap_resamples": config.slide_level.bootstrap_resamples,
            "min_images": config.evaluate.min_patients,
            **settings.model_dump(mode="json", exclude={"boxes", "classes"}),
        },
        "images": {role: _counts(images) for role, images in found.items()},
        "shipped": shipped_model(manifest.ensemble.kind, run.deployed),
        "deployed": list(run.deployed),
    }


def _counts(images: FoundBoxes) -> dict[str, int]:
    boxes = (images.truth[..., 0] >= 0).sum(axis=1)
    return {
        "images": len(images.images),
        "without_boxes": int((boxes == 0).sum()),
        "boxes": int(boxes.sum()),
        "sources": len(np.unique(images.sources)),
        "sources_known": bool((images.sources != np.array(images.images)).any()),
    }


def _figures(
    config: Config,
    run: FinishedRun,
    models: Mapping[str, Evaluated],
    shipped: str,
    found: Mapping[str, FoundBoxes],
    others: Sequence[tuple[str, SavedDetections]],
) -> dict[str, Any]:
    test, classes = found["test"], config.detection.classes
    how = Resampling(
        config.slide_level.bootstrap_resamples, config.slide_level.confidence, config.seed
    )
    roles = {node.name: node.role for node in run.graph.nodes}
    forms = [name for name in (DENSE, BOXES) if name in models]
    return {
        "models": [
            {
                "name": name,
                **_made_of(name, run),
                **model_record(model, found["validation"], test, classes, how),
            }
            for name, model in models.items()
        ],
        "comparisons": [
            comparison_record(models[first], models[second], test.sources, how)
            for first, second in compared_pairs(shipped, roles, forms)
        ],
        "against": [
            against_record(name, saved, models[shipped], test, classes, how)
            for name, saved in others
        ],
    }


def _made_of(name: str, run: FinishedRun) -> dict[str, Any]:
    networks = run.completion["networks"]
    if name not in (DENSE, BOXES):
        one = networks[name]
        told = {key: one[key] for key in ("role", "network", "parameters", "deployed")}
        return {**told, "width": one.get("width")}
    how = "mean at each anchor" if name == DENSE else "weighted box fusion"
    return {
        "role": "ensemble",
        "network": f"{how} of {', '.join(run.deployed)}",
        "parameters": sum(networks[member]["parameters"] for member in run.deployed),
        "deployed": True,
        "width": None,
    }


def _write_examples(
    folder: Path, shipped: Evaluated, test: FoundBoxes, classes: Sequence[str]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """What is told of each drawn example, and the pictures, JPEG; writes ``examples/*.png``."""
    told: list[dict[str, Any]] = []
    drawn = []
    for example in choose_examples(shipped, test):
        found = above(test.found[shipped.name][example.image], shipped.threshold)
        drawn.append(draw_example(test, example.image, found, classes))
        number = 1 + sum(one["kind"] == example.kind for one in told)
        told.append(
            {
                "kind": example.kind,
                "image": test.images[example.image],
                "why": example.why,
                "file": f"{EXAMPLES}/{example.kind}_{number}.png",
            }
        )
    # An earlier evaluation may have had others, which would lie among these.
    shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
    for one, picture in zip(told, drawn, strict=True):
        write_bytes(folder / one["file"], as_image_file(picture, "PNG"))
    return told, [as_image_file(picture, "JPEG") for picture in drawn]


def _warnings(config: Config, report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any figure."""
    counts, fewest = report["images"]["test"], config.evaluate.min_patients
    with_boxes = counts["images"] - counts["without_boxes"]
    told = [
        f"Only {number} test images {kind}: fewer than {fewest} say little, whatever the figure."
        for number, kind in ((with_boxes, "have a box"), (counts["without_boxes"], "have none"))
        if 0 < number < fewest
    ]
    lacking = {
        estimate["reason"]
        for model in report["models"]
        for estimate in model["figures"].values()
        if estimate["value"] is None
    }
    told += [f"Figures are lacking: {reason}." for reason in sorted(lacking)]
    told += [
        f"{model['name']} finds no box in the validation images that is right: its threshold is 1."
        for model in report["models"]
        if model["threshold"] == 1.0 and not model["validation"]["sensitivity"]
    ]
    if not counts["sources_known"]:
        told.append(
            "Nobody knows which test images are of one patient: each counts by itself, and "
            "intervals are too narrow where several are of one."
        )
    if config.data.allow_leakage:
        named = ", ".join(config.data.allow_leakage).replace("_", " ")
        told.append(f"The configuration allows leakage between roles: {named}.")
    pairs = len(report["comparisons"]) + len(report["against"])
    if pairs > 1:
        told.append(f"{pairs} pairs of models are compared; p-values are not corrected for that.")
    return told


def _log(report: dict[str, Any], folder: Path, run: TrackedRun) -> None:
    run.log_metrics(_metrics(report), step=0)
    for name in (PAGE, REPORT, NAME):
        run.log_file(folder / name, FOLDER)
    for example in report["examples"]:
        run.log_file(folder / example["file"], f"{FOLDER}/{EXAMPLES}")


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """MLflow's metrics; ``ensemble`` is what ships."""
    values = {}
    for model in report["models"]:
        names = [model["name"], *(["ensemble"] if model["name"] == report["shipped"] else [])]
        for name in names:
            values[f"test/threshold/{name}"] = model["threshold"]
            for figure, estimate in model["figures"].items():
                for key, end in (("value", ""), ("lower", "_lower"), ("upper", "_upper")):
                    values[f"test/{figure}{end}/{name}"] = estimate[key]
    pairs = [
        *((one["first"], one["second"], one) for one in report["comparisons"]),
        *((report["shipped"], one["run"], one["comparison"]) for one in report["against"]),
    ]
    for first, second, comparison in pairs:
        found = comparison["figures"]["ap50"]
        # A run may be named by its folder, and MLflow's names are not free.
        pair = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{first}_minus_{second}").strip("_")
        values[f"test/ap50_difference/{pair}"] = found["difference"]["value"]
        values[f"test/ap50_difference_p/{pair}"] = found["p_value"]
    return {name: value for name, value in values.items() if value is not None}


def _model_rows(report: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    compared = {
        one["second"]: one for one in report["comparisons"] if one["first"] == report["shipped"]
    }
    compared |= {one["run"]: one["comparison"] for one in report["against"]}
    rows = [(model["name"], model["figures"]) for model in report["models"]]
    rows += [(one["run"], one["figures"]) for one in report["against"]]
    return tuple(
        (name, *_cells(figures), *_difference(name, report, compared)) for name, figures in rows
    )


def _cells(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """AP50 with its interval, and others without: the page has all of them."""
    others = ("ap", "recall_at_1_fp", "sensitivity", "fp_per_negative_image")
    plain = [figures[name]["value"] for name in others]
    return [
        str(Estimate(**figures["ap50"])),
        *("not available" if value is None else f"{value:.3f}" for value in plain),
    ]


def _difference(
    name: str, report: Mapping[str, Any], compared: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str]:
    if name == report["shipped"]:
        return "ships", ""
    if name not in compared:
        return "", ""
    found = compared[name]["figures"]["ap50"]
    difference = found["difference"]["value"]
    if difference is None:
        return "not available", ""
    return f"{difference:+.3f}", p_value(found["p_value"])


def _lines(report: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    counts, shipped = report["images"]["test"], report["models"][0]
    at = shipped["at_threshold"]
    return (
        f"{counts['images']} test images, {counts['without_boxes']} without a box; of "
        f"{counts['boxes']} boxes {shipped['name']} finds {at['found']} and misses {at['missed']}, "
        f"with {at['false_alarms']} false alarms, at a score of {shipped['threshold']:.3f}, chosen "
        "on validation images.",
        *report["warnings"],
        f"Report: {folder / PAGE}",
    )
