"""What a model said of a site's slides, and what they are: results and labels, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medkd.errors import StageError, TableError
from medkd.importers.foreign_tables import read_foreign_table
from medkd.inference.package import ModelPackage
from medkd.schema import faults
from medkd.slide_level.call import NO_RESULT

COLUMNS = ("slide_id", "label")
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


class _Gate(_Read):
    name: str
    value: float


class _Quality(_Read):
    gates: tuple[_Gate, ...]


class SlideResult(_Read):
    """What is taken of one ``result.json``. ``score``: before calibration."""

    schema_version: Literal[1]
    slide_id: str
    call: str
    score: Annotated[float, Field(ge=0, le=1)] | None
    tiles: _Tiles
    model: _Model
    synthetic: _Synthetic
    qc: _Quality

    def gate(self, name: str) -> float | None:
        """What was measured for a quality gate; None: it was not."""
        return next((gate.value for gate in self.qc.gates if gate.name == name), None)


@dataclass(frozen=True)
class SlideLabel:
    """A row of the labels. ``line``: where it stands, from 1."""

    label: str
    patient_id: str
    line: int


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
