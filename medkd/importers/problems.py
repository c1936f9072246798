"""What an importer leaves out, and layouts that it cannot read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.errors import MedkdError
from medkd.files import write_text


class LayoutError(MedkdError):
    """A data set does not lie as its importer expects; nothing was written."""


@dataclass(frozen=True)
class Problem:
    """One image, slide or patient that was left out. The rest of the data set is imported.

    Attributes:
        reason: a short code for tables, such as ``no_barcode``.
        where: the file, slide or patient.
        what: what is wrong, without a full stop.
        remedy: what to do about it, a whole sentence.
    """

    reason: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}"


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write a CSV with a row for each problem; without any, remove what an earlier import left.

    Raises:
        OutputError: no permission, or no space.
    """
    if not problems:
        path.unlink(missing_ok=True)
        return
    rows = [(problem.reason, problem.where, str(problem)) for problem in problems]
    write_csv(path, ("reason", "where", "message"), rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV in UTF-8, whole or not at all.

    Raises:
        OutputError: no permission, or no space.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
