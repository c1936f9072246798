"""The command line. Heavy libraries are imported inside the commands, so that help is instant."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medkd import __version__
from medkd.cli_config import config_app
from medkd.cli_evaluate import evaluate
from medkd.cli_export import export
from medkd.cli_import import import_app
from medkd.cli_infer import infer
from medkd.cli_methods import methods_app, networks
from medkd.cli_options import ConfigOption, SetOption, load_rows, load_settings, refuse_boxes
from medkd.cli_recalibrate import recalibrate
from medkd.cli_recheck import recheck
from medkd.cli_watch import watch
from medkd.errors import MedkdError, Stopped
from medkd.progress import keep_silent
from medkd.terminal import print_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Slide-level calls from small student networks, co-trained with a teacher under "
    "knowledge distillation and mutual learning. Research use only.",
    epilog="Exit status: 0 all done, 1 some inputs failed (the rest are done), 2 the call or the "
    "configuration is wrong.",
)
app.add_typer(config_app, name="config")
app.add_typer(methods_app, name="methods")
app.add_typer(import_app, name="import")


class Resume(StrEnum):
    """What 'medkd train' does with an earlier run of the same name."""

    AUTO = "auto"
    REQUIRED = "required"
    NEVER = "never"


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        print(f"medkd {__version__}")
        raise typer.Exit
    if debug:
        os.environ["MEDKD_DEBUG"] = "1"


@app.command()
def tile(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Tile the slides of slides.csv into quality-checked patches at one physical resolution."""
    settings = load_settings(config, assignments)
    refuse_boxes(settings, "tile")
    from medkd.slides.tile_stage import run_tile_stage

    rows = load_rows(settings)
    print(
        f"Tiling {len(rows)} slides at {settings.tile.mpp:g} um/px, {settings.tile.size_px} px "
        f"({settings.tile.mpp * settings.tile.size_px:g} um) to {settings.tiles_folder}"
    )
    summary = run_tile_stage(rows, settings.tile, settings.tiles_folder)
    print(
        f"{summary.done} slides tiled, {summary.skipped_existing} were there already, "
        f"{len(summary.failed)} failed. Report: {summary.output / 'report.html'}"
    )
    for slide_id, why in summary.redone:
        print(f"made anew: {slide_id}: {why}")
    if summary.synthetic:
        print(f"{summary.synthetic} of the slides are synthetic: drawn, not scanned.")
    for slide_id, _, message in summary.failed:
        print(f"failed: {slide_id}: {message}", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def split(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Give every patient a role in each fold: train, validation or test, stratified by class."""
    settings = load_settings(config, assignments)
    from medkd.datasets.split import run_split_stage

    rows = load_rows(settings)
    summary = run_split_stage(rows, settings)
    several, by_site = len(summary.counts) > 1, any(summary.test_sites)
    classes = settings.data.classes
    if settings.task == "detection":
        classes = tuple(
            sorted({name for fold in summary.counts for of in fold.values() for name in of})
        )
    print_table(
        "Patients" if settings.task == "classification" else "Images, or patients where known",
        ("fold",) * several + ("role", *classes) + ("test sites",) * by_site,
        (
            (fold,) * several
            + (role, *(counts.get(name, 0) for name in classes))
            + (" ".join(summary.test_sites[fold]) if role == "test" else "",) * by_site
            for fold, of_fold in enumerate(summary.counts)
            for role, counts in of_fold.items()
        ),
    )
    if several:
        print(f"Folds: {len(summary.counts)}; --set split.fold=K names the one to train.")
    print(f"Split: {settings.splits_file}")


@app.command()
def train(
    config: ConfigOption = None,
    assignments: SetOption = None,
    resume: Annotated[
        Resume,
        typer.Option(
            help="'auto' goes on where a run of this name stopped, or begins; 'required' refuses "
            "to begin; 'never' forgets the earlier run."
        ),
    ] = Resume.AUTO,
    restart: Annotated[bool, typer.Option("--restart", help="The same as --resume never.")] = False,
) -> None:
    """Co-train teacher and students; an interrupted run goes on where it stopped."""
    settings = load_settings(config, assignments)
    rows = load_rows(settings)
    from medkd.training.devices import launched_by

    if settings.train.devices > 1 and launched_by() is None:
        from medkd.training.launch import run_on_devices

        run_on_devices(sys.argv[1:], settings.train.devices)
        return
    if os.environ.get("RANK", "0") != "0" and launched_by() is not None:
        # Of several processes, the first one speaks.
        keep_silent()
    from medkd.training.train_stage import run_train_stage

    print(
        f"Training '{settings.run_name}' with the method {settings.train.method}: "
        f"{settings.train.epochs} epochs, to {settings.run_folder}"
    )
    result = run_train_stage(
        settings,
        rows,
        restart=restart or resume is Resume.NEVER,
        needs_checkpoint=resume is Resume.REQUIRED,
    )
    if result.resumed_from is not None:
        epoch, step = result.resumed_from
        print(f"Resumed after epoch {epoch}" + (f" and step {step}." if step else "."))
    images, label, shown = {
        "classification": ("tiles", "log loss", {"log_loss": "log loss", "auroc": "AUROC"}),
        "detection": (
            "images",
            "AP50",
            {"ap50": "AP50", "ap": "AP", "recall_at_1_fp": "recall at 1 FP per image"},
        ),
    }[settings.task]
    print_table(
        f"Validation {images} at epoch {result.best_epoch}, the best by the ensemble's {label}",
        ("network", "parameters", *shown.values()),
        (
            (
                name,
                f"{result.parameters[name]:,}" if name in result.parameters else "",
                *(f"{values[metric]:.3f}" if metric in values else "" for metric in shown),
            )
            for name, values in result.best.items()
        ),
    )
    print(f"Networks and model package: {result.run_folder}")


@app.command()
def predict(
    config: ConfigOption = None,
    assignments: SetOption = None,
    students: Annotated[
        bool, typer.Option("--students", help="Those that ship alone; the teacher is left out.")
    ] = False,
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="Keep each tile's features, of those that ship, too."),
    ] = False,
) -> None:
    """Run the networks of a trained run over all tiles of the store.

    Slides that are done are kept: after an interruption it goes on with the others.
    """
    settings = load_settings(config, assignments)
    refuse_boxes(settings, "predict")
    rows = load_rows(settings)
    from medkd.training.predict_stage import run_predict_stage

    print(f"Predicting with the networks of '{settings.run_name}'")
    done = run_predict_stage(settings, rows, students_only=students, embeddings=embeddings)
    if done.slides_before:
        print(f"{done.slides_before} slides had been predicted before the interruption")
    print(f"{done.tiles:,} tiles, {len(done.networks)} networks. Predictions: {done.path}")
    if done.embeddings:
        print(f"Embeddings of {', '.join(done.embeddings)}: {done.path.parent / 'embeddings'}")


@app.command()
def aggregate(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Pool tiles to slide and patient calls, and freeze the operating point into the model."""
    settings = load_settings(config, assignments)
    refuse_boxes(settings, "aggregate")
    from medkd.slide_level.aggregate_stage import run_aggregate_stage

    result = run_aggregate_stage(settings)
    print_table(
        "Test patients",
        ("network", "tile AUROC", "slide AUROC", "patient AUROC (95% interval)"),
        result.auroc_rows,
    )
    for line in result.lines:
        print(line)


# Here, so that the help names them after aggregate.
app.command()(evaluate)
app.command()(infer)
app.command()(watch)
app.command()(recheck)
app.command()(recalibrate)
app.command()(export)


@app.command()
def summary(
    config: ConfigOption = None,
    assignments: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; summary.html in the output folder.")
    ] = None,
) -> None:
    """Count slides and tiles, or images and boxes, by class and role, and tell what is missing."""
    settings = load_settings(config, assignments)
    from medkd.cli_look import summarise_dataset

    summarise_dataset(settings, load_rows(settings), out or settings.output / "summary.html")


@app.command()
def preview(
    config: ConfigOption = None,
    assignments: SetOption = None,
    out: Annotated[Path, typer.Option("--out", help="The picture.")] = Path("preview.png"),
    tiles: Annotated[
        int, typer.Option("--tiles", help="Rows: tiles, or images with boxes.", min=1, max=50)
    ] = 6,
    draws: Annotated[
        int, typer.Option("--draws", help="Columns: augmentations of each.", min=1, max=20)
    ] = 5,
) -> None:
    """Show training tiles or images as they are stored, and as training will see them."""
    settings = load_settings(config, assignments)
    from medkd.cli_look import preview_training

    preview_training(settings, load_rows(settings), out, tiles, draws)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("medkd-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of slides, split and training.")] = 0,
    patients: Annotated[int, typer.Option("--patients", help="Synthetic patients.", min=12)] = 40,
    shuffle_labels: Annotated[
        bool,
        typer.Option("--shuffle-labels", help="Control: labels that mean nothing, AUROC near 0.5."),
    ] = False,
    assignments: SetOption = None,
) -> None:
    """Run the whole pipeline on synthetic slides, and infer one new slide."""
    from medkd.demo import run_demo

    run_demo(
        out,
        seed=seed,
        patients=patients,
        shuffle_labels=shuffle_labels,
        assignments=tuple(assignments or ()),
    )


@app.command()
def ui(
    config: ConfigOption = None,
    assignments: SetOption = None,
    port: Annotated[int, typer.Option("--port", help="On 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages on the project's store; end with Ctrl-C."""
    settings = load_settings(config, assignments)
    from medkd.errors import TrackingError
    from medkd.tracking import tracking_uri

    uri = tracking_uri(settings)
    if uri.startswith("http"):
        print(f"The store is a server: open {uri} in a browser.")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise TrackingError(
            "no MLflow store yet",
            where=uri,
            remedy="Train first, or name the experiment with --config or --set output=FOLDER.",
        )
    print(f"MLflow on http://127.0.0.1:{port}, store {uri}. Ctrl-C ends it.", flush=True)
    command = ["-m", "mlflow", "ui", "--backend-store-uri", uri]
    os.execv(sys.executable, [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)])


@app.command()
def doctor(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Check this machine: libraries, devices, disk, the MLflow store."""
    from medkd.doctor import examine

    findings = examine(load_settings(config, assignments))
    print_table(
        f"medkd {__version__}",
        ("what", "found", "verdict"),
        ((f.what, f.found, "[green]ok[/]" if f.ok else "[red]mend[/]") for f in findings),
    )
    for finding in findings:
        if not finding.ok:
            print(f"{finding.what}: {finding.remedy}", file=sys.stderr)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


# Here, so that the help names it last of the plain commands.
app.command()(networks)


def _stop(number: int, frame: object) -> None:  # noqa: ARG001
    raise Stopped(number)


def main() -> None:
    """Run the command line; an error that a user can mend is one line and an exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except MedkdError as error:
        if os.environ.get("MEDKD_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except Stopped as stopped:
        print("stopped; what was finished is kept.", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
