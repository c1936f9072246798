"""The model card in Markdown, from nothing but the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkd.slide_level.out_of_distribution import in_words as limit_in_words
from medkd.slide_level.out_of_distribution import nothing_checked
from medkd.slide_level.slide_head import in_words

if TYPE_CHECKING:
    from medkd.inference.manifest import Manifest

_STAIN_WORDS = {
    "macenko": "Each tile is given the stains of a reference first (Macenko's method).",
    "reinhard": "Each tile is given the colours of a reference first (Reinhard's method, CIELAB).",
}


def model_card(manifest: Manifest) -> str:
    """The model card in Markdown, from nothing but the manifest."""
    origin, tile = manifest.provenance, manifest.preprocessing.tile
    stain = manifest.preprocessing.stain
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        "**Research use only. Not a medical device; no call may guide the care of a patient.**",
        "",
    ]
    if origin.trained_on_synthetic:
        lines += ["**Trained on synthetic slides: its calls on real slides mean nothing.**", ""]
    lines += [
        "## What it does",
        "",
        f"Calls a whole-slide image of H&E-stained tissue {' or '.join(manifest.classes)}. It "
        f"gives a probability of {manifest.positive} with an interval, and may answer that there "
        "is no call.",
        "",
        "## What it is",
        "",
        f"{len(manifest.students)} student networks that score together: "
        + ", ".join(
            f"{s.name} ({s.network}, width {s.width:g}, {s.parameters:,} parameters)"
            for s in manifest.students
        )
        + f". Trained with the method {origin.method}. Tiles of {tile.size_px} px at {tile.mpp:g} "
        f"um/px ({tile.size_px * tile.mpp:g} um); a slide's score is "
        f"{in_words(manifest.slide_head)}."
        + ("" if stain is None else f" {_STAIN_WORDS[stain.method]}"),
        "",
        "## Training data",
        "",
        "| role | patients | tiles |",
        "|---|---:|---:|",
        *(
            f"| {role} | {origin.patients[role]} | {origin.tiles[role]:,} |"
            for role in origin.patients
        ),
        "",
        f"Data digest `{origin.data_digest[:16]}`, seed {origin.seed}, epoch {origin.best_epoch} "
        f"of {origin.epochs} chosen on validation patients.",
        "",
        "## Operating point",
        "",
        *_operating_point(manifest),
        "",
        "## Other slides than those of training",
        "",
        *_out_of_distribution(manifest),
        "",
        *_recalibration(manifest),
        *_quantisation(manifest),
        "## Limits",
        "",
        f"- {_calibration(manifest)}",
        "- The interval covers the sampling of tiles only; it is a lower bound of the uncertainty.",
        *_untested(manifest),
        "",
        f"MLflow run `{origin.run_id}`. {origin.software}, torch {origin.torch}. "
        f"{manifest.created}.",
    ]
    return "\n".join(lines) + "\n"


def _operating_point(manifest: Manifest) -> list[str]:
    # Not on top: this brings scipy, and infer starts without it.
    from medkd.slide_level.statistics import Estimate

    point = manifest.operating_point
    if point is None:
        return ["None yet: the package cannot be used for calls."]
    low, high = point.sensitivity_interval
    target = "" if point.target_sensitivity is None else f" ({point.target_sensitivity:.0%})"
    lines = [
        f"A score of at least {point.threshold:.4f} counts as {manifest.positive}: "
        f"{point.method}{target}, chosen on {point.date} on "
        f"{point.patients} {point.cohort}, {point.positives} of them {manifest.positive}. "
        f"There the sensitivity was {point.sensitivity:.2f} ({low:.2f} to {high:.2f}).",
    ]
    if manifest.test_performance is not None:
        test = manifest.test_performance
        lines += [
            "",
            f"On {test['patients']} test patients ({test['positives']} {manifest.positive}): AUROC "
            f"{Estimate(**test['patient_auroc'])}.",
        ]
    return lines


def _out_of_distribution(manifest: Manifest) -> list[str]:
    compared = manifest.out_of_distribution
    if compared is None:
        compared = nothing_checked(
            "the model is not aggregated yet, or was before this was checked"
        )
    return [
        *(f"- {limit_in_words(check)}" for check in compared.checks),
        *(
            f"- Whether the {whats} of a slide is out of distribution is not checked: {reason}."
            for reason, whats in compared.reasons.items()
        ),
    ]


def _calibration(manifest: Manifest) -> str:
    kind, record = manifest.calibration.kind, manifest.recalibration
    if kind == "none":
        return "Scores are not calibrated probabilities."
    while record is not None and not record.map_parameters:
        record = record.earlier  # this one kept the map of the model it was made from
    if record is not None:
        on = f"recalibrated on {record.patients} {record.cohort}"
    else:
        on = f"calibrated ({kind}) on the validation patients"
    return f"Scores were {on}; elsewhere they may not be probabilities."


def _recalibration(manifest: Manifest) -> list[str]:
    """The section of a recalibrated model; nothing for others."""
    record = manifest.recalibration
    if record is None:
        return []
    old, new = record.old.in_words(), record.new.in_words()
    positive = manifest.positive
    source = "as was stated" if record.prevalence_is_stated else "as among these patients"
    refitted = (
        "The calibration map is the old one.",
        "The slope of the calibration map was refitted",
        "Slope and intercept of the calibration map were refitted",
    )[record.map_parameters]
    if record.map_parameters:
        refitted += (
            f" and taken {record.map_shrinkage:.0%} of the way, for a share of {positive} of "
            f"{record.prevalence:.0%}, {source}."
        )
    return [
        f"## Recalibrated for {record.cohort}",
        "",
        f"On {record.date}, from version {record.from_version} (`{record.from_sha256[:12]}`), on "
        f"{record.patients} {record.cohort} ({record.positives} {positive}, {record.slides} "
        f"slides). The networks are those of that version, byte for byte. {refitted}",
        "",
        f"| of these patients | version {record.from_version} | this version |",
        "|---|---:|---:|",
        *(f"| {name} | {old[name]} | {new[name]} |" for name in old),
        "",
        f"Intervals are of {record.confidence:.0%}. That of the new sensitivity holds for new "
        "patients like these, although these chose the threshold; the new slope and intercept "
        "are cross-validated.",
        "",
        *(
            f"- Limit of the distance of the {one.what} from the training slides: "
            f"{one.old_limit:.2f} before, {one.new_limit:.2f} now; {one.beyond_old} of these "
            "patients have a slide beyond the old one."
            for one in record.distances
        ),
        *(f"- {warning}" for warning in record.warnings),
        *[""] * bool(record.warnings),
    ]


def _quantisation(manifest: Manifest) -> list[str]:
    """The section of a model in 8-bit integers; nothing for others."""
    record = manifest.quantisation
    if record is None:
        return []
    calls = "" if record.calls_changed is None else f", and {record.calls_changed} calls differed"
    change = record.distance_change_max
    distance = (
        ""
        if change is None
        else "; the embedding's distance from the training slides changed by at most "
        f"{change:.0%} of its limit"
    )
    return [
        "## Students in 8-bit integers",
        "",
        f"Those of version {record.from_version} (`{record.from_sha256[:12]}`): {record.method}, "
        f"ranges set on {record.calibration_tiles:,} tiles of {record.calibration_slides} slides. "
        f"On {record.measured_tiles:,} other tiles of {record.measured_slides} slides a tile's "
        f"probability changed by {record.tile_change_mean:.4f} on average and "
        f"{record.tile_change_max:.4f} at most, a slide's by {record.slide_change_mean:.4f} and "
        f"{record.slide_change_max:.4f}{calls}{distance}. The operating point is that of version "
        f"{record.from_version}; what was tested of that version was tested in float32.",
        "",
    ]


def _untested(manifest: Manifest) -> list[str]:
    record = manifest.recalibration
    if record is None:
        return ["- Another scanner, stain or population than in training has not been tested."]
    return [
        f"- No test patients of its own: this version was not tried on any but the "
        f"{record.patients} that it was fitted to. Test figures of version {record.from_version} "
        "are of another threshold and do not hold for it.",
        f"- Made for {record.cohort}; another scanner, stain or population has not been tested.",
    ]
