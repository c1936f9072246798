"""A slide table and a clinical table become slides.csv."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medkd.datasets.tables import REQUIRED_COLUMNS
from medkd.errors import TableError
from medkd.importers.foreign_tables import (
    PATIENT_COLUMNS,
    ForeignTable,
    find_column,
    read_foreign_table,
)
from medkd.importers.names import safe_id
from medkd.importers.problems import LayoutError, Problem, write_csv
from medkd.importers.tcga import tissue_source_site

SLIDE_COLUMNS = ("slide_id", "filename", "file_name", "slide", "slide_name", "path", "image_id")
LABEL_COLUMNS = ("label",)

# What slide scanners write; a slide folder may hold anything else beside.
_SLIDE_ENDINGS = (
    *(".svs", ".ndpi", ".tif", ".tiff", ".scn", ".mrxs"),
    *(".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi"),
)


@dataclass(frozen=True)
class SlideTableOptions:
    """How the two tables are read; what is None is found by its usual names.

    Attributes:
        label_column: of the clinical table.
        label_of: words of that column to labels. Empty: the words are the labels.
        patient_column: its name in both tables.
        slide_column: of the slide table.
        site_column: of the clinical table; None: TCGA's tissue source site, for its patients.
        slides_folder: searched, with its folders, for the file of each slide. None: the slide
            table's names are paths.
        only: slides whose names it does not match are left out.
        sheet: of workbooks.
    """

    label_column: str | None = None
    label_of: Mapping[str, str] | None = None
    patient_column: str | None = None
    slide_column: str | None = None
    site_column: str | None = None
    slides_folder: Path | None = None
    only: re.Pattern[str] | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class SlideTableSummary:
    """What came of the tables.

    Attributes:
        slides: rows of slides.csv by label.
        patients: patients by label.
        unlabelled: slides left out because nothing is known of their patient's label.
        excluded: slides left out because their names do not match ``only``.
        problems: slides and patients left out because something is wrong.
    """

    slides: Mapping[str, int]
    patients: Mapping[str, int]
    unlabelled: int
    excluded: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Patients:
    label: dict[str, str]
    site: dict[str, str]
    two_labels: dict[str, Problem]


def import_slide_table(
    slide_table: Path, clinical_table: Path, out: Path, options: SlideTableOptions
) -> SlideTableSummary:
    """Join slides with the labels of their patients, and write slides.csv to ``out``.

    Args:
        slide_table: a row for each slide: its name and its patient.
        clinical_table: a row for each patient, or sample, with the label; may be the same file.
        out: the slides.csv to write.
        options: how they are read.

    Raises:
        TableError: a table cannot be read, a column or word is not known, a slide stands twice.
        LayoutError: no slide is left.
        OutputError: no permission, or no space.
    """
    slides = read_foreign_table(slide_table, sheet=options.sheet)
    patients = _read_patients(read_foreign_table(clinical_table, sheet=options.sheet), options)
    problems = list(patients.two_labels.values())
    rows: dict[str, tuple[str, str, str, str, str]] = {}
    unlabelled = excluded = 0
    places = None if options.slides_folder is None else _slide_files(options.slides_folder)
    for where, name, patient in _named_slides(slides, options):
        if options.only is not None and not options.only.search(name):
            excluded += 1
        elif patient not in patients.label:
            unlabelled += patient not in patients.two_labels
        else:
            path = Path(name) if places is None else _file_of(name, places)
            if isinstance(path, Problem):
                problems.append(path)
                continue
            slide_id = safe_id(_without_ending(Path(name).name))
            if slide_id in rows:
                raise TableError(
                    f"slide '{slide_id}' stands twice", where=where, remedy="Keep one of its rows."
                )
            site = patients.site.get(patient, "") or tissue_source_site(patient)
            shown = path if places is None else _relative(path, out.parent)
            rows[slide_id] = (slide_id, str(shown), patient, patients.label[patient], site)
    if not rows:
        raise LayoutError(
            f"none of {len(slides.rows)} slides is left: {unlabelled} without a label of their "
            f"patient, {excluded} not matched, {len(problems)} with a problem",
            where=slide_table,
            remedy=str(problems[0])
            if problems
            else "See that both tables write patients in the same way.",
        )
    width = 5 if any(row[4] for row in rows.values()) else 4
    header = (*REQUIRED_COLUMNS, "site")[:width]
    write_csv(out, header, [row[:width] for _, row in sorted(rows.items())])
    return SlideTableSummary(
        Counter(row[3] for row in rows.values()),
        Counter({row[2]: row[3] for row in rows.values()}.values()),
        unlabelled,
        excluded,
        tuple(problems),
    )


def _read_patients(table: ForeignTable, options: SlideTableOptions) -> _Patients:
    key = find_column(
        table,
        options.patient_column,
        PATIENT_COLUMNS,
        what="patients",
        option="--patient-column",
    )
    column = find_column(
        table, options.label_column, LABEL_COLUMNS, what="labels", option="--label"
    )
    site = options.site_column and find_column(
        table, options.site_column, (), what="sites", option="--site-column"
    )
    found = _Patients({}, {}, {})
    for row in table.rows:
        patient, word = row.cells[key], row.cells[column]
        if not (patient and word):
            continue
        label = word
        if options.label_of:
            if word not in options.label_of:
                raise TableError(
                    f"'{word}' in '{column}' is no label",
                    where=table.where(row),
                    remedy=f"Say what it is with --map '{word}=LABEL', or leave it out with "
                    f"--map '{word}='.",
                )
            label = options.label_of[word]
        if not label:
            continue
        first = found.label.setdefault(patient, label)
        if first != label:
            found.two_labels[patient] = Problem(
                "two_labels",
                table.where(row),
                f"patient {patient} is {label} here and {first} above",
                "Keep the row that is right; the patient is left out.",
            )
        if site:
            found.site[patient] = row.cells[site]
    for patient in found.two_labels:
        del found.label[patient]
    return found


def _named_slides(table: ForeignTable, options: SlideTableOptions) -> list[tuple[str, str, str]]:
    """Place in the table, name and patient of each slide; patients without a slide are none."""
    patient = find_column(
        table,
        options.patient_column,
        PATIENT_COLUMNS,
        what="patients",
        option="--patient-column",
    )
    name = find_column(
        table, options.slide_column, SLIDE_COLUMNS, what="slides", option="--slide-column"
    )
    slides = [(table.where(row), row.cells[name], row.cells[patient]) for row in table.rows]
    for where, slide, of in slides:
        if slide and not of:
            raise TableError(
                f"slide '{slide}' has no patient", where=where, remedy="Name its patient."
            )
    return [slide for slide in slides if slide[1]]


def _slide_files(folder: Path) -> dict[str, list[Path]]:
    """The slide files below ``folder``, by their name up to each of its dots."""
    if not folder.is_dir():
        raise LayoutError("no such folder", where=folder, remedy="Name the folder of the slides.")
    places = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SLIDE_ENDINGS and path.is_file():
            parts = path.name.split(".")
            for end in range(1, len(parts) + 1):
                places[".".join(parts[:end])].append(path)
    return places


def _file_of(name: str, places: Mapping[str, list[Path]]) -> Path | Problem:
    # TCGA's slides have an identifier after their barcode, which tables leave out.
    found = places.get(Path(name).name, []) or places.get(_without_ending(Path(name).name), [])
    if len(found) == 1:
        return found[0]
    if not found:
        return Problem(
            "no_file", f"slide {name}", "no such file in the folder", "Fetch it, or drop its row."
        )
    return Problem(
        "two_files",
        f"slide {name}",
        f"may be {found[0]} or {found[1]}",
        "Write the whole name into the table.",
    )


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in _SLIDE_ENDINGS else name


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
