"""``medkd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_options import ConfigOption, SetOption, load_settings
from medkd.terminal import print_table


def evaluate(
    config: ConfigOption = None,
    assignments: SetOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Another run to compare with on the same test patients: its name in this output, "
            "or its folder. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; 'evaluation' in the run's folder."),
    ] = None,
) -> None:
    """Evaluate a run on its test patients: one page, one JSON, a TRIPOD+AI checklist."""
    settings = load_settings(config, assignments)
    from medkd.slide_level.evaluate_stage import run_evaluate_stage

    print(f"Evaluating '{settings.run_name}' on its test patients")
    result = run_evaluate_stage(settings, against=tuple(against or ()), out=out)
    print_table(
        "Test patients. Research use only.",
        ("model", "AUROC", "sensitivity", "specificity", "difference", "DeLong p", "permutation p"),
        result.model_rows,
    )
    for line in result.lines:
        print(line)
