"""Polyp detection by Independent, KD, ML and KD+ML (arXiv 2110.11023): same budget, several seeds.

    python pipelines/polyp_detection.py --images Kvasir-SEG --negatives frames-without-polyp \\
        --out polyp-study --config configs/polyp.yaml --markdown table.md

Imports the images, freezes their roles in a file that every run shares, trains each method with
each seed by the same configuration, evaluates each run on the test images, and compares. Seeds
give weights, order and augmentation. The epoch, the form of the ensemble and the score threshold
are chosen on validation images; test images are looked at once for each run.

What is finished is not done again: a run that was evaluated is read, one that was interrupted goes
on in mid-epoch. Everything of a run lies in OUT/runs/METHOD-seedN, and in MLflow. The last line
printed is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from comparison_figure import ap50_drawing
from comparison_tables import Run, against, paired, points, spread, table

from medkd.config import Config, load_config
from medkd.datasets.split import run_split_stage
from medkd.errors import MedkdError
from medkd.files import write_json, write_text
from medkd.importers.box_table import TABLE_NAME, BoxOptions, write_boxes
from medkd.importers.kvasir import find_kvasir
from medkd.tasks.detection_intervals import Comparison, compare_means
from medkd.tasks.detection_metrics import Matches, match
from medkd.training.box_evaluate_stage import REPORT, run_box_evaluation
from medkd.training.checkpoint import read_completion
from medkd.training.detections_file import FOLDER, NAME, check_weights, read_detections
from medkd.training.train_stage import run_train_stage
from medkd.yaml_file import read_yaml

METHODS = ("independent", "kd", "dml", "kd_ml")
TITLES = {"independent": "Independent", "kd": "KD", "dml": "ML", "kd_ml": "KD+ML"}
FIGURES = {
    "ap50": "AP50",
    "ap": "AP",
    "ap75": "AP75",
    "recall_at_1_fp": "recall at 1 FP per image",
    "sensitivity": "sensitivity per image",
    "mean_iou": "mean IoU",
}


def configured(arguments: argparse.Namespace, method: str, seed: int) -> Config:
    """The configuration of a run: the file's, with the study's data, method and seed."""
    out = arguments.out
    return load_config(
        arguments.config,
        (
            *arguments.set,
            f"output={json.dumps(str(out.absolute()))}",
            f"seed={seed}",
            f"train.method={method}",
            f"train.name={method}-seed{seed}",
            f"detection.boxes={json.dumps(str((out / 'boxes' / TABLE_NAME).absolute()))}",
        ),
    )


def prepare(arguments: argparse.Namespace) -> None:
    """Import the images and give them their roles, unless an earlier call did."""
    out: Path = arguments.out
    if not (out / "boxes" / TABLE_NAME).exists():
        found, problems = find_kvasir(arguments.images, arguments.negatives)
        write_boxes(found, problems, arguments.images, out / "boxes", ("polyp",), BoxOptions())
    config = configured(arguments, METHODS[0], arguments.split_seed)
    if not config.splits_file.exists():
        run_split_stage((), config)


def finished(config: Config) -> dict[str, Any] | None:
    """The evaluation of a run with these settings, whose networks are those that were evaluated."""
    report, settings = config.run_folder / FOLDER / REPORT, config.run_folder / "config.yaml"
    if not report.exists() or read_yaml(settings).content != config.resolved():
        return None
    check_weights(config.run_folder, read_detections(config.run_folder / FOLDER / NAME))
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate, or read what an earlier call did.

    A run of other settings is refused by the train stage.
    """
    report = finished(config)
    if report is None:
        run_train_stage(config, ())
        report = run_box_evaluation(config).report
    models = {model["name"]: model for model in report["models"]}
    value = {
        name: {key: model["figures"][key]["value"] for key in model["figures"]}
        for name, model in models.items()
    }
    completion = read_completion(config.run_folder)
    students = [name for name, model in models.items() if model["role"] == "student"]
    teachers = [name for name, model in models.items() if model["role"] == "teacher"]
    named = [*teachers, *students, report["shipped"]]
    return {
        "method": config.train.method,
        "seed": config.seed,
        "shipped": report["shipped"],
        "best_epoch": report["run"]["best_epoch"],
        "minutes": round(completion["seconds"] / 60, 1),
        "trained_by": completion.get("trained_by", []),
        "figures": value[report["shipped"]],
        "students": [value[name] for name in students],
        "teacher": value[teachers[0]] if teachers else None,
        "models": value,
        "intervals": {name: _interval(models[name]["figures"]["ap50"]) for name in named},
        "roles": {name: models[name]["role"] for name in named},
        "negatives": report["images"]["test"]["without_boxes"],
        "test_images": report["images"]["test"]["images"],
        "parameters": models[report["shipped"]]["parameters"],
    }


def matches_of(config: Config) -> Matches:
    """What a run's ensemble found in the test images, matched."""
    saved = read_detections(config.run_folder / FOLDER / NAME)
    return match(saved.images.found[saved.model], saved.images.truth, saved.classes)


def of_ensemble(key: str) -> Any:
    """A figure of what ships."""
    return lambda found: found["figures"][key]


def of_students(key: str) -> Any:
    """The mean of a figure over the students of a run."""
    return lambda found: float(np.mean([student[key] for student in found["students"]]))


def of_teacher(key: str) -> Any:
    """A figure of the teacher; None of a method without one."""
    return lambda found: found["teacher"][key] if found["teacher"] else None


def compared(
    matches: Mapping[str, Sequence[Matches]], runs: Mapping[str, Sequence[Run]], groups: np.ndarray
) -> list[dict[str, Any]]:
    """AP50 of the last method's ensemble against those of the others, and each against the first.

    Two answers each: over test images (seeds as they are; means over seeds, paired resamples of
    images) and over seeds (Student's t of the differences; wide with few seeds).
    """
    names = list(matches)
    pairs = [(names[-1], other) for other in names[:-1]]
    pairs += [(other, names[0]) for other in names[1:-1]]
    found = []
    for ours, theirs in pairs:
        over_images: Comparison = compare_means(matches[ours], matches[theirs], groups=groups)
        found.append(
            {
                "first": ours,
                "second": theirs,
                "over_images": asdict(over_images),
                "over_seeds": against(runs[ours], runs[theirs], of_ensemble("ap50")),
            }
        )
    return found


def report(runs: Mapping[str, Sequence[Run]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Tables in Markdown: ensembles, their members, every run, and differences of AP50."""
    ensembles = table(
        ("method", *FIGURES.values(), "false positives per frame without polyp", "minutes"),
        [
            (
                TITLES.get(method, method),
                *(spread(of, of_ensemble(key)) for key in FIGURES),
                _plain([r["figures"].get("fp_per_negative_image") for r in of]),
                _plain([r["minutes"] for r in of], digits=0),
            )
            for method, of in runs.items()
        ],
    )
    members = table(
        ("method", "teacher", "a student", "ensemble", "ensemble less a student"),
        [
            (
                TITLES.get(method, method),
                spread(of, of_teacher("ap50")),
                spread(of, of_students("ap50")),
                spread(of, of_ensemble("ap50")),
                points(
                    paired(
                        [of_ensemble("ap50")(r) for r in of], [of_students("ap50")(r) for r in of]
                    )
                ),
            )
            for method, of in runs.items()
        ],
    )
    every = table(
        ("run", "epoch", "teacher", "students", "ensemble", "its form"),
        [
            (
                f"{TITLES.get(method, method)}, seed {r['seed']}",
                str(r["best_epoch"]),
                _of_role(r, "teacher"),
                _of_role(r, "student"),
                _of_role(r, "ensemble"),
                r["shipped"].removeprefix("ensemble_"),
            )
            for method, of in runs.items()
            for r in of
        ],
    )
    differences = table(
        ("ensembles", "AP50, points, over test images", "p", "over seeds"),
        [
            (
                f"{TITLES.get(c['first'], c['first'])} less {TITLES.get(c['second'], c['second'])}",
                _over_images(c["over_images"]),
                "" if c["over_images"]["p_value"] is None else f"{c['over_images']['p_value']:.3f}",
                points(c["over_seeds"]),
            )
            for c in comparisons
        ],
    )
    return "\n\n".join([ensembles, members, every, differences, *_software(runs)]) + "\n"


def _software(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """A line where not all runs were trained by the same software."""
    known: dict[str, list[str]] = {}
    for method, of in runs.items():
        for found in of:
            by = ", then ".join(found["trained_by"]) or "software that nobody wrote down"
            known.setdefault(by, []).append(f"{method}-seed{found['seed']}")
    if len(known) == 1:
        return []
    told = "; ".join(f"{', '.join(names)} by {by}" for by, names in known.items())
    return [f"Not all runs were trained by the same software: {told}."]


def _interval(figure: Mapping[str, Any]) -> list[float | None]:
    return [figure[key] for key in ("value", "lower", "upper")]


def _of_role(found: Run, role: str) -> str:
    """AP50 of the networks of a role, each with its interval over test images, in percent."""
    cells = []
    for name, of in found["roles"].items():
        if of == role:
            value, *limits = found["intervals"][name]
            known = [f"{100 * limit:.1f}" for limit in limits if limit is not None]
            cells.append(f"{100 * value:.1f}" + (f" ({' to '.join(known)})" if known else ""))
    return "; ".join(cells)


def _plain(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known else ""


def _over_images(comparison: Mapping[str, Any]) -> str:
    difference = comparison["difference"]
    if difference["lower"] is None:
        return difference["reason"] if difference["value"] is None else "no difference"
    value, lower, upper = (100 * difference[key] for key in ("value", "lower", "upper"))
    return f"{value:+.1f} ({lower:+.1f} to {upper:+.1f})"


def study(arguments: argparse.Namespace) -> int:
    """Every run, the tables, and the JSON object."""
    prepare(arguments)
    runs: dict[str, list[Run]] = {method: [] for method in arguments.methods}
    matches: dict[str, list[Matches]] = {method: [] for method in arguments.methods}
    groups = np.array([])
    # Seed by seed, so that an early look compares whole rounds.
    for seed in arguments.seeds:
        for method in arguments.methods:
            config = configured(arguments, method, seed)
            found = run(config)
            runs[method].append(found)
            matches[method].append(matches_of(config))
            groups = read_detections(config.run_folder / FOLDER / NAME).images.sources
            print(
                f"{config.run_name}: AP50 {100 * found['figures']['ap50']:.1f}, "
                f"{found['minutes']} minutes",
                flush=True,
            )
    comparisons = compared(matches, runs, groups)
    text = report(runs, comparisons)
    print(f"\n{text}")
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)
    if arguments.figure is not None:
        write_text(arguments.figure, ap50_drawing(runs, TITLES))
    content = {"runs": runs, "comparisons": comparisons}
    write_json(arguments.out / "study.json", content)
    best = max(float(np.mean([r["figures"]["ap50"] for r in of])) for of in runs.values())
    print(json.dumps({"best_ensemble_ap50": round(best, 4), **content}))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of Kvasir-SEG")
    add("--negatives", type=Path, help="folder of frames without a polyp")
    add("--out", type=Path, required=True, help="folder of the study")
    add("--config", type=Path, required=True, help="what all runs have in common")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of it")
    add("--methods", nargs="+", default=METHODS, help="the last is held against the others")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2))
    add("--split-seed", type=int, default=0, help="of the roles")
    add("--markdown", type=Path, help="write the tables to this file, too")
    add("--figure", type=Path, help="draw AP50 of every run to this file, as SVG")
    try:
        return study(parser.parse_args(argv))
    except MedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
