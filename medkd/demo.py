"""The whole pipeline on slides that are drawn, not scanned: what 'medkd demo' runs."""

from __future__ import annotations

import csv
import random
import sys
import time
from importlib import resources
from pathlib import Path

from medkd.config import Config, load_config
from medkd.errors import StageError, TooFewPatientsError
from medkd.files import atomic_path, make_folder, write_text
from medkd.progress import format_seconds, progress, warn
from medkd.slides.synthetic import SlideSpec, write_cohort, write_slide

_SLIDE_PX = 2560
_SLIDE_MPP = 0.5
# Far from any seed of the cohort: the networks have never seen this patient.
_NEW_SLIDE_SEED = 4_000_000_003


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    patients: int = 40,
    shuffle_labels: bool = False,
    assignments: tuple[str, ...] = (),
) -> dict[str, float]:
    """Draw slides, run every stage, infer one new slide, and print what came out.

    Interrupted and started again, it goes on where it stopped.

    Args:
        out: folder for everything.
        seed: of the slides, the split and the training.
        patients: how many synthetic patients.
        shuffle_labels: give the patients each other's labels; nothing can then be learnt.
        assignments: ``key.path=value`` over the demo's configuration.

    Returns:
        Slide AUROC on test patients by network.

    Raises:
        StageError: a slide could not be tiled or inferred.
    """
    began = time.monotonic()
    out = make_folder(out)
    path = out / "medkd.yaml"
    text = (resources.files("medkd") / "demo.yaml").read_text(encoding="utf-8")
    write_text(path, text.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    config = load_config(path, assignments)
    print(f"medkd demo: {patients} synthetic patients, seed {seed}, to {out}", flush=True)

    _step(1, "Draw synthetic slides")
    _draw(config, patients, seed, shuffle_labels)
    from medkd.datasets.tables import read_slides

    rows = read_slides(config.data.slides, config.data.classes)
    _step(2, "Tile them, and split the patients")
    from medkd.datasets.split import run_split_stage
    from medkd.slides.tile_stage import run_tile_stage

    tiled = run_tile_stage(rows, config.tile, config.tiles_folder)
    if tiled.failed:
        slide_id, _, message = tiled.failed[0]
        raise StageError(
            f"slide {slide_id} could not be tiled: {message}",
            where=config.tiles_folder,
            remedy="Remove the demo's folder and start again.",
        )
    run_split_stage(rows, config)
    _step(3, "Co-train a teacher and two students (KD+ML)")
    from medkd.training.predict_stage import run_predict_stage
    from medkd.training.train_stage import run_train_stage

    trained = run_train_stage(config, rows)
    _step(4, "Predict every tile, and keep the students' embeddings")
    run_predict_stage(config, rows, embeddings=True)
    _step(5, "Aggregate to slides and patients, freeze the operating point, register the model")
    from medkd.slide_level.aggregate_stage import run_aggregate_stage

    aggregated = run_aggregate_stage(config)
    _step(6, "Evaluate on the test patients, and compare two poolings of tiles")
    pooled = _compare_poolings(config)
    _step(7, "Infer one new slide")
    from medkd.inference.infer_stage import infer_slides
    from medkd.inference.package import load_package

    new = _new_slide(config, seed)
    summary = infer_slides([new], load_package(config.model_folder), config.output / "results")
    if summary.failed:
        raise StageError(summary.failed[0], where=new, remedy="Remove the demo's folder.")

    networks = aggregated.aggregation.evaluation["networks"]
    _print_table(networks, trained.parameters)
    for line in (*aggregated.lines[:2], *pooled):
        print(line)
    row = summary.rows[0]
    called = row.call if row.probability is None else f"{row.call} ({row.probability:.2f})"
    print(f"New slide, drawn as MSI: {called}")
    print()
    _print_places(config, path, row.slide_id)
    print(
        f"Took {format_seconds(time.monotonic() - began)}, at most {_peak_gb():.1f} GB of memory."
    )
    if shuffle_labels:
        print("The labels were shuffled: an AUROC far from 0.5 is chance or a leak.")
    print("Synthetic slides: no figure here says anything about real tissue. Research use only.")
    return {name: known["slide_auroc"]["value"] for name, known in networks.items()}


def _new_slide(config: Config, seed: int) -> Path:
    path = config.output / "new-slide.svs"
    spec = SlideSpec(
        label="MSI",
        seed=_NEW_SLIDE_SEED + seed,
        width_px=_SLIDE_PX,
        height_px=_SLIDE_PX,
        mpp=_SLIDE_MPP,
        site="A",
        severity=0.7,
        with_label_and_macro=True,
    )
    write_slide(spec, path)
    return path


def _print_places(config: Config, path: Path, slide_id: str) -> None:
    print(f"Report of the new slide  {config.output / 'results' / slide_id / 'report.html'}")
    page = config.run_folder / "evaluation" / "report.html"
    if page.exists():
        print(f"Evaluation               {page}")
    print(f"Tiling report            {config.tiles_folder / 'report.html'}")
    print(f"Model package            {config.model_folder}")
    print(f"MLflow                   medkd ui --config {path}")


def _compare_poolings(config: Config) -> tuple[str, ...]:
    """Evaluate, and tell how the learned pooling compares with the mean."""
    from medkd.slide_level.evaluate_stage import run_evaluate_stage

    try:
        found = run_evaluate_stage(config)
    except TooFewPatientsError as error:
        warn(f"There is no evaluation: {error.what}.")
        return ()
    return tuple(
        f"Pooling by {name}: patient AUROC {area}, {difference} to the mean that ships (p {p} by "
        "permutation)."
        for name, area, _, _, difference, _, p in found.model_rows[1:]
    )


def _step(number: int, title: str) -> None:
    print(f"\n{number}/7 {title}", flush=True)


def _draw(config: Config, patients: int, seed: int, shuffle_labels: bool) -> None:
    with progress("drawing", patients) as advance:
        last = 0

        def on_progress(done: int, total: int) -> None:
            nonlocal last
            # Slides outnumber patients; the bar was laid out before they were counted.
            now = patients * done // total
            advance(now - last, note=f"{done} of {total} slides")
            last = now

        table = write_cohort(
            config.data.slides.parent,
            patients=patients,
            seed=seed,
            width_px=_SLIDE_PX,
            height_px=_SLIDE_PX,
            mpp=_SLIDE_MPP,
            workers=config.tile.workers,
            on_progress=on_progress,
        )
    if shuffle_labels:
        _shuffle_labels(table, seed)


def _shuffle_labels(table: Path, seed: int) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    label_of = {row["patient_id"]: row["label"] for row in rows}
    labels = list(label_of.values())
    random.Random(seed).shuffle(labels)
    shuffled = dict(zip(label_of, labels, strict=True))
    with atomic_path(table) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "label": shuffled[row["patient_id"]]} for row in rows)


def _print_table(networks: dict[str, dict], parameters: dict[str, int]) -> None:
    from rich.console import Console
    from rich.table import Table

    from medkd.slide_level.statistics import Estimate

    table = Table(title="\nTest patients", title_justify="left", title_style="bold")
    for name in ("network", "parameters", "tile AUROC", "slide AUROC"):
        table.add_column(name, justify="left" if name == "network" else "right")
    students = [name for name in networks if name.startswith("student")]
    for name in ("teacher", *students, "ensemble"):
        count = sum(parameters[s] for s in students) if name == "ensemble" else parameters[name]
        known = networks[name]
        slide = known["slide_auroc"]
        table.add_row(
            name,
            f"{count:,}",
            f"{known['tile_auroc']:.3f}",
            str(Estimate(**slide)),
            end_section=name == students[-1],
        )
    console = Console() if sys.stdout.isatty() else Console(width=100)
    console.print(table)


def _peak_gb() -> float:
    """The largest this process and any one of its children became, together."""
    import resource

    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(peaks) * unit / 1e9
