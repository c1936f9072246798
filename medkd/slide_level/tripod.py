"""The TRIPOD+AI checklist (Collins et al., BMJ 2024;385:e078378), filled with what a run knows.

What an item asks for stands here in short words of our own; the published wording is binding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkd.slide_level.statistics import Estimate

BY_THE_AUTHORS = "To be written by the authors."
SOURCE = "Collins et al., BMJ 2024;385:e078378"

_SECTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Title and abstract": (
        ("1", "Title", "development or evaluation of a prediction model, population, outcome"),
        ("2", "Abstract", "structured, by TRIPOD+AI for Abstracts"),
    ),
    "Introduction": (
        ("3a", "Background", "clinical context, why the model, which models there are"),
        ("3b", "Background", "target population, place in care, intended users"),
        ("3c", "Background", "known inequalities between groups of people"),
        ("4", "Objectives", "development, evaluation, or both"),
    ),
    "Methods": (
        ("5a", "Data", "sources for development and for evaluation, and whom they represent"),
        ("5b", "Data", "dates of the data"),
        ("6a", "Participants", "setting, number and place of centres"),
        ("6b", "Participants", "who was eligible"),
        ("6c", "Participants", "treatments, if they matter"),
        ("7", "Data preparation", "pre-processing and quality checks, alike in all groups or not"),
        ("8a", "Outcome", "definition, when and how it was assessed"),
        ("8b", "Outcome", "who assessed it, where that takes judgement"),
        ("8c", "Outcome", "blinding of who assessed it"),
        ("9a", "Predictors", "which were chosen, and how"),
        ("9b", "Predictors", "definition, when and how they were measured, blinding"),
        ("9c", "Predictors", "who measured them, where that takes judgement"),
        ("10", "Sample size", "how it came about, and whether it suffices"),
        ("11", "Missing data", "how it was handled, and why data were left out"),
        ("12a", "Analysis", "which data did what: partition for development and evaluation"),
        ("12b", "Analysis", "how predictors enter: scaling, transformation"),
        ("12c", "Analysis", "type of model, every step of building it, internal validation"),
        ("12d", "Analysis", "differences between clusters such as hospitals"),
        ("12e", "Analysis", "measures of performance and comparisons of models"),
        ("12f", "Analysis", "updating of the model after evaluation"),
        ("12g", "Analysis", "how predictions were calculated"),
        ("13", "Class imbalance", "what was done about it, and how probabilities were put right"),
        ("14", "Fairness", "what was done for it, and why"),
        ("15", "Model output", "probability or class; how thresholds were chosen"),
        ("16", "Training and evaluation", "how the data of the two differ"),
        ("17", "Ethics", "approval and consent"),
    ),
    "Open science": (
        ("18a", "Funding", "sources and role of the funders"),
        ("18b", "Conflicts of interest", "of all authors"),
        ("18c", "Protocol", "where it is"),
        ("18d", "Registration", "number and registry"),
        ("18e", "Data sharing", "whether and where data are available"),
        ("18f", "Code sharing", "whether and where code is available"),
    ),
    "Patient and public involvement": (
        ("19", "Involvement", "in any part of the study, or that there was none"),
    ),
    "Results": (
        ("20a", "Participants", "flow, with and without the outcome"),
        ("20b", "Participants", "characteristics, overall and by source; missing data"),
        ("20c", "Participants", "evaluation data compared with development data"),
        ("21", "Model development", "participants and outcomes in each analysis"),
        ("22", "Model specification", "all that is needed to predict for someone new"),
        ("23a", "Performance", "with confidence intervals, also of key subgroups"),
        ("23b", "Performance", "differences between clusters, if examined"),
        ("24", "Model updating", "results of it"),
    ),
    "Discussion": (
        ("25", "Interpretation", "overall, with fairness, against earlier studies"),
        ("26", "Limitations", "sample, overfitting, missing data, and what they do to the results"),
        ("27a", "Usability", "input that is poor or missing when the model is used"),
        ("27b", "Usability", "what users must do and know"),
        ("27c", "Usability", "next steps of research"),
    ),
}


@dataclass(frozen=True)
class ChecklistItem:
    """One item: what it asks for, and what the run knows of it, empty if nothing."""

    number: str
    section: str
    topic: str
    asks: str
    known: str


def tripod_items(report: Mapping[str, Any]) -> tuple[ChecklistItem, ...]:
    """All 52 items and sub-items of the 27, in the checklist's order.

    Args:
        report: what ``report.json`` holds.
    """
    known = _known(report)
    return tuple(
        ChecklistItem(number, section, topic, asks, known.get(number, ""))
        for section, items in _SECTIONS.items()
        for number, topic, asks in items
    )


def tripod_markdown(report: Mapping[str, Any], items: Sequence[ChecklistItem]) -> str:
    """The checklist as a Markdown table for each section."""
    written = sum(bool(item.known) for item in items)
    lines = [
        f"# TRIPOD+AI checklist: {report['model']['name']} {report['model']['version']}, run "
        f"{report['run']['name']}",
        "",
        f"{SOURCE}. Items in short words; the published wording is binding. Of {len(items)} items "
        f"{written} are filled, wholly or in part, from what the run knows; the authors must "
        "complete all of them. Research use only.",
    ]
    if report["synthetic"]["model"] or report["synthetic"]["test_slides"]:
        lines += ["", "**Synthetic slides: no figure here says anything about patients.**"]
    section = ""
    for item in items:
        if item.section != section:
            section = item.section
            lines += ["", f"## {section}", "", "| item | asks for | here |", "|---|---|---|"]
        here = (item.known or f"*{BY_THE_AUTHORS}*").replace("|", "\\|")
        lines.append(f"| {item.number} {item.topic} | {item.asks} | {here} |")
    return "\n".join(lines) + "\n"


def _known(report: Mapping[str, Any]) -> dict[str, str]:
    return {**_known_of_methods(report), **_known_of_results(report)}


def _known_of_methods(report: Mapping[str, Any]) -> dict[str, str]:
    model, run, settings = report["model"], report["run"], report["settings"]
    point, training, classes = model["operating_point"], model["training"], report["classes"]
    gates, tile = model["gates"], model["tile"]
    roles = report["cohort"]["roles"]
    positive = classes["positive"]
    compared = [m["name"] for m in (*report["poolings"][1:], *report["against"][1:])]
    columns = [name for name, groups in report["subgroups"].items() if groups is not None]
    networks = ", ".join(f"{s['name']} ({s['network']})" for s in model["students"])
    weights = training["class_weights"]
    stain = f"; stain normalisation by {tile['stain']}" if tile["stain"] else ""
    return {
        "1": f"In part: evaluation of {model['name']} {model['version']}, which calls whole-slide "
        f"images {classes['negative']} or {positive}.",
        "4": "In part: evaluation of a frozen model on test patients.",
        "5a": f"In part: patients by role, given by the split '{run['split_scheme']}': "
        + ", ".join(f"{name} {of['patients']}" for name, of in roles.items())
        + ". Where they come from: the authors.",
        "6b": "In part: every patient of slides.csv with the role test. Who came into slides.csv: "
        "the authors.",
        "7": f"{_tiles(tile)}{stain}. A call takes {gates['min_tiles']} tiles, "
        f"{gates['min_tissue_mm2']:g} mm2 of tissue and students that differ by at most "
        f"{gates['max_disagreement']:g}. The same for all groups.",
        "8a": f"In part: {positive} or {classes['negative']} as slides.csv says; how that was "
        "assessed: the authors.",
        "9a": "The pixels of H&E slides alone; no clinical variable.",
        "9b": f"Tiles of digitised slides as under 7; {model['score']}.",
        "9c": "In part: tiles were taken from areas that people had drawn; who: the authors."
        if tile["annotated"]
        else ""
        if tile["imported"]
        else "None takes judgement: tiles are chosen and scored by software.",
        "10": f"In part: {report['cohort']['patients']} test patients with a score, "
        f"{report['cohort']['positives']} of them {positive}; why so many: the authors.",
        "11": "Patients without a usable slide are not scored and are counted in the flow; nothing "
        "is imputed. Rule-out figures count whoever has no call as called positive.",
        "12a": "Training patients taught the networks; validation patients chose the epoch, the "
        "calibration and the operating point; test patients gave every figure here."
        + (
            f" Leakage that the configuration allows: {', '.join(run['allowed_leakage'])}."
            if run["allowed_leakage"]
            else " No patient has two roles."
        ),
        "12b": "Tiles enter as 8-bit RGB; scaling is part of the networks' files"
        + (f"; stains are normalised first ({tile['stain']})." if tile["stain"] else "."),
        "12c": f"Students {networks}, trained by the method {model['method']} for up to "
        f"{training['epochs']} epochs (epoch {training['best_epoch']} chosen by validation loss), "
        f"seed {training['seed']}; {model['score']}; calibration: {model['calibration']}.",
        "12d": f"Figures by {' and '.join(columns)}."
        if columns
        else "Not examined: slides.csv has no column to tell groups by.",
        "12e": "AUROC (DeLong, bootstrap), AUPRC, sensitivity, specificity, PPV, NPV, likelihood "
        "ratios, share ruled out, Brier score, calibration slope and intercept, reliability, "
        f"decision curves; {settings['confidence']:.0%} intervals, "
        f"{settings['bootstrap_resamples']} resamples of patients within each class."
        + (
            f" Compared by paired DeLong and permutation tests ({settings['permutations']} "
            f"permutations): {', '.join(compared)}."
            if compared
            else ""
        ),
        "12f": "The model was not updated.",
        "12g": f"By the model package with the SHA-256 {model['sha256']}.",
        "13": f"Tiles drawn with balance '{training['balance']}'"
        + (f", class weights {weights}" if weights else ", no class weights")
        + (
            "; scores are not calibrated."
            if model["calibration"] == "none"
            else f"; scores calibrated on validation patients ({model['calibration']})."
        ),
        "14": f"In part: figures by {', '.join(columns)} are told; nothing was optimised for them."
        if columns
        else "",
        "15": f"A probability of {positive}, and a call. Threshold {point['threshold']:.4f}: "
        f"{point['method']}, chosen on {point['date']} on {point['patients']} {point['cohort']}, "
        f"{point['positives']} of them {positive}."
        + (
            f" Calls by conformal sets at an error of {model['conformal_error']:g} in each class."
            if model["conformal_error"] is not None
            else " A call needs the score's whole interval on one side of it."
        ),
    }


def _tiles(tile: Mapping[str, Any]) -> str:
    size = f"Tiles of {tile['size_px']} px at {tile['mpp']:g} um/px"
    if tile["imported"]:
        return f"In part: {size}, imported ({tile['imported']}); their quality checks: the authors"
    return (
        f"{size} of which at least {tile['min_tissue']:.0%} is tissue and at most "
        f"{tile['max_pen']:.0%} ink, {tile['max_fold']:.0%} fold and {tile['max_white']:.0%} "
        f"white, with a focus score of {tile['min_focus']:g} or more"
    )


def _known_of_results(report: Mapping[str, Any]) -> dict[str, str]:
    flow, accuracy = report["flow"], report["accuracy"]
    roles, classes = report["cohort"]["roles"], report["classes"]
    positive, model = classes["positive"], report["model"]
    eligible = flow["eligible"]
    columns = [name for name, groups in report["subgroups"].items() if groups is not None]
    by_role = "; ".join(
        f"{name} {of['patients']} patients, {of['positives']} {positive}"
        for name, of in roles.items()
    )
    calibration = report["calibration"]
    told = {
        "auroc": report["discrimination"]["auroc"]["delong"],
        "sensitivity": accuracy["threshold"]["sensitivity"],
        "specificity": accuracy["threshold"]["specificity"],
        "calibration slope": calibration["slope"],
        "calibration intercept": calibration["intercept"],
        "Brier score": calibration["brier_score"],
    }
    performance = ", ".join(
        f"{name.replace('auroc', 'AUROC')} {Estimate(**estimate)}"
        for name, estimate in told.items()
    )
    return {
        "18f": f"In part: {report['software']} (Apache License 2.0), MLflow run "
        f"{report['run']['mlflow_run_id']}.",
        "20a": f"Flow diagram in report.html: {eligible['patients']} eligible "
        f"({eligible['positives']} {positive}), {flow['scored']} scored, {flow['called']} called, "
        f"{flow['indeterminate']['patients']} indeterminate, {flow['no_result']['patients']} "
        "without result.",
        "20b": f"In part: by {', '.join(columns)} in report.html." if columns else "",
        "20c": f"In part: outcome by role: {by_role}. Other differences: the authors.",
        "21": f"{by_role}.",
        "22": f"Model package {model['name']} {model['version']}, SHA-256 {model['sha256']}: "
        "weights, preprocessing, calibration and threshold.",
        "23a": f"{performance}; all of it in report.html"
        + (f", with subgroups by {', '.join(columns)}." if columns else "."),
        "23b": "See the figures by site in report.html." if "site" in columns else "",
        "24": "The model was not updated.",
        "26": "In part: " + " ".join(report["warnings"]) if report["warnings"] else "",
        "27a": "In part: the quality gates of item 7 answer 'no result', and students or intervals "
        "that leave it open 'indeterminate'; both need the standard test.",
    }
