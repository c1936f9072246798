"""The split stage, and how later stages read what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkd.config import Config
from medkd.datasets.box_split import image_groups
from medkd.datasets.patients import Patient, patients_of
from medkd.datasets.split_file import read_role_table
from medkd.datasets.split_schemes import ROLES, make_folds, sites_with_every_class
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError
from medkd.files import atomic_path, make_folder
from medkd.importers.box_table import read_boxes
from medkd.progress import warn
from medkd.slides.imported_tiles import read_import_record

__all__ = ["ROLES", "SplitSummary", "check_split", "read_split", "run_split_stage"]


def read_split(path: Path, fold: int = 0) -> pd.DataFrame:
    """Read one fold of splits.parquet: patient_id, label, role.

    Raises:
        StageError: it is absent, not a split, or has no such fold.
    """
    folds = _read_folds(path)
    count = int(folds["fold"].max()) + 1
    if fold >= count:
        raise StageError(
            f"has no fold {fold}, only {'fold 0' if count == 1 else f'0 to {count - 1}'}",
            where=path,
            remedy="Choose one of these as split.fold.",
        )
    chosen = folds.loc[folds["fold"] == fold, ["patient_id", "label", "role"]]
    return chosen.reset_index(drop=True)


def _read_folds(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise StageError("no split yet", where=path, remedy="Run 'medkd split' first.")
    try:
        table = pd.read_parquet(path)
        if "fold" not in table.columns:
            # A split that was published with a data set, or made before there were folds.
            table["fold"] = 0
        if not len(table):
            raise ValueError("it is empty")
        return table[["patient_id", "label", "fold", "role"]]
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
    """What the terminal shows.

    Attributes:
        counts: of each fold, role to class to number of patients.
        test_sites: of each fold, the sites of its test patients; empty where sites play no part.
        kept: an equal split was there already.
    """

    counts: tuple[dict[str, dict[str, int]], ...]
    test_sites: tuple[tuple[str, ...], ...]
    kept: bool


def run_split_stage(rows: Sequence[SlideRow], config: Config) -> SplitSummary:
    """Split the patients of ``rows``, or images with boxes, and write splits.parquet.

    Raises:
        StageError: too few patients or sites, or another split is there, which runs were trained
            on or which imported tiles were published with.
        TableError: the user's table of roles cannot be used.
    """
    patients, split = _of_boxes(config) if config.task == "detection" else _of_slides(rows, config)
    path = config.splits_file
    kept = path.exists() and _read_folds(path).equals(split)
    if path.exists() and not kept:
        _refuse_another(config)
    if not kept:
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            split.to_parquet(temporary, index=False)
    if config.split.scheme == "leave_one_site_out":
        _tell_of_sites_never_left_out(patients, config)
    return _summary(split, patients, kept)


def _of_slides(rows: Sequence[SlideRow], config: Config) -> tuple[Sequence[Patient], pd.DataFrame]:
    where = config.data.slides
    patients = patients_of(rows, with_sites=config.split.needs_sites, where=where)
    if config.split.file is not None:
        return patients, read_role_table(config.split.file, patients)
    return patients, make_folds(patients, config.split, config.seed, where=where)


def _of_boxes(config: Config) -> tuple[Sequence[Patient], pd.DataFrame]:
    """Images that show nearly the same get one role, unless a file gives the roles."""
    where = config.detection.boxes
    if config.split.needs_sites:
        raise StageError(
            "images with boxes have no sites, and the split goes by sites",
            where=where,
            remedy="Choose another split.scheme.",
        )
    groups = image_groups(read_boxes(where))
    if config.split.file is not None:
        members = [Patient(name, groups.classes[group]) for name, group in groups.group_of.items()]
        return members, read_role_table(config.split.file, members)
    patients = groups.patients()
    return patients, groups.spread(make_folds(patients, config.split, config.seed, where=where))


def _refuse_another(config: Config) -> None:
    """Raise where the split that is there must not be replaced."""
    path = config.splits_file
    runs = sorted(p.parent.name for p in (config.output / "runs").glob("*/checkpoints"))
    if runs:
        raise StageError(
            f"another split is there, and {', '.join(runs)} was trained on it",
            where=path,
            remedy="Choose another output folder, so that no test patient of one split is "
            "a training patient of the other.",
        )
    imported = read_import_record(config.tiles_folder)
    if imported is not None and imported.published_split:
        raise StageError(
            "the split that the tiles were published with is there",
            where=path,
            remedy="Go on with 'medkd train'; to draw another one, remove this file first.",
        )


def _tell_of_sites_never_left_out(patients: Sequence[Patient], config: Config) -> None:
    inside = [p for p in patients if p.site not in config.split.external_sites]
    never = {p.site for p in inside} - set(sites_with_every_class(inside))
    if never:
        warn(
            f"a class has no patient at {', '.join(sorted(never))}: never left out, in train or "
            "validation in every fold."
        )


def _summary(split: pd.DataFrame, patients: Sequence[Patient], kept: bool) -> SplitSummary:
    site = {patient.patient_id: patient.site for patient in patients}
    counts, sites = [], []
    for _, fold in split.groupby("fold"):
        table = pd.crosstab(fold["role"], fold["label"])
        counts.append({r: {str(k): int(v) for k, v in table.loc[r].items()} for r in ROLES})
        of_test = fold.loc[fold["role"] == "test", "patient_id"].map(site)
        sites.append(tuple(sorted(set(of_test) - {""})))
    return SplitSummary(tuple(counts), tuple(sites), kept)
