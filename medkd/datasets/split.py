"""Who trains, who chooses, who is tested: roles are given to patients, stratified by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.config import Config, SplitConfig
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError
from medkd.files import atomic_path, make_folder
from medkd.slides.imported_tiles import read_import_record

ROLES = ("train", "validation", "test")


def split_patients(
    patients: Mapping[str, str], config: SplitConfig, seed: int, *, where: object = "slides.csv"
) -> pd.DataFrame:
    """Give each patient a role.

    Args:
        patients: patient id to label.
        config: the shares.
        seed: the same seed gives the same roles, whatever the order of ``patients``.
        where: named in the error.

    Returns:
        A table with the columns patient_id, label, role, sorted by patient. In each class each
        role has its share within one patient, and at least one patient.

    Raises:
        StageError: a class has fewer than three patients.
    """
    roles: dict[str, str] = {}
    for number, label in enumerate(sorted(set(patients.values()))):
        members = sorted(p for p, of in patients.items() if of == label)
        if len(members) < len(ROLES):
            raise StageError(
                f"class {label} has {len(members)} patient{'s' * (len(members) != 1)}, and each "
                "of train, validation and test needs one",
                where=where,
                remedy="Add patients of that class.",
            )
        order = np.random.default_rng((seed, number)).permutation(len(members))
        counts = _apportion(len(members), (config.train, config.validation, config.test))
        drawn = iter(order)
        for role, count in zip(ROLES, counts, strict=True):
            for _ in range(count):
                roles[members[next(drawn)]] = role
    return pd.DataFrame(
        {
            "patient_id": sorted(patients),
            "label": [patients[p] for p in sorted(patients)],
            "role": [roles[p] for p in sorted(patients)],
        }
    )


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers nearest to ``shares`` of ``total`` (largest remainders), none of them zero."""
    ideal = [share * total for share in shares]
    counts = [int(value) for value in ideal]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - ideal[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def read_split(path: Path) -> pd.DataFrame:
    """Read splits.parquet.

    Raises:
        StageError: it is absent, or not a split.
    """
    if not path.exists():
        raise StageError("no split yet", where=path, remedy="Run 'medkd split' first.")
    try:
        return pd.read_parquet(path, columns=["patient_id", "label", "role"])
    except Exception as error:
        raise StageError(
            f"is not a split: {str(error)[:200]}",
            where=path,
            remedy="Remove the file and run 'medkd split' again.",
        ) from None


def check_split(
    split: pd.DataFrame, rows: Sequence[SlideRow], *, where: object = "splits.parquet"
) -> None:
    """Check that the split is one of these patients and leaks none of them.

    Raises:
        StageError: a patient has two roles or none, or another label than in slides.csv.
    """
    remedy = "Remove the file and run 'medkd split' again; runs trained on it are then void."
    twice = split.loc[split["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise StageError(f"patient '{twice.iloc[0]}' has two roles", where=where, remedy=remedy)
    unknown = set(split["role"]) - set(ROLES)
    if unknown:
        raise StageError(f"unknown role '{min(unknown)}'", where=where, remedy=remedy)
    label_of = dict(zip(split["patient_id"], split["label"], strict=True))
    for row in rows:
        if row.patient_id not in label_of:
            raise StageError(f"patient '{row.patient_id}' has no role", where=where, remedy=remedy)
        if label_of[row.patient_id] != row.label:
            raise StageError(
                f"patient '{row.patient_id}' was {label_of[row.patient_id]} when the split was "
                f"made and is {row.label} now",
                where=where,
                remedy=remedy,
            )


@dataclass(frozen=True)
class SplitSummary:
    """Patients by role and class; ``kept`` where an equal split was there already."""

    counts: dict[str, dict[str, int]]
    kept: bool


def run_split_stage(rows: Sequence[SlideRow], config: Config) -> SplitSummary:
    """Split the patients of ``rows`` and write splits.parquet.

    Raises:
        StageError: too few patients, or another split is there, which runs were trained on or
            which imported tiles were published with.
    """
    patients = {row.patient_id: row.label for row in rows}
    split = split_patients(patients, config.split, config.seed, where=config.data.slides)
    path = config.splits_file
    kept = False
    if path.exists():
        kept = read_split(path).equals(split)
        runs = sorted(p.parent.name for p in (config.output / "runs").glob("*/checkpoints"))
        if not kept and runs:
            raise StageError(
                f"another split is there, and {', '.join(runs)} was trained on it",
                where=path,
                remedy="Choose another output folder, so that no test patient of one split is "
                "a training patient of the other.",
            )
        imported = read_import_record(config.tiles_folder)
        if not kept and imported is not None and imported.published_split:
            raise StageError(
                "the split that the tiles were published with is there",
                where=path,
                remedy="Go on with 'medkd train'; to draw another one, remove this file first.",
            )
    if not kept:
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            split.to_parquet(temporary, index=False)
    table = pd.crosstab(split["role"], split["label"])
    return SplitSummary(
        {role: {str(k): int(v) for k, v in table.loc[role].items()} for role in ROLES}, kept
    )
