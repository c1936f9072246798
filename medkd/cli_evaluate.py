"""``medkd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli_options import ConfigOption, SetOption, load_settings
from medkd.terminal import print_table

if TYPE_CHECKING:
    from medkd.config import Config


def evaluate(
    config: ConfigOption = None,
    assignments: SetOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Another run to compare with on the same test patients or images: its name in "
            "this output, or its folder. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; 'evaluation' in the run's folder."),
    ] = None,
) -> None:
    """Evaluate a run on its test patients or images: one page, one JSON; of slides, TRIPOD+AI."""
    settings = load_settings(config, assignments)
    of_task = {"classification": _slides, "detection": _boxes}[settings.task]
    for line in of_task(settings, tuple(against or ()), out):
        print(line)


def _slides(settings: Config, against: tuple[str, ...], out: Path | None) -> tuple[str, ...]:
    from medkd.slide_level.evaluate_stage import run_evaluate_stage

    print(f"Evaluating '{settings.run_name}' on its test patients")
    result = run_evaluate_stage(settings, against=against, out=out)
    print_table(
        "Test patients. Research use only.",
        ("model", "AUROC", "sensitivity", "specificity", "difference", "DeLong p", "permutation p"),
        result.model_rows,
    )
    return result.lines


def _boxes(settings: Config, against: tuple[str, ...], out: Path | None) -> tuple[str, ...]:
    from medkd.training.box_evaluate_stage import run_box_evaluation

    print(f"Evaluating '{settings.run_name}' on its test images")
    result = run_box_evaluation(settings, against=against, out=out)
    print_table(
        "Test images; FP: false positives per image. Research use only.",
        (
            "model",
            "AP50",
            "AP",
            "recall, 1 FP",
            "sensitivity",
            "FP, empty",
            "difference",
            "p",
        ),
        result.model_rows,
    )
    return result.lines
