"""Commands that write, check and show a configuration file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli_options import ConfigOption, SetOption, load_rows, load_settings

if TYPE_CHECKING:
    from medkd.config import Config

config_app = typer.Typer(no_args_is_help=True, help="Write, check and show a configuration file.")


@config_app.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("medkd.yaml"),
) -> None:
    """Write a commented configuration file with every key at its default."""
    from medkd.config import config_template
    from medkd.errors import OutputError
    from medkd.files import write_text

    if path.exists():
        raise OutputError(
            "exists already", where=path, remedy="Name another file, or remove this one first."
        )
    write_text(path, config_template())
    print(f"Wrote {path}. Check it with: medkd config check --config {path}")


@config_app.command("check")
def config_check(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Check the configuration, slides.csv or boxes, and the method, without running anything."""
    settings = load_settings(config, assignments)
    from medkd.distill.graph import expand
    from medkd.distill.method import load_method

    graph = expand(load_method(settings.train.method), len(settings.train.students))
    found, missing = (_boxes if settings.task == "detection" else _slides)(settings)
    print(
        f"The configuration is sound: {found}, method {graph.method} with {len(graph.nodes)} "
        "networks."
    )
    for line in missing:
        print(line, file=sys.stderr)
    if missing:
        raise typer.Exit(1)


def _slides(settings: Config) -> tuple[str, list[str]]:
    """What there is to learn from, in words, and a line for each missing file."""
    rows = load_rows(settings)
    patients = len({row.patient_id for row in rows})
    return f"{len(rows)} slides of {patients} patients", [
        f"{row.path}: no such file. Mend the path of slide {row.slide_id}."
        for row in rows
        if not row.path.exists()
    ]


def _boxes(settings: Config) -> tuple[str, list[str]]:
    from medkd.importers.box_table import read_boxes

    table = read_boxes(settings.detection.boxes)
    paths = [table.root / name for name in table.images["image"]]
    boxes = sum(map(len, table.images["boxes"]))
    return f"{len(paths)} images with {boxes} boxes", [
        f"{path}: no such file. Import the data set again." for path in paths if not path.exists()
    ]


@config_app.command("show")
def config_show(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Print the configuration with every default filled in."""
    import yaml

    print(yaml.safe_dump(load_settings(config, assignments).resolved(), sort_keys=False), end="")
