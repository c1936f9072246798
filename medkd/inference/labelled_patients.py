"""Slides with a result and a label, as patients that something can be fitted to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medkd.errors import StageError
from medkd.files import sha256_of_json
from medkd.inference.labelled_results import SlideLabel, SlideResult
from medkd.slide_level.call import NO_RESULT, out_of_distribution
from medkd.slide_level.labelled import FEWEST_PATIENTS
from medkd.slide_level.pooling import PatientPooling

_SHOWN = 3


@dataclass(frozen=True)
class LabelledPatients:
    """A site's patients that have both a label and a score.

    Attributes:
        labels: (patients,), True for the positive class.
        scores: (patients,), before calibration.
        slides: how many they have together.
        synthetic_slides: how many of these were drawn.
        sha256: of slides, patients, labels, scores and tiles; names the data, and tells no id.
        warnings: what was left aside and what is odd, a sentence each.
        distances: (patients,), of the slide that is farthest from the training slides, of what the
            model compares.
    """

    labels: np.ndarray
    scores: np.ndarray
    slides: int
    synthetic_slides: int
    sha256: str
    warnings: tuple[str, ...]
    distances: Mapping[str, np.ndarray] = field(default_factory=dict)


def join_patients(
    results: Mapping[str, SlideResult],
    labels: Mapping[str, SlideLabel],
    *,
    pooling: PatientPooling,
    positive: str,
    cohort: str,
    compared: Collection[str] = (),
) -> LabelledPatients:
    """Patients with a label and a score; what has only one of the two is left aside, and told.

    Args:
        results: of slides.
        labels: of slides.
        pooling: how the model makes a patient's score of several slides.
        positive: name of the class.
        cohort: who the patients are, in words, for the messages.
        compared: what the model compares with its training slides.

    Raises:
        StageError: no slide has both, or one has a score and no distance.
    """
    both = sorted(results.keys() & labels.keys())
    if not both:
        raise StageError(
            f"none of the {len(labels)} labelled slides is among the {len(results)} that were "
            f"called: {_names(labels)} against {_names(results)}",
            where=cohort,
            remedy="Write slide_id as the result's folder is named: the slide's file name without "
            "its ending.",
        )
    scored = {name: results[name] for name in both if results[name].score is not None}
    lone = {name for name, result in scored.items() if result.tiles.used == 1}
    warnings = [
        f"{what}: {len(names)} ({_names(names)})."
        for what, names in (
            ("Labelled slides without a result, left aside", labels.keys() - results.keys()),
            ("Slides with a result and no label, left aside", results.keys() - labels.keys()),
            (f"Labelled slides called '{NO_RESULT}', left aside", set(both) - scored.keys()),
            ("Slides whose score is that of a single tile, which chance may have made", lone),
        )
        if names
    ]
    slides_of: dict[str, list[SlideResult]] = {}
    for name, result in scored.items():
        slides_of.setdefault(labels[name].patient_id, []).append(result)
    is_positive = {labels[name].patient_id: labels[name].label == positive for name in scored}
    distances = {what: _distances(what, slides_of, cohort) for what in compared}
    content: list[Any] = [
        (name, labels[name].patient_id, labels[name].label, result.score, result.tiles.used)
        for name, result in scored.items()
    ]
    content += [of_patients.tolist() for of_patients in distances.values()]
    return LabelledPatients(
        labels=np.array([is_positive[patient] for patient in slides_of], bool),
        scores=np.array([patient_score(slides, pooling) for slides in slides_of.values()]),
        slides=len(scored),
        synthetic_slides=sum(result.synthetic.slide for result in scored.values()),
        sha256=sha256_of_json(content),
        warnings=tuple(warnings),
        distances=distances,
    )


def _distances(
    what: str, slides_of: Mapping[str, Sequence[SlideResult]], cohort: str
) -> np.ndarray:
    """Of each patient that of the farthest slide, (patients,)."""
    gate = out_of_distribution(what)
    found = []
    for slides in slides_of.values():
        of_slides = {slide.slide_id: slide.gate(gate) for slide in slides}
        for slide_id, distance in of_slides.items():
            if distance is None:
                raise StageError(
                    f"the result of slide '{slide_id}' does not tell its {what}'s distance from "
                    "the training slides",
                    where=cohort,
                    remedy="Call the slide again with 'medkd infer'.",
                )
        found.append(max(distance for distance in of_slides.values() if distance is not None))
    return np.array(found)


def patient_score(slides: Iterable[SlideResult], pooling: PatientPooling) -> float:
    """A patient's score of the scores of the patient's slides.

    ``tiles`` is the mean weighted by the tiles that were used. That is the score of all tiles
    together where tiles are pooled by their mean probability; for other poolings, whose tiles
    are no longer at hand, it comes near it.

    Args:
        slides: with a score, at least one.
        pooling: as in :func:`medkd.slide_level.pooling.pool_patient`.
    """
    known = [(slide.score, slide.tiles.used) for slide in slides if slide.score is not None]
    scores, tiles = zip(*known, strict=True)
    if len(scores) == 1:
        return float(scores[0])  # to the last digit: a threshold may be that of this very slide
    if pooling == "max_of_slides":
        return max(scores)
    return float(np.average(scores, weights=tiles if pooling == "tiles" else None))


def check_patients(
    patients: LabelledPatients, *, positive: str, negative: str, cohort: str
) -> None:
    """Refuse patients that nothing can be fitted to.

    Args:
        patients: of the site.
        positive, negative: names of the classes.
        cohort: who they are, in words, for the messages.

    Raises:
        StageError: a class is absent, patients are too few, or all have the same score.
    """
    truth, scores = patients.labels, patients.scores
    counted = f"{len(truth)} patient{'' if len(truth) == 1 else 's'} with a label and a score"
    for name, there in ((positive, truth.any()), (negative, (~truth).any())):
        if not there:
            raise StageError(
                f"there is no {name} among {counted}",
                where=cohort,
                remedy=f"Label and call slides of {name} too.",
            )
    if len(truth) < FEWEST_PATIENTS:
        raise StageError(
            f"{counted} are too few to recalibrate on: it takes {FEWEST_PATIENTS} at the least, "
            "and tens to mean anything",
            where=cohort,
            remedy="Label and call more slides.",
        )
    if (scores == scores[0]).all():
        raise StageError(
            f"all {counted} have the same score, {scores[0]:g}: no threshold tells them apart",
            where=cohort,
            remedy="Look at the slides' reports: they may have been read at a wrong resolution, "
            "or the model is not for such slides.",
        )


def _names(names: Collection[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
