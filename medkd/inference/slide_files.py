"""Which files are slides: those that were named, those in a folder, those of slides.csv."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.datasets.tables import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from medkd.errors import SlideError, TableError
from medkd.importers.foreign_tables import ForeignTable, Row, read_foreign_table
from medkd.slides.dicom_headers import dicom_header

SLIDE_SUFFIXES = frozenset(
    {".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"}
)
"""What slides' names end with; DICOM files are known by what they hold."""

_DICOM_SUFFIXES = frozenset({"", ".dcm", ".dicom"})
_SAFE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_SHOWN = 3


@dataclass(frozen=True)
class SlideFile:
    """A slide that is to be called.

    Attributes:
        slide_id: its name in results; can name a folder.
        path: the file to open.
        mpp: micrometres per pixel of level 0 as slides.csv says; None: it does not.
        files: all that it consists of, where it was found in a folder.
    """

    slide_id: str
    path: Path
    mpp: float | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FoundSlides:
    """What a folder holds.

    Attributes:
        slides: folder by folder, in order of their names.
        left_aside: files that are no slides and belong to none.
        unusable: what cannot be read, and folders without a slide, a line each.
    """

    slides: tuple[SlideFile, ...]
    left_aside: tuple[Path, ...] = ()
    unusable: tuple[str, ...] = ()


def slide_id_of(path: Path) -> str:
    """The file's name without its ending, with nothing in it that could not name a folder."""
    return _as_id(path.stem)


def find_slides(paths: Iterable[Path]) -> FoundSlides:
    """Files as they are named, and the slides in folders."""
    slides: list[SlideFile] = []
    left_aside: list[Path] = []
    unusable: list[str] = []
    for path in paths:
        if not path.is_dir():
            slides.append(SlideFile(slide_id_of(path), path))
            continue
        found = slides_in(path)
        slides += found.slides
        left_aside += found.left_aside
        unusable += found.unusable
        if not found.slides:
            unusable.append(
                f"{path}: holds no slide. Name the folder that holds them, or a slide by itself."
            )
    return FoundSlides(tuple(slides), tuple(left_aside), tuple(unusable))


def slides_in(folder: Path) -> FoundSlides:
    """The slides in ``folder`` and the folders below it, by their names, DICOM by its headers.

    The files of a DICOM series in one folder are one slide. It is named for that folder, or for
    its first file where the folder holds other slides too or is ``folder`` itself. A MIRAX slide
    is its file and the folder beside it, a Hamamatsu VMS slide all files whose names begin as its
    own. Hidden files and folders, and what links point to that is no file, are passed over.
    """
    slides: list[SlideFile] = []
    left_aside: list[Path] = []
    unusable: list[str] = []

    def refused(error: OSError) -> None:
        unusable.append(
            f"{error.filename}: cannot be read: {error.strerror}. Give this user the right to "
            "read it, or look at its disk."
        )

    for parent, folders, names in os.walk(folder, onerror=refused):
        here = Path(parent)
        files = []
        for name in sorted(names):
            try:
                # A pipe or a device would keep its reader waiting for ever.
                if not name.startswith(".") and (here / name).is_file():
                    files.append(here / name)
            except OSError as error:
                refused(error)
        own, others = _plain_slides(files)
        series, rest = _dicom_slides(others, named_for_folder=here != folder and not own)
        slides += [*own, *series]
        left_aside += rest
        taken = {slide.path.stem for slide in own if slide.path.suffix.lower() == ".mrxs"}
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in taken
        )
    return FoundSlides(tuple(slides), tuple(left_aside), tuple(unusable))


def _plain_slides(files: Sequence[Path]) -> tuple[list[SlideFile], list[Path]]:
    """Slides by their names, with all their files; and the files of none."""
    of_slide: dict[Path, tuple[Path, ...]] = {}
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".mrxs":
            inside = sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
            of_slide[path] = (path, *inside)
        elif suffix in (".vms", ".vmu"):
            of_slide[path] = tuple(file for file in files if file.name.startswith(path.stem))
        elif suffix in SLIDE_SUFFIXES:
            of_slide[path] = (path,)
    taken = {file for parts in of_slide.values() for file in parts}
    slides = [SlideFile(slide_id_of(path), path, files=parts) for path, parts in of_slide.items()]
    return slides, [path for path in files if path not in taken]


def _dicom_slides(
    files: Sequence[Path], *, named_for_folder: bool
) -> tuple[list[SlideFile], list[Path]]:
    """A slide for each series of DICOM slides; and the files of none."""
    series: defaultdict[str, list[Path]] = defaultdict(list)
    rest: list[Path] = []
    for path in files:
        try:
            header = dicom_header(path) if path.suffix.lower() in _DICOM_SUFFIXES else None
        except OSError:  # it cannot be read now; whether it is a slide is not known
            header = None
        if header is None:
            rest.append(path)
        else:
            series[header.series].append(path)
    lone = named_for_folder and len(series) == 1
    slides = [
        SlideFile(
            _as_id(parts[0].parent.name) if lone else slide_id_of(parts[0]),
            parts[0],
            files=tuple(parts),
        )
        for parts in series.values()
    ]
    return slides, rest


def told_aside(left_aside: Sequence[Path]) -> str:
    """A sentence about files that were left aside; empty where there are none."""
    if not left_aside:
        return ""
    names = ", ".join(str(path) for path in left_aside[:_SHOWN])
    more = len(left_aside) - _SHOWN
    count = f"{len(left_aside)} file" + ("s that are" if len(left_aside) > 1 else " that is")
    return f"{count} no slide by name or content, left aside: {names}" + (
        f" and {more} more." if more > 0 else "."
    )


def slides_of_table(path: Path) -> tuple[SlideFile, ...]:
    """The slides of a table with the columns slide_id and path, and mpp where it is known.

    The other columns of a training's slides.csv may be there. Paths are relative to the table.

    Raises:
        TableError: a column is missing or unknown, a cell is empty, a slide_id stands twice or
            cannot name a folder, an mpp is not a length.
    """
    table = read_foreign_table(path)
    _check_columns(table)
    slides: list[SlideFile] = []
    line_of: dict[str, int] = {}
    for row in table.rows:
        slide = _slide_of_row(table, row)
        if slide.slide_id in line_of:
            raise TableError(
                f"slide '{slide.slide_id}' stands twice (first on line {line_of[slide.slide_id]})",
                where=table.where(row),
                remedy="Give each slide one row and its own slide_id.",
            )
        line_of[slide.slide_id] = row.line
        slides.append(slide)
    return tuple(slides)


def _check_columns(table: ForeignTable) -> None:
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for column in table.columns:
        if column not in known:
            close = difflib.get_close_matches(column.lower(), known, n=1)
            raise TableError(
                f"unknown column '{column}'",
                where=table.path,
                remedy=f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}.",
            )
    for column in ("slide_id", "path"):
        if column not in table.columns:
            raise TableError(
                f"the column '{column}' is missing", where=table.path, remedy="Add it."
            )


def _slide_of_row(table: ForeignTable, row: Row) -> SlideFile:
    where = table.where(row)
    for column in ("slide_id", "path"):
        if not row.cells[column]:
            raise TableError(f"'{column}' is empty", where=where, remedy="Fill it in.")
    slide_id, mpp = row.cells["slide_id"], row.cells.get("mpp", "")
    if not _SAFE_ID.match(slide_id):
        raise TableError(
            f"slide_id '{slide_id}' cannot name a folder",
            where=where,
            remedy="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    path = table.path.parent / row.cells["path"]
    return SlideFile(slide_id, path, mpp=_mpp(mpp, where) if mpp else None)


def _mpp(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise TableError(
            f"mpp '{text}' is not a positive number",
            where=where,
            remedy="Write micrometres per pixel, such as 0.25, or leave the cell empty.",
        )
    return value


def check_mpp(mpp: float | None) -> None:
    """Refuse a resolution, um/px, that is no length.

    Raises:
        SlideError: it is none.
    """
    if mpp is None or 0 < mpp < math.inf:
        return
    error = SlideError(
        "wrong_mpp",
        "the resolution must be a number above 0, micrometres per pixel",
        where=f"--mpp {mpp:g}",
        remedy="Give the slide's own, for example 0.25 for a scan at 40x.",
    )
    error.exit_status = 2
    raise error


def no_slides() -> SlideError:
    """The error where neither slides nor a table were named."""
    error = SlideError(
        "no_slides",
        "no slide was named",
        remedy="Name slides or folders of slides, or give a table with --slides.",
    )
    error.exit_status = 2
    return error


def _as_id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "slide"
