"""Labels from several sources: what each calls a patient, where they differ, and which counts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medkd.errors import ConfigError, TableError
from medkd.importers.foreign_tables import PATIENT_COLUMNS, ForeignTable, find_column
from medkd.importers.problems import Problem

NEGATIVE, POSITIVE = "MSS", "MSI"


@dataclass(frozen=True)
class Threshold:
    """Calls from a score: from ``high`` on positive, below ``low`` negative, between them none."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{POSITIVE} from {self.high:g}"
        return f"{POSITIVE} from {self.high:g}, {NEGATIVE} below {self.low:g}"

    def call(self, text: str) -> str | None:
        """The call, or None between the two; raises ValueError where ``text`` is no number."""
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return POSITIVE if value >= self.high else NEGATIVE if value < self.low else None


@dataclass(frozen=True)
class Statuses:
    """Calls from words, such as MSI-H; compared without regard to case."""

    label_of: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{word} is {label}" for word, label in self.label_of.items())

    def call(self, text: str) -> str | None:
        """The call; raises ValueError where the word is not known."""
        for word, label in self.label_of.items():
            if word.casefold() == text.casefold():
                return label
        raise ValueError(text)


@dataclass(frozen=True)
class LabelSource:
    """One source: the names that its column goes by, and how a cell becomes a label."""

    name: str
    columns: tuple[str, ...]
    reading: Threshold | Statuses


KNOWN_SOURCES = (
    LabelSource(
        "liu",
        ("liu2018_MSIStatus", "MSI_STATUS", "MSIStatus", "MSI Status"),
        # MSI-L is taken for stable, as in the clinic: Boland and Goel, Gastroenterology 2010,
        # doi:10.1053/j.gastro.2009.12.064.
        Statuses({"MSI-H": POSITIVE, "MSI-L": NEGATIVE, "MSS": NEGATIVE}),
    ),
    LabelSource(
        "mantis",
        ("pancan_MANTIS", "MSI_SCORE_MANTIS", "MSI MANTIS Score"),
        # Kautto et al., Oncotarget 2017, doi:10.18632/oncotarget.13918.
        Threshold(0.4, 0.4),
    ),
    LabelSource(
        "msisensor",
        ("pancan_MSIsensor", "MSI_SENSOR_SCORE", "MSIsensor Score"),
        # Middha et al., JCO Precision Oncology 2017, doi:10.1200/PO.17.00084.
        Threshold(10.0, 10.0),
    ),
)
"""Sources that are found by the names of their columns."""


def parse_source(text: str) -> LabelSource:
    """A source as the command line gives it.

    ``NAME=COLUMN:0.4`` (positive from 0.4), ``NAME=COLUMN:0.4..0.6`` (no call between),
    ``NAME=COLUMN:MSI-H=MSI,MSS=MSS``, or ``NAME=COLUMN`` for a known source or one whose words are
    MSI-H, MSI-L, MSI, MSS.

    Raises:
        ConfigError: it is none of these.
    """
    where = f"--source {text}"
    name, equals, rest = text.partition("=")
    column, colon, reading = rest.partition(":")
    if not (name and equals and column and (reading or not colon)):
        raise ConfigError(
            "is not NAME=COLUMN:READING",
            where=where,
            remedy="Write for example mantis=MANTIS_SCORE:0.4 or ihc=MMR:dMMR=MSI,pMMR=MSS.",
        )
    if not colon:
        known = {source.name: source.reading for source in KNOWN_SOURCES}
        words = {"MSI-H": POSITIVE, "MSI": POSITIVE, "MSI-L": NEGATIVE, "MSS": NEGATIVE}
        return LabelSource(name, (column,), known.get(name, Statuses(words)))
    if "=" in reading:
        pairs = [pair.partition("=")[::2] for pair in reading.split(",")]
        for word, label in pairs:
            if label not in (NEGATIVE, POSITIVE) or not word:
                raise ConfigError(
                    f"'{word}={label}' gives a word no label",
                    where=where,
                    remedy=f"Write WORD={NEGATIVE} or WORD={POSITIVE}.",
                )
        return LabelSource(name, (column,), Statuses(dict(pairs)))
    low, _, high = reading.partition("..")
    try:
        threshold = Threshold(float(low), float(high or low))
    except ValueError:
        threshold = Threshold(math.nan, math.nan)
    if not threshold.low <= threshold.high:
        raise ConfigError(
            f"'{reading}' is no threshold",
            where=where,
            remedy="Write one number, such as 0.4, or two, such as 0.4..0.6.",
        )
    return LabelSource(name, (column,), threshold)


@dataclass(frozen=True)
class PatientCalls:
    """What the sources say of one patient. Sources that say nothing are not in it."""

    patient_id: str
    values: Mapping[str, str]
    calls: Mapping[str, str]

    @property
    def discordant(self) -> bool:
        """At least two sources call the patient, and not all the same."""
        return len(set(self.calls.values())) > 1


def gather_calls(
    tables: Sequence[ForeignTable],
    sources: Sequence[LabelSource],
    *,
    patient_column: str | None = None,
) -> tuple[dict[str, LabelSource], list[PatientCalls], list[Problem]]:
    """Every patient of ``tables`` with the calls of every source that is found in them.

    Args:
        tables: joined by patient.
        sources: known ones whose column is in no table are left out.
        patient_column: its name; where not given, the known names are looked for.

    Returns:
        The sources that were found, by column; the patients, sorted; and the patients for whom one
        source has two values that give two calls: these have no calls at all.

    Raises:
        ConfigError: a source that is none of the known ones is in no table.
        TableError: no source is found, one is found in two columns, or a cell cannot be read.
    """
    places = _places(tables, sources)
    texts: dict[str, dict[str, dict[str, str]]] = {}
    for table in tables:
        key = find_column(
            table, patient_column, PATIENT_COLUMNS, what="patients", option="--patient-column"
        )
        for row in table.rows:
            patient = row.cells[key]
            if not patient:
                raise TableError(
                    f"'{key}' is empty", where=table.where(row), remedy="Name the patient."
                )
            seen = texts.setdefault(patient, {})
            for of, column, source in places:
                if of is table and row.cells[column]:
                    call = _call(source, row.cells[column], f"{table.where(row)}, '{column}'")
                    # A dictionary, so that the same value on two rows stands once.
                    seen.setdefault(source.name, {})[row.cells[column]] = call or ""
    patients, problems = [], []
    for patient, of_source in sorted(texts.items()):
        two = next((name for name, said in of_source.items() if len(set(said.values())) > 1), None)
        if two:
            problems.append(
                Problem(
                    "two_labels",
                    f"patient {patient}",
                    f"has two labels by '{two}': "
                    + " and ".join(
                        f"{value} ({call or 'no call'})" for value, call in of_source[two].items()
                    ),
                    "Keep the row that is right, or leave the patient out.",
                )
            )
        patients.append(
            PatientCalls(
                patient,
                {name: " and ".join(said) for name, said in of_source.items()},
                {}
                if two
                else {
                    name: call
                    for name, said in of_source.items()
                    for call in list(said.values())[:1]
                    if call
                },
            )
        )
    return {column: source for _, column, source in places}, patients, problems


def _places(
    tables: Sequence[ForeignTable], sources: Sequence[LabelSource]
) -> list[tuple[ForeignTable, str, LabelSource]]:
    found: list[tuple[ForeignTable, str, LabelSource]] = []
    for source in sources:
        here = []
        for table in tables:
            try:
                column = find_column(table, None, source.columns, what="labels", option="--source")
            except TableError:
                continue
            here.append((table, column, source))
        if len(here) > 1:
            raise TableError(
                f"'{source.name}' is also in {here[0][0].path}",
                where=here[1][0].path,
                remedy=f"Choose one of the columns with --source {source.name}=COLUMN.",
            )
        if not here and source not in KNOWN_SOURCES:
            columns = ", ".join(name for table in tables for name in table.columns)
            raise ConfigError(
                f"no table has a column '{source.columns[0]}'",
                where=f"--source {source.name}",
                remedy=f"There are: {columns}.",
            )
        found += here
    if not found:
        raise TableError(
            "holds no source of labels that is known",
            where=", ".join(str(table.path) for table in tables),
            remedy="Name one with --source NAME=COLUMN:READING.",
        )
    return found


def _call(source: LabelSource, text: str, where: str) -> str | None:
    try:
        return source.reading.call(text)
    except ValueError:
        raise TableError(
            f"'{text}' is no value of '{source.name}' ({source.reading})",
            where=where,
            remedy="Mend the cell, or say how to read it with "
            f"--source {source.name}=COLUMN:READING.",
        ) from None


@dataclass(frozen=True)
class Agreement:
    """Two sources on the patients that both call. ``kappa``: Cohen's; NaN where undefined."""

    first: str
    second: str
    patients: int
    agreeing: int
    kappa: float


def agreement(patients: Sequence[PatientCalls], names: Sequence[str]) -> list[Agreement]:
    """The agreement of every two sources.

    Kappa is agreement beyond chance: 0 where two sources agree as often as their shares of positive
    calls make likely, 1 where they always agree (Cohen, Educational and Psychological Measurement
    1960; computed by scikit-learn).
    """
    from sklearn.metrics import cohen_kappa_score

    found = []
    for first, second in itertools.combinations(names, 2):
        both = [
            (patient.calls[first], patient.calls[second])
            for patient in patients
            if first in patient.calls and second in patient.calls
        ]
        # Undefined without both classes, where chance alone explains everything.
        varied = len({call for pair in both for call in pair}) > 1
        kappa = float(cohen_kappa_score(*zip(*both, strict=True))) if varied else math.nan
        found.append(Agreement(first, second, len(both), sum(a == b for a, b in both), kappa))
    return found


@dataclass(frozen=True)
class Rule:
    """How calls become one label.

    ``consensus``: what most sources say. ``exclude-discordant``: what all say. ``source``: what
    the source of that name says, whatever the others do.
    """

    kind: Literal["consensus", "exclude-discordant", "source"]
    source: str = ""

    def __str__(self) -> str:
        return f"source={self.source}" if self.kind == "source" else self.kind

    def label(self, patient: PatientCalls) -> str | None:
        """The patient's label, or None where the rule gives none."""
        if self.kind == "source":
            return patient.calls.get(self.source)
        ranked = Counter(patient.calls.values()).most_common(2)
        if not ranked or (self.kind == "exclude-discordant" and patient.discordant):
            return None
        tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        return None if tied else ranked[0][0]


def parse_rule(text: str, names: Sequence[str]) -> Rule:
    """``consensus``, ``exclude-discordant`` or ``source=NAME``.

    Raises:
        ConfigError: it is none of these, or there is no such source.
    """
    plain = text.strip().replace(" ", "-")
    if plain == "consensus":
        return Rule("consensus")
    if plain == "exclude-discordant":
        return Rule("exclude-discordant")
    kind, _, source = plain.partition("=")
    if kind == "source" and source in names:
        return Rule("source", source)
    raise ConfigError(
        f"there is no source '{source}'" if kind == "source" else "unknown rule",
        where=f"--rule {text}",
        remedy="Use consensus, exclude-discordant or "
        + " or ".join(f"source={name}" for name in names)
        + ".",
    )
