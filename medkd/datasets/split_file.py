"""A split of the user's own: a table that gives each patient a role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medkd.datasets.patients import Patient
from medkd.datasets.split_schemes import ROLES
from medkd.errors import TableError
from medkd.progress import warn


def read_role_table(path: Path, patients: Sequence[Patient]) -> pd.DataFrame:
    """Read a table of patient_id, role and, where there are several, fold (from 0).

    Args:
        path: CSV in UTF-8, or parquet such as another experiment's splits.parquet. Columns of
            other names are not looked at.
        patients: who must have a role in every fold. Others in the table are left out, with a
            warning.

    Returns:
        As :func:`medkd.datasets.split_schemes.make_folds`.

    Raises:
        TableError: it cannot be read; a patient has no role or two in a fold; a role or a fold is
            missing or unknown.
    """
    table = _read(path)
    known = {patient.patient_id for patient in patients}
    strangers = table.loc[~table["patient_id"].isin(known), "patient_id"].nunique()
    if strangers:
        warn(f"{path}: {strangers} patients are not in the table of slides, and are left out.")
    table = table[table["patient_id"].isin(known)].drop_duplicates()
    folds = sorted(set(table["fold"]))
    if folds != list(range(len(folds))) or not folds:
        raise TableError(
            f"has the folds {', '.join(map(str, folds))}" if folds else "has no role of a patient",
            where=path,
            remedy="Number the folds from 0 on, without a gap, and give every patient a role.",
        )
    for fold in folds:
        _check_fold(table[table["fold"] == fold], known, f"fold {fold}", path)
    table["label"] = table["patient_id"].map({p.patient_id: p.label for p in patients})
    columns = ["patient_id", "label", "fold", "role"]
    return table.sort_values(["fold", "patient_id"], ignore_index=True)[columns]


def _check_fold(table: pd.DataFrame, known: set[str], fold: str, path: Path) -> None:
    twice = table[table["patient_id"].duplicated(keep=False)]
    if len(twice):
        first = min(twice["patient_id"])
        roles = sorted(set(twice.loc[twice["patient_id"] == first, "role"]), key=ROLES.index)
        raise TableError(
            f"{twice['patient_id'].nunique()} patients have two roles in {fold}, such as "
            f"'{first}': {' and '.join(roles)}",
            where=path,
            remedy="Give each patient one role in a fold; who validates cannot test.",
        )
    missing = known - set(table["patient_id"])
    if missing:
        raise TableError(
            f"patient '{min(missing)}' has no role in {fold}",
            where=path,
            remedy="Give every patient of the table of slides a role in every fold.",
        )
    for role in ROLES:
        if role not in set(table["role"]):
            raise TableError(
                f"{fold} has no {role} patient", where=path, remedy="Give each role some patients."
            )


def _read(path: Path) -> pd.DataFrame:
    remedy = "Set split.file to a table with the columns patient_id and role."
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise TableError("no such file", where=path, remedy=remedy) from None
    except (OSError, ValueError) as error:
        # What pandas and pyarrow raise are kinds of these.
        raise TableError(f"cannot be read: {str(error)[:200]}", where=path, remedy=remedy) from None
    for column in ("patient_id", "role"):
        if column not in table.columns:
            raise TableError(f"the column '{column}' is missing", where=path, remedy="Add it.")
    table["role"] = table["role"].astype(str).str.strip()
    table["patient_id"] = table["patient_id"].astype(str).str.strip()
    unknown = set(table["role"]) - set(ROLES)
    if unknown:
        raise TableError(
            f"unknown role '{min(unknown)}'", where=path, remedy=f"Use {', '.join(ROLES)}."
        )
    try:
        table["fold"] = table["fold"].astype("int64") if "fold" in table.columns else 0
    except (ValueError, TypeError):
        raise TableError(
            "a fold is not a whole number", where=path, remedy="Number the folds from 0 on."
        ) from None
    return table[["patient_id", "fold", "role"]]
