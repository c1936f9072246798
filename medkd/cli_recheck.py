"""``medkd recheck``: whether a result is of this slide and model, and comes out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medkd.terminal import print_table


def recheck(
    report: Annotated[
        Path,
        typer.Argument(
            help="A slide's folder of results, or its report or result.json.", show_default=False
        ),
    ],
    *,
    model: Annotated[Path, typer.Option("--model", help="The model package (a folder).")],
    slide: Annotated[
        Path | None,
        typer.Option(
            "--slide",
            help="The slide's file; without it only the model is compared.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="The most that scores may differ by.", min=0)
    ] = 1e-4,
) -> None:
    """Verify that a result belongs to a slide, model and settings, and reproduces."""
    from medkd.inference.package import load_package
    from medkd.inference.recheck import Verdict, reproduces, result_folder
    from medkd.inference.recheck import recheck as compare

    folder = result_folder(report)
    checks = compare(folder, load_package(model), slide, tolerance=tolerance)
    print_table(
        f"{folder}, against {slide or 'the model alone'}",
        ("", "recorded", "now", "verdict"),
        ((check.what, check.recorded, check.now, check.verdict) for check in checks),
    )
    differing = [check.what for check in checks if check.verdict is Verdict.DIFFERS]
    if not reproduces(checks):
        print(f"Differs: {', '.join(differing)}.")
        raise typer.Exit(1)
    if slide is None:
        print("The result is of this model. Name the slide with --slide to check the rest.")
        return
    if any(check.verdict is Verdict.NOT_CHECKED for check in checks):
        print("It reproduces with this slide and model; which file it is of, it does not record.")
    else:
        print(f"The result is of this slide and model, and reproduces within {tolerance:g}.")
    if any(check.verdict is Verdict.OTHER_VERSION for check in checks):
        print("Other versions of the software gave it; what they found is the same.")
