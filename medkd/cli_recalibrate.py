"""``medkd recalibrate``: a model moved to a new scanner or site, as a new version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.terminal import print_table

if TYPE_CHECKING:
    from medkd.inference.package import ModelPackage


def recalibrate(
    model: Annotated[
        Path, typer.Argument(help="The model package (a folder).", show_default=False)
    ],
    *,
    results: Annotated[
        Path,
        typer.Option("--results", help="What 'medkd infer' with this model wrote of the slides."),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            help="Table with slide_id, label and, if patients have several slides, patient_id.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new version; must not exist.")],
    cohort: Annotated[
        str, typer.Option("--cohort", help="Whose patients they are: 'St Mary, scanner GT450'.")
    ] = "the new site",
    prevalence: Annotated[
        float | None,
        typer.Option(
            "--prevalence",
            help="Share of positives at the site, such as 0.15; needed where patients were "
            "picked by label. By default their share among these patients.",
            show_default=False,
        ),
    ] = None,
    target_sensitivity: Annotated[
        float | None,
        typer.Option(
            "--target-sensitivity",
            help="Of the new operating point; by default the model's own target, or 0.95 if its "
            "rule was another.",
            show_default=False,
        ),
    ] = None,
    conformal_error: Annotated[
        float | None,
        typer.Option(
            "--conformal-error",
            help="Call by prediction sets of this error rate; by default as the model does.",
            show_default=False,
        ),
    ] = None,
    no_conformal: Annotated[
        bool,
        typer.Option("--no-conformal", help="Drop prediction sets: the operating point calls."),
    ] = False,
) -> None:
    """Refit calibration and threshold to a new scanner or site, from its labelled slides.

    A few tens of patients of each class. Writes a new version; the old one is never changed.
    """
    from medkd.inference.recalibrate_stage import RecalibrateOptions, run_recalibrate_stage

    options = RecalibrateOptions(
        site=cohort,
        target_sensitivity=target_sensitivity,
        prevalence=prevalence,
        conformal_error=conformal_error,
        no_conformal=no_conformal,
    )
    _print(run_recalibrate_stage(model, results, labels, out, options))


def _print(package: ModelPackage) -> None:
    manifest = package.manifest
    record = manifest.recalibration
    assert record is not None  # the stage writes one
    old, new = record.old.in_words(), record.new.in_words()
    print_table(
        f"{record.patients} {record.cohort}, {record.positives} {manifest.positive}",
        ("", f"version {record.from_version}", "new version"),
        ((name, old[name], new[name]) for name in old),
    )
    print(
        f"Intervals: {record.confidence:.0%}. That of the new sensitivity is for new patients of "
        "the site, although these patients chose the threshold; independent test patients would "
        "show it. The new slope and intercept are cross-validated."
    )
    fitted = ("kept", "slope refitted", "slope and intercept refitted")[record.map_parameters]
    print(
        f"Calibration map: {fitted}"
        + (f", {record.map_shrinkage:.0%} of the way." if record.map_parameters else ".")
    )
    if manifest.conformal is not None:
        rate = manifest.conformal.error_rate
        print(f"Prediction sets: refitted, an error rate of {rate:g} in each class.")
    for one in record.distances:
        print(
            f"Out of distribution: {one.what} beyond {one.new_limit:.2f}, before "
            f"{one.old_limit:.2f}, beyond which {one.beyond_old} patients have a slide."
        )
    print(f"New version {manifest.version}: {package.folder}")
    print(f"Version {record.from_version} is as it was.")
