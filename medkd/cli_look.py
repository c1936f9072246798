"""Commands that show data before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.errors import ConfigError, MedkdError, TrackingError
from medkd.progress import warn
from medkd.terminal import output_console, print_table

if TYPE_CHECKING:
    from medkd.config import Config
    from medkd.datasets.box_summary import BoxedSummary
    from medkd.datasets.summary import DatasetSummary, Group
    from medkd.datasets.tables import SlideRow
    from medkd.training.training_set import TrainingSet


def preview_training(
    config: Config, rows: Sequence[SlideRow], out: Path, shown: int, draws: int
) -> None:
    """Write a sheet of training tiles or images as stored and as augmented, and say where it is."""
    if out.suffix.lower() != ".png":
        raise ConfigError(
            "is no PNG", where=f"--out {out}", remedy="Name a file such as tiles.png."
        )
    from medkd.training.preview_stage import augmentation_words

    if config.task == "detection":
        from medkd.training.box_preview import write_box_preview

        what = "images"
        count = len(write_box_preview(config, out, images=shown, draws=draws).names)
    else:
        from medkd.training.preview_stage import write_preview

        what = "tiles"
        count = len(write_preview(config, rows, out, tiles=shown, draws=draws).tiles)
    if count < shown:
        print(f"There are only {count} training {what}.")
    print(f"train.augment: {augmentation_words(config.train.augment)}")
    print(f"Preview of {count} training {what}, {draws} draws each: {out}")


def summarise_dataset(config: Config, rows: Sequence[SlideRow], out: Path) -> None:
    """Print the dataset in figures, write its page, and give both to the training's MLflow run."""
    if config.task == "detection":
        _summarise_boxes(config, out)
        return
    from medkd.datasets.summary import summarise
    from medkd.datasets.summary_page import write_summary_page

    summary = summarise(config, rows)
    _print_groups(summary)
    _print_lacking(summary)
    if summary.synthetic:
        print(f"{summary.synthetic} of the slides are synthetic: drawn, not scanned.")
    data = None if summary.to_do else _trained_on(lambda: _tile_set(config, rows))
    digest = _print_digest("tiles, labels and roles", data)
    write_summary_page(out, summary, table=config.data.slides, digest=digest)
    _finish(config, data, out)


def _summarise_boxes(config: Config, out: Path) -> None:
    from medkd.datasets.box_summary import range_words, summarise_boxes, summary_tables
    from medkd.datasets.summary_page import write_box_summary_page
    from medkd.training.box_set import load_box_set

    summary = summarise_boxes(config)
    console = output_console()
    for table in summary_tables(summary):
        print_table(table.title, table.header, table.rows, console=console)
    print(
        f"Images are {range_words(summary.widths_px)} px wide and "
        f"{range_words(summary.heights_px)} px high, {summary.square}."
    )
    for line in summary.warnings:
        print(line)
    _print_lacking(summary)
    data = None if summary.to_do else _trained_on(lambda: load_box_set(config))
    digest = _print_digest("images, boxes and roles", data)
    write_box_summary_page(out, summary, table=config.detection.boxes, digest=digest)
    _finish(config, data, out)


def _print_lacking(summary: DatasetSummary | BoxedSummary) -> None:
    for line in summary.to_do:
        print(line)
    for gap in summary.gaps:
        print(f"missing: {gap}")


def _print_digest(of: str, data: TrainingSet | None) -> str:
    if data is None:
        return ""
    print(f"Digest of {of}: {data.digest}")
    return data.digest


def _finish(config: Config, data: TrainingSet | None, out: Path) -> None:
    if data is not None:
        _tell_mlflow(config, data, out)
    print(f"Page: {out}")


def _print_groups(summary: DatasetSummary) -> None:
    console = output_console()
    if summary.tiling:
        print(f"Tiles of {summary.tiling}.")
    for kind, groups in summary.groups.items():
        classes = () if kind == "class" else summary.classes
        every = (*groups, summary.total) if kind == "class" else groups
        print_table(
            f"By {kind}",
            (kind, "patients", *(f"{name} patients" for name in classes), "slides", "tiles"),
            (_cells(group, with_classes=bool(classes)) for group in every),
            console=console,
        )


def _cells(group: Group, *, with_classes: bool) -> tuple[str, ...]:
    figures = (
        group.patients,
        *(group.patients_of_class if with_classes else ()),
        group.slides,
        group.tiles,
    )
    return group.name, *("" if figure is None else f"{figure:,}" for figure in figures)


def _trained_on(load: Callable[[], TrainingSet]) -> TrainingSet | None:
    """What a training would take; a dataset that cannot be trained on yet has no digest."""
    try:
        return load()
    except MedkdError as error:
        print(f"No training could begin with this: {error}")
        return None


def _tile_set(config: Config, rows: Sequence[SlideRow]) -> TrainingSet:
    from medkd.training.data import load_tile_table
    from medkd.training.tile_set import TileSet

    # Its digest is not of the stain, which takes long to fit.
    return TileSet(config, rows, load_tile_table(config, rows))


def _tell_mlflow(config: Config, data: TrainingSet, page: Path) -> None:
    from medkd.training.dataset_tracking import log_summary_page

    try:
        run_id = log_summary_page(config, data, page)
    except TrackingError as error:
        warn(f"{error} The page is written all the same.")
        return
    if run_id is not None:
        print(f"MLflow: dataset and page are in the run {run_id} of '{config.run_name}'.")
