"""Leakage that can be told from tables: patients, slides and weights that roles have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medkd.config.data import LeakageKind
from medkd.datasets.split_schemes import ROLES
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError

_EXAMPLES = 20

# The first three parts of a TCGA barcode name the patient; what follows a sample, slide or scan.
_TCGA_CASE = re.compile(r"^tcga-[a-z0-9]{2}-[a-z0-9]{4}(?=$|-)")


@dataclass(frozen=True)
class Finding:
    """One thing that two roles share.

    Attributes:
        kind: as ``data.allow_leakage`` names it.
        what: in words, with an example.
        count: of patients, slides or tiles.
        examples: up to 20, each what stands in either role.
    """

    kind: LeakageKind
    what: str
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Weights:
    """A file of weights that a network starts from.

    Attributes:
        file: its path.
        known: a run of medkd wrote it, and its report of the audit is there.
        seen: role (train, validation) to the patients that the run had, itself or through weights
            of its own.
    """

    file: Path
    known: bool
    seen: Mapping[str, frozenset[str]] = field(
        default_factory=lambda: {"train": frozenset(), "validation": frozenset()}
    )


def person(name: str) -> str:
    """What is left of a patient's id when case, separators and TCGA's sample codes are dropped."""
    plain = re.sub(r"[\s._-]+", "-", name.strip().casefold()).strip("-")
    case = _TCGA_CASE.match(plain)
    return case[0] if case else plain


def read_weights(path: Path) -> Weights:
    """What is known of the patients behind a file of weights.

    Raises:
        StageError: the report of the run that it lies in cannot be read.
    """
    # runs/<name>/networks/<file> or runs/<name>/checkpoints/epoch-NNN/<file>
    for folder in path.resolve().parents[1:4]:
        report = folder / "leakage.json"
        try:
            seen = json.loads(report.read_text(encoding="utf-8"))["seen"]
            return Weights(
                path, True, {role: frozenset(seen[role]) for role in ("train", "validation")}
            )
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(
                f"is no report of a leakage audit: {error}",
                where=report,
                remedy="Run 'medkd train' of that run again; it writes the report anew.",
            ) from None
    return Weights(path, False)


def origin_findings(
    split: pd.DataFrame,
    rows: Sequence[SlideRow],
    fingerprints: Mapping[str, str],
    weights: Sequence[Weights] = (),
) -> list[Finding]:
    """Patients, slides and weights that roles share.

    Args:
        split: patient_id, role.
        rows: of slides.csv.
        fingerprints: slide to the fingerprint of its file, where known.
        weights: that the run starts from.
    """
    return [
        *_shared_patients(split, rows),
        *_shared_slides(split, rows, fingerprints),
        *(finding for of_weights in weights for finding in _seen_by(of_weights, split)),
    ]


def _shared_patients(split: pd.DataFrame, rows: Sequence[SlideRow]) -> list[Finding]:
    """The same patient in two roles: under one id, or under ids that mean the same person."""
    roles = sorted(set(zip(split["patient_id"], split["role"], strict=True)))
    names: dict[str, set[str]] = {patient: {person(patient)} for patient, _ in roles}
    for row in rows:
        case = _TCGA_CASE.match(person(row.slide_id))
        if case and row.patient_id in names:
            names[row.patient_id].add(case[0])
    entries = [(name, role, patient) for patient, role in roles for name in names[patient]]
    findings = []
    for one, other, pairs in _across_roles(entries):
        choosing = (one, other) == ("validation", "test")
        twice = [pair for pair in pairs if choosing and pair[0] == pair[1]]
        others = [pair for pair in pairs if pair not in twice]
        if twice:
            findings.append(_finding("validation_used_for_test", "who chooses also tests", twice))
        if others:
            findings.append(
                _finding("shared_patients", f"{one} and {other} share patients", others)
            )
    return findings


def _shared_slides(
    split: pd.DataFrame, rows: Sequence[SlideRow], fingerprints: Mapping[str, str]
) -> list[Finding]:
    """One file, or two copies of it, under patients of two roles."""
    role_of = dict(zip(split["patient_id"], split["role"], strict=True))
    entries = []
    for row in rows:
        if row.patient_id not in role_of:
            continue
        marks = {str(row.path.resolve()), fingerprints.get(row.slide_id, "")} - {""}
        entries += [(mark, role_of[row.patient_id], row.slide_id) for mark in marks]
    return [
        _finding("shared_slides", f"{one} and {other} share slides", pairs)
        for one, other, pairs in _across_roles(entries)
    ]


def _seen_by(weights: Weights, split: pd.DataFrame) -> list[Finding]:
    """A network that starts from what learnt or chose by patients who are to test it."""
    role_of = {person(p): (p, r) for p, r in zip(split["patient_id"], split["role"], strict=True)}
    findings = []
    uses: tuple[tuple[str, LeakageKind, tuple[str, ...]], ...] = (
        ("train", "seen_by_weights", ("validation", "test")),
        ("validation", "validation_used_for_test", ("test",)),
    )
    for role, kind, later in uses:
        known = {person(patient): patient for patient in weights.seen[role]}
        for now in later:
            pairs = [
                (patient, role_of[name][0])
                for name, patient in sorted(known.items())
                if name in role_of and role_of[name][1] == now
            ]
            if pairs:
                told = "trained on" if role == "train" else "were chosen by"
                words = f"the weights {weights.file} {told} {now} patients"
                findings.append(_finding(kind, words, pairs))
    return findings


def _across_roles(
    entries: Iterable[tuple[str, str, str]],
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Pairs of members with the same mark in two roles.

    Args:
        entries: (mark, role, member).

    Returns:
        (role, later role, sorted pairs of members) of the roles that share a mark.
    """
    by_mark: dict[str, dict[str, set[str]]] = {}
    for mark, role, member in entries:
        by_mark.setdefault(mark, {}).setdefault(role, set()).add(member)
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for roles in by_mark.values():
        present = sorted(roles, key=ROLES.index)
        for index, one in enumerate(present):
            for other in present[index + 1 :]:
                pairs = found.setdefault((one, other), set())
                pairs |= {(a, b) for a in roles[one] for b in roles[other]}
    return [(one, other, sorted(pairs)) for (one, other), pairs in sorted(found.items())]


def _finding(kind: LeakageKind, words: str, pairs: Sequence[tuple[str, str]]) -> Finding:
    one, other = pairs[0]
    example = one if one == other else f"{one} and {other}"
    return Finding(
        kind, f"{words} ({len(pairs)}), such as {example}", len(pairs), tuple(pairs[:_EXAMPLES])
    )
