"""The label quality report: which sources agree, who is discordant, and the labels that result."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.files import make_folder, write_text
from medkd.importers.foreign_tables import read_foreign_table
from medkd.importers.labels import (
    KNOWN_SOURCES,
    NEGATIVE,
    POSITIVE,
    Agreement,
    LabelSource,
    PatientCalls,
    Rule,
    agreement,
    gather_calls,
    parse_rule,
    parse_source,
)
from medkd.importers.problems import Problem, write_csv
from medkd.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console

LABELS_NAME = "labels.csv"
TABLE_NAME = "label_report.csv"
TEXT_NAME = "label_report.txt"

# A file has no width of its own.
_WIDTH_OF_THE_FILE = 100


@dataclass(frozen=True)
class LabelReport:
    """What several sources say of the patients of one cohort.

    Attributes:
        sources: by the column that each was found in.
        patients: all of them, sorted.
        pairs: the agreement of every two sources.
        rule: how calls become labels.
        labels: patient to label, of those that the rule gives one.
        problems: patients of whom one source says two things.
    """

    sources: Mapping[str, LabelSource]
    patients: tuple[PatientCalls, ...]
    pairs: tuple[Agreement, ...]
    rule: Rule
    labels: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def complete(self) -> tuple[PatientCalls, ...]:
        """Patients that every source calls."""
        return tuple(p for p in self.patients if len(p.calls) == len(self.sources))

    @property
    def compared(self) -> tuple[PatientCalls, ...]:
        """Patients that at least two sources call."""
        return tuple(p for p in self.patients if len(p.calls) > 1)


def make_label_report(
    tables: Iterable[Path],
    *,
    sources: Iterable[str] = (),
    rule: str = "consensus",
    patient_column: str | None = None,
    sheet: str | None = None,
) -> LabelReport:
    """Compare the label sources of some tables.

    Args:
        tables: clinical tables, joined by patient.
        sources: as :func:`medkd.importers.labels.parse_source` reads them; one of a known name
            replaces that source.
        rule: as :func:`medkd.importers.labels.parse_rule` reads it.
        patient_column: where the known names do not find it.
        sheet: of workbooks.

    Raises:
        ConfigError: a source or the rule cannot be understood.
        TableError: a table cannot be read, or holds no source.
    """
    given = [parse_source(text) for text in sources]
    named = {source.name for source in given}
    wanted = [*(known for known in KNOWN_SOURCES if known.name not in named), *given]
    read = [read_foreign_table(path, sheet=sheet) for path in tables]
    found, patients, problems = gather_calls(read, wanted, patient_column=patient_column)
    names = [source.name for source in found.values()]
    chosen = parse_rule(rule, names)
    labels = {p.patient_id: label for p in patients if (label := chosen.label(p)) is not None}
    return LabelReport(
        found,
        tuple(patients),
        tuple(agreement(patients, names)),
        chosen,
        labels,
        tuple(problems),
    )


def write_label_report(report: LabelReport, folder: Path) -> None:
    """Write labels.csv, label_report.csv (a row for each patient) and label_report.txt.

    Raises:
        OutputError: no permission, or no space.
    """
    from rich.console import Console

    make_folder(folder)
    names = [source.name for source in report.sources.values()]
    write_csv(
        folder / TABLE_NAME,
        (
            "patient_id",
            "label",
            "discordant",
            *(f"{name}_{part}" for name in names for part in ("value", "call")),
        ),
        [
            (
                patient.patient_id,
                report.labels.get(patient.patient_id, ""),
                "yes" if patient.discordant else "no" if len(patient.calls) > 1 else "",
                *(said.get(name, "") for name in names for said in (patient.values, patient.calls)),
            )
            for patient in report.patients
        ],
    )
    text = io.StringIO()
    print_label_report(report, Console(file=text, width=_WIDTH_OF_THE_FILE))
    write_text(folder / TEXT_NAME, text.getvalue())
    write_csv(folder / LABELS_NAME, ("patient_id", "label"), sorted(report.labels.items()))


def print_label_report(report: LabelReport, console: Console) -> None:
    """Print sources with their thresholds, agreement, discordant patients and resulting labels."""
    names = [source.name for source in report.sources.values()]
    _print_sources(report, console)
    if report.pairs:
        console.print()
        print_table(
            "Agreement",
            ("sources", "patients", "agree", "share", "Cohen's kappa"),
            (
                (
                    f"{pair.first} and {pair.second}",
                    pair.patients,
                    pair.agreeing,
                    f"{pair.agreeing / pair.patients:.1%}" if pair.patients else "",
                    "" if math.isnan(pair.kappa) else f"{pair.kappa:.3f}",
                )
                for pair in report.pairs
            ),
            console=console,
        )
    discordant = [patient for patient in report.compared if patient.discordant]
    if discordant:
        console.print()
        print_table(
            "Discordant patients",
            ("patient", *names, "label"),
            (
                (
                    patient.patient_id,
                    *(_value_and_call(patient, name) for name in names),
                    report.labels.get(patient.patient_id, "none"),
                )
                # First those of whom every source speaks.
                for patient in sorted(discordant, key=lambda p: (-len(p.calls), p.patient_id))
            ),
            console=console,
        )
    console.print()
    for line in _in_words(report):
        console.print(line, highlight=False)


def _print_sources(report: LabelReport, console: Console) -> None:
    def called(name: str, label: str | None) -> int:
        return sum(patient.calls.get(name) == label for patient in report.patients)

    print_table(
        "Sources",
        ("source", "column", "read as", NEGATIVE, POSITIVE, "no call"),
        (
            (
                source.name,
                column,
                source.reading,
                called(source.name, NEGATIVE),
                called(source.name, POSITIVE),
                called(source.name, None),
            )
            for column, source in report.sources.items()
        ),
        console=console,
    )


def _value_and_call(patient: PatientCalls, name: str) -> str:
    if name not in patient.values:
        return "-"
    return f"{patient.values[name]} ({patient.calls.get(name, 'no call')})"


def _in_words(report: LabelReport) -> list[str]:
    lines: list[str] = []
    for patients, who in (
        (report.complete, f"called by all {len(report.sources)} sources"),
        (report.compared, "called by two or more"),
    ):
        if len(report.sources) > 1 and not (patients == report.complete and lines):
            differ = sum(patient.discordant for patient in patients)
            share = f" ({differ / len(patients):.1%})" if patients else ""
            lines.append(f"Of {len(patients)} patients {who}, {differ}{share} are discordant.")
    counts = Counter(report.labels.values())
    lines.append(
        f"Rule {report.rule}: {len(report.labels)} of {len(report.patients)} patients have a "
        f"label, {counts[NEGATIVE]} {NEGATIVE} and {counts[POSITIVE]} {POSITIVE}."
    )
    without = [p for p in report.patients if p.patient_id not in report.labels]
    torn = len(report.problems)
    silent = sum(not patient.calls for patient in without) - torn
    if without:
        lines.append(
            f"Without a label: {silent} whom no source calls, {len(without) - silent - torn} by "
            "the rule" + (f", {torn} with two labels by one source." if torn else ".")
        )
    return lines
