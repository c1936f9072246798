"""Commands that write, check and show a configuration file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_options import ConfigOption, SetOption, load_rows, load_settings

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
    """Check the configuration, slides.csv and the method, without running anything."""
    settings = load_settings(config, assignments)
    from medkd.distill.graph import expand
    from medkd.distill.method import load_method

    rows = load_rows(settings)
    graph = expand(load_method(settings.train.method), len(settings.train.students))
    patients = len({row.patient_id for row in rows})
    print(
        f"The configuration is sound: {len(rows)} slides of {patients} patients, method "
        f"{graph.method} with {len(graph.nodes)} networks."
    )
    missing = [row for row in rows if not row.path.exists()]
    for row in missing:
        print(f"{row.path}: no such file. Mend the path of slide {row.slide_id}.", file=sys.stderr)
    if missing:
        raise typer.Exit(1)


@config_app.command("show")
def config_show(config: ConfigOption = None, assignments: SetOption = None) -> None:
    """Print the configuration with every default filled in."""
    import yaml

    print(yaml.safe_dump(load_settings(config, assignments).resolved(), sort_keys=False), end="")
