"""Commands that show data before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.errors import ConfigError, MedkdError, TrackingError
from medkd.progress import warn
from medkd.terminal import output_console, print_table

if TYPE_CHECKING:
    from medkd.config import Config
    from medkd.datasets.summary import DatasetSummary, Group
    from medkd.datasets.tables import SlideRow
    from medkd.training.data import TileTable


def preview_tiles(
    config: Config, rows: Sequence[SlideRow], out: Path, tiles: int, draws: int
) -> None:
    """Write a sheet of training tiles as stored and as augmented, and print where it lies."""
    if out.suffix.lower() != ".png":
        raise ConfigError(
            "is no PNG", where=f"--out {out}", remedy="Name a file such as tiles.png."
        )
    from medkd.training.preview_stage import augmentation_words, write_preview

    seen = write_preview(config, rows, out, tiles=tiles, draws=draws)
    if len(seen.tiles) < tiles:
        print(f"There are only {len(seen.tiles)} training tiles.")
    print(f"train.augment: {augmentation_words(config.train.augment)}")
    print(f"Preview of {len(seen.tiles)} training tiles, {draws} draws each: {out}")


def summarise_dataset(config: Config, rows: Sequence[SlideRow], out: Path) -> None:
    """Print the dataset in figures, write its page, and give both to the training's MLflow run."""
    from medkd.datasets.summary import summarise
    from medkd.datasets.summary_page import write_summary_page

    summary = summarise(config, rows)
    _print_groups(summary)
    for line in summary.to_do:
        print(line)
    for gap in summary.gaps:
        print(f"missing: {gap}")
    if summary.synthetic:
        print(f"{summary.synthetic} of the slides are synthetic: drawn, not scanned.")
    table = None if summary.to_do else _tile_table(config, rows)
    digest = "" if table is None else table.digest
    if digest:
        print(f"Digest of tiles, labels and roles: {digest}")
    write_summary_page(out, summary, table=config.data.slides, digest=digest)
    if table is not None:
        _tell_mlflow(config, table, out)
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


def _tile_table(config: Config, rows: Sequence[SlideRow]) -> TileTable | None:
    """What a training would take; a dataset that cannot be trained on yet has no digest."""
    from medkd.training.data import load_tile_table

    try:
        return load_tile_table(config, rows)
    except MedkdError as error:
        print(f"No training could begin with this: {error}")
        return None


def _tell_mlflow(config: Config, table: TileTable, page: Path) -> None:
    from medkd.training.dataset_tracking import log_summary_page

    try:
        run_id = log_summary_page(config, table, page)
    except TrackingError as error:
        warn(f"{error} The page is written all the same.")
        return
    if run_id is not None:
        print(f"MLflow: dataset and page are in the run {run_id} of '{config.run_name}'.")
