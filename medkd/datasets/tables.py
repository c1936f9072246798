"""slides.csv: the one table that a user writes."""

from __future__ import annotations

import csv
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from medkd.errors import TableError

REQUIRED_COLUMNS = ("slide_id", "path", "patient_id", "label")
OPTIONAL_COLUMNS = ("site", "scanner", "stage", "sex", "mpp")

# A slide's id names files, so it must not climb out of a folder or hide.
_SAFE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class SlideRow:
    """One slide of a cohort.

    ``mpp``: micrometres per pixel at level 0, where the user knows it. ``stage`` (of the tumour)
    and ``sex`` are for figures by subgroup alone.
    """

    slide_id: str
    path: Path
    patient_id: str
    label: str
    site: str = ""
    scanner: str = ""
    mpp: float | None = None
    stage: str = ""
    sex: str = ""


def read_slides(path: Path, classes: tuple[str, ...]) -> tuple[SlideRow, ...]:
    """Read and check slides.csv (a byte-order mark is accepted).

    Paths of slides are relative to the table. That a slide's file exists is left to the tile
    stage, so that one missing slide costs one row.

    Raises:
        TableError: a column is unknown or missing, a slide stands twice, a label is not a
            class, a patient has two labels, an mpp is not a number.
    """
    rows = _read_rows(path)
    slides: list[SlideRow] = []
    line_of_slide: dict[str, int] = {}
    label_of_patient: dict[str, tuple[str, int]] = {}
    for line, row in rows:
        where = f"{path}:{line}"
        slide = _slide(row, path.parent, where, classes)
        if slide.slide_id in line_of_slide:
            raise TableError(
                f"slide '{slide.slide_id}' stands twice (first on line "
                f"{line_of_slide[slide.slide_id]})",
                where=where,
                remedy="Give each slide one row and its own slide_id.",
            )
        line_of_slide[slide.slide_id] = line
        label, first = label_of_patient.setdefault(slide.patient_id, (slide.label, line))
        if label != slide.label:
            raise TableError(
                f"patient '{slide.patient_id}' is {slide.label} here and {label} on line {first}",
                where=where,
                remedy="Give all slides of a patient the same label, or leave the patient out.",
            )
        slides.append(slide)
    return tuple(slides)


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    remedy = "Set data.slides to a table with the columns " + ", ".join(REQUIRED_COLUMNS) + "."
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            _check_columns(columns, path)
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise TableError(
                        f"has {'more' if None in row else 'fewer'} cells than the header",
                        where=f"{path}:{reader.line_num}",
                        remedy="Give every row a cell for each column.",
                    )
                if any(value.strip() for value in row.values()):
                    rows.append((reader.line_num, {k: v.strip() for k, v in row.items()}))
    except FileNotFoundError:
        raise TableError("no such file", where=path, remedy=remedy) from None
    except IsADirectoryError:
        raise TableError("is a folder, not a table", where=path, remedy=remedy) from None
    except PermissionError:
        raise TableError(
            "no permission to read", where=path, remedy="Change the permissions of the table."
        ) from None
    except UnicodeDecodeError:
        raise TableError(
            "is not UTF-8 text", where=path, remedy="Save the table as CSV in UTF-8."
        ) from None
    except csv.Error as error:
        raise TableError(
            f"cannot be read as CSV: {error}", where=path, remedy="Save it as CSV again."
        ) from None
    if not rows:
        raise TableError("has no slides", where=path, remedy="Add a row for each slide.")
    return rows


def _check_columns(columns: list[str], path: Path) -> None:
    where = f"{path}:1"
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for column in columns:
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
            raise TableError(f"unknown column '{column}'", where=where, remedy=hint)
        if columns.count(column) > 1:
            raise TableError(
                f"the column '{column}' stands twice", where=where, remedy="Keep one of the two."
            )
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            raise TableError(f"the column '{column}' is missing", where=where, remedy="Add it.")


def _slide(row: dict[str, str], folder: Path, where: str, classes: tuple[str, ...]) -> SlideRow:
    for column in REQUIRED_COLUMNS:
        if not row[column]:
            raise TableError(f"'{column}' is empty", where=where, remedy="Fill it in.")
    if not _SAFE_ID.match(row["slide_id"]):
        raise TableError(
            f"slide_id '{row['slide_id']}' cannot name a file",
            where=where,
            remedy="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    if row["label"] not in classes:
        raise TableError(
            f"label '{row['label']}' is not a class",
            where=where,
            remedy=f"Use one of {', '.join(classes)}, or change data.classes.",
        )
    return SlideRow(
        slide_id=row["slide_id"],
        path=folder / row["path"],
        patient_id=row["patient_id"],
        label=row["label"],
        site=row.get("site", ""),
        scanner=row.get("scanner", ""),
        mpp=_mpp(row.get("mpp", ""), where),
        stage=row.get("stage", ""),
        sex=row.get("sex", ""),
    )


def _mpp(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise TableError(
            f"mpp '{text}' is not a positive number",
            where=where,
            remedy="Write micrometres per pixel, such as 0.25, or leave the cell empty.",
        )
    return value
