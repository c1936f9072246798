"""Tables as others keep them: CSV, TSV and workbooks, byte-order marks and comments and all."""

from __future__ import annotations

import codecs
import csv
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.errors import TableError

PATIENT_COLUMNS = (
    "patient_id",
    "patient",
    "case_id",
    "case_submitter_id",
    "bcr_patient_barcode",
    "submitter_id",
)
"""What a column of patients is called by cBioPortal, STAMP, the GDC and medkd."""

# How cBioPortal, the GDC and spreadsheets say that nothing is known.
_NOT_KNOWN = {"", "na", "n/a", "#n/a", "nan", "--", "'--", "not reported", "not available"}

_COMMENT = "#"


@dataclass(frozen=True)
class Row:
    """One row. ``line``: where it stands in the file, from 1. A cell that says nothing is empty."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class ForeignTable:
    """A table with its rows; empty rows and columns are left out."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def where(self, row: Row) -> str:
        """File and line of ``row``, for messages."""
        return f"{self.path}:{row.line}"


def read_foreign_table(path: Path, *, sheet: str | None = None) -> ForeignTable:
    """Read a table of text cells.

    Workbooks are told by their ending (``.xlsx``, ``.xlsm``). Of text files the separator (tab,
    semicolon or comma) is told by the header; comment lines before it (``#``, as cBioPortal writes
    them) are passed over, and byte-order marks of UTF-8 and UTF-16 are understood.

    Args:
        path: the file.
        sheet: of a workbook; may be left out where only one sheet holds anything.

    Raises:
        TableError: no such file, not readable as a table, a column named twice, a row with more
            cells than the header.
    """
    ending = path.suffix.lower()
    if ending == ".xls":
        raise TableError(
            "is a workbook of the old binary format",
            where=path,
            remedy="Save it as .xlsx or as CSV.",
        )
    try:
        lines = _workbook(path, sheet) if ending in (".xlsx", ".xlsm") else _text(path)
    except FileNotFoundError:
        raise TableError("no such file", where=path, remedy="Name a table that exists.") from None
    except IsADirectoryError:
        raise TableError("is a folder, not a table", where=path, remedy="Name a file.") from None
    except PermissionError:
        raise TableError(
            "no permission to read", where=path, remedy="Change the permissions of the table."
        ) from None
    return _table(path, lines)


def find_column(
    table: ForeignTable, wanted: str | None, known: Sequence[str], *, what: str, option: str
) -> str:
    """The column ``wanted`` by the user, or the one that goes by a ``known`` name.

    Names are compared without regard to case, spaces, dots, hyphens and underscores.

    Args:
        table: where to look.
        wanted: the name that the user gave, if any.
        known: names to look for otherwise; the first that is there counts.
        what: what the column holds, for the message.
        option: the option that names it, for the message.

    Raises:
        TableError: there is none.
    """
    columns = {_plain(name): name for name in table.columns}
    for name in [wanted] if wanted else known:
        if _plain(name) in columns:
            return columns[_plain(name)]
    if wanted:
        close = difflib.get_close_matches(_plain(wanted), columns, n=1)
        hint = f"Did you mean '{columns[close[0]]}'?" if close else f"There are: {_names(table)}."
        raise TableError(f"has no column '{wanted}'", where=table.path, remedy=hint)
    raise TableError(
        f"no column of {what} is known in it",
        where=table.path,
        remedy=f"Name it with {option}; there are: {_names(table)}.",
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s._-]+", "", name).casefold()


def _names(table: ForeignTable) -> str:
    shown = table.columns[:12]
    rest = len(table.columns) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _table(path: Path, lines: Iterable[tuple[int, list[str]]]) -> ForeignTable:
    filled = [(number, cells) for number, cells in lines if any(cells)]
    if len(filled) < 2:
        raise TableError(
            "holds no rows", where=path, remedy="Name a table with a header and rows below it."
        )
    (_, header), *body = filled
    columns = tuple(name for name in header if name)
    for name in columns:
        if columns.count(name) > 1:
            raise TableError(
                f"the column '{name}' stands twice", where=path, remedy="Keep one of the two."
            )
    rows = []
    for number, cells in body:
        beyond = [cell for at, cell in enumerate(cells) if at >= len(header) or not header[at]]
        if any(beyond):
            raise TableError(
                f"the cell '{next(filter(None, beyond))}' stands under no column",
                where=f"{path}:{number}",
                remedy="Give the column a name, or put a text with the separator in it in quotes.",
            )
        padded = cells + [""] * (len(header) - len(cells))
        rows.append(
            Row(
                number,
                {
                    name: "" if cell.casefold().strip("[]") in _NOT_KNOWN else cell
                    for name, cell in zip(header, padded, strict=False)
                    if name
                },
            )
        )
    return ForeignTable(path, columns, tuple(rows))


def _text(path: Path) -> list[tuple[int, list[str]]]:
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise TableError(
            "is not UTF-8 text", where=path, remedy="Save the table as CSV in UTF-8, or as .xlsx."
        ) from None
    lines = text.splitlines(keepends=True)
    comments = next(
        (at for at, line in enumerate(lines) if not line.startswith(_COMMENT)), len(lines)
    )
    header = lines[comments] if comments < len(lines) else ""
    separator = max("\t;,", key=header.count)
    reader = csv.reader(lines[comments:], delimiter=separator, strict=True)
    try:
        return [(comments + reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise TableError(
            f"cannot be read as CSV: {error}",
            where=f"{path}:{comments + reader.line_num}",
            remedy="Save it as CSV again.",
        ) from None


def _workbook(path: Path, sheet: str | None) -> list[tuple[int, list[str]]]:
    import zipfile

    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        # Not the formulas but what they gave when the workbook was saved.
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise TableError(
            f"is not a workbook: {error}", where=path, remedy="Save it as .xlsx again, or as CSV."
        ) from None
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise TableError(
                f"has no sheet '{sheet}'",
                where=path,
                remedy=f"Its sheets are: {', '.join(book.sheetnames)}.",
            )
        found = {}
        for name in [sheet] if sheet else book.sheetnames:
            lines = [
                (number, ["" if cell is None else str(cell).strip() for cell in row])
                for number, row in enumerate(book[name].iter_rows(values_only=True), 1)
            ]
            if any(any(cells) for _, cells in lines):
                found[name] = lines
    finally:
        book.close()
    if len(found) > 1:
        raise TableError(
            f"has {len(found)} sheets",
            where=path,
            remedy=f"Choose one with --sheet: {', '.join(found)}.",
        )
    return next(iter(found.values()), [])
