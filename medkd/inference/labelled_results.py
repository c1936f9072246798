"""What a model said of a site's slides and what they are: results and labels, joined by patient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medkd.errors import StageError, TableError
from medkd.files import sha256_of_json
from medkd.importers.foreign_tables import read_foreign_table
from medkd.inference.package import ModelPackage
from medkd.schema import faults
from medkd.slide_level.call import NO_RESULT
from medkd.slide_level.labelled import FEWEST_PATIENTS
from medkd.slide_level.pooling import PatientPooling

COLUMNS = ("slide_id", "label")
_SHOWN = 3
_HASH_DIGITS = 12


class _Read(BaseModel):
    """A part of ``result.json``. Its contract lets keys be added: those are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class _Model(_Read):
    version: str
    sha256: str


class _Tiles(_Read):
    used: Annotated[int, Field(ge=0)]


class _Synthetic(_Read):
    slide: bool


class SlideResult(_Read):
    """What is taken of one ``result.json``. ``score``: before calibration."""

    schema_version: Literal[1]
    slide_id: str
    call: str
    score: Annotated[float, Field(ge=0, le=1)] | None
    tiles: _Tiles
    model: _Model
    synthetic: _Synthetic


@dataclass(frozen=True)
class SlideLabel:
    """A row of the labels. ``line``: where it stands, from 1."""

    label: str
    patient_id: str
    line: int


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
    """

    labels: np.ndarray
    scores: np.ndarray
    slides: int
    synthetic_slides: int
    sha256: str
    warnings: tuple[str, ...]


def read_results(folder: Path, package: ModelPackage) -> dict[str, SlideResult]:
    """Every slide that ``medkd infer --out folder`` called, by its id.

    Args:
        folder: holds ``<slide_id>/result.json``.
        package: the model that must have called them.

    Raises:
        StageError: there is no result, one cannot be read, or another model gave it.
    """
    paths = sorted(folder.glob("*/result.json"))
    if not paths:
        raise StageError(
            "holds no <slide>/result.json" if folder.is_dir() else "no such folder",
            where=folder,
            remedy="Name the folder that 'medkd infer --out' wrote.",
        )
    results = {}
    for path in paths:
        result = _read_result(path)
        if result.model.sha256 != package.sha256:
            raise StageError(
                f"slide '{result.slide_id}' was called by another model: version "
                f"{result.model.version}, SHA-256 {result.model.sha256[:_HASH_DIGITS]}, and "
                f"{package.folder} is {package.manifest.version}, "
                f"{package.sha256[:_HASH_DIGITS]}",
                where=path,
                remedy="Name the model that called it, or call the slides with this one.",
            )
        results[result.slide_id] = result
    return results


def _read_result(path: Path) -> SlideResult:
    again = "Call the slide again with 'medkd infer'."
    try:
        result = SlideResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        _, what, _ = faults(error, SlideResult, lambda _: str(path))[0]
        raise StageError(what, where=path, remedy=again) from None
    except OSError as error:
        raise StageError(
            f"cannot be read: {error.strerror}", where=path, remedy="Look at its permissions."
        ) from error
    if result.slide_id != path.parent.name:
        raise StageError(
            f"is of the slide '{result.slide_id}', and lies in the folder of another",
            where=path,
            remedy=again,
        )
    if (result.call == NO_RESULT) != (result.score is None) or (
        result.score is not None and result.tiles.used == 0
    ):
        raise StageError(
            f"its call '{result.call}', its score and its {result.tiles.used} tiles do not go "
            "together",
            where=path,
            remedy=again,
        )
    return result


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, SlideLabel]:
    """The labels of slides, by slide.

    Args:
        path: a table (CSV, TSV or workbook) with the columns slide_id and label, and patient_id
            where patients have several slides. Other columns are passed over.
        classes: of the model.

    Raises:
        TableError: a column is missing, a cell is empty, a label is not a class, a slide stands
            twice, or a patient has two labels.
    """
    table = read_foreign_table(path)
    for column in COLUMNS:
        if column not in table.columns:
            raise TableError(
                f"the column '{column}' is missing",
                where=path,
                remedy=f"Add it; there are: {', '.join(table.columns)}.",
            )
    needed = [name for name in (*COLUMNS, "patient_id") if name in table.columns]
    labels: dict[str, SlideLabel] = {}
    first_of_patient: dict[str, SlideLabel] = {}
    for row in table.rows:
        where = table.where(row)
        for column in needed:
            if not row.cells[column]:
                raise TableError(f"'{column}' is empty", where=where, remedy="Fill it in.")
        slide_id, label = row.cells["slide_id"], row.cells["label"]
        if label not in classes:
            raise TableError(
                f"label '{label}' is not a class of the model",
                where=where,
                remedy=f"Use one of {', '.join(classes)}.",
            )
        if slide_id in labels:
            raise TableError(
                f"slide '{slide_id}' stands twice (first on line {labels[slide_id].line})",
                where=where,
                remedy="Keep one of the two rows.",
            )
        found = SlideLabel(label, row.cells.get("patient_id", slide_id), row.line)
        labels[slide_id] = found
        first = first_of_patient.setdefault(found.patient_id, found)
        if label != first.label:
            raise TableError(
                f"patient '{found.patient_id}' is {label} here and {first.label} on line "
                f"{first.line}",
                where=where,
                remedy="Give all slides of a patient the same label, or leave the patient out.",
            )
    return labels


def join_patients(
    results: Mapping[str, SlideResult],
    labels: Mapping[str, SlideLabel],
    *,
    pooling: PatientPooling,
    positive: str,
    cohort: str,
) -> LabelledPatients:
    """Patients with a label and a score; what has only one of the two is left aside, and told.

    Args:
        results: of slides.
        labels: of slides.
        pooling: how the model makes a patient's score of several slides.
        positive: name of the class.
        cohort: who the patients are, in words, for the messages.

    Raises:
        StageError: no slide has both.
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
    content: list[Any] = [
        (name, labels[name].patient_id, labels[name].label, result.score, result.tiles.used)
        for name, result in scored.items()
    ]
    return LabelledPatients(
        labels=np.array([is_positive[patient] for patient in slides_of], bool),
        scores=np.array([patient_score(slides, pooling) for slides in slides_of.values()]),
        slides=len(scored),
        synthetic_slides=sum(result.synthetic.slide for result in scored.values()),
        sha256=sha256_of_json(content),
        warnings=tuple(warnings),
    )


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
