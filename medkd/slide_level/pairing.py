"""Two runs on the same patients, row by row, before they are compared."""

from __future__ import annotations

import pandas as pd

from medkd.errors import StageError


def paired_rows(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    key: str = "patient_id",
    names: tuple[str, str] = ("the first run", "the second run"),
    where: str = "comparison",
) -> pd.DataFrame:
    """Bring the scores of two runs into one table.

    Args:
        first, second: one row for each ``key``, with ``label`` and ``score``, in any order; rows
            of ``patient_calls.parquet`` or ``slide_calls.parquet`` of one network and role.
        key: ``patient_id`` or ``slide_id``.
        names: what to call the runs in messages.
        where: what is compared, for messages.

    Returns:
        The columns of ``first`` but ``score``, and ``first`` and ``second`` (scores), in the order
        of ``first``.

    Raises:
        StageError: a key comes twice, is in one run alone, or has another label in the other.
    """
    noun = key.removesuffix("_id")
    for table, name in zip((first, second), names, strict=True):
        twice = table[key].duplicated()
        if twice.any():
            raise StageError(
                f"{noun} '{table.loc[twice, key].iloc[0]}' comes twice in {name}",
                where=where,
                remedy="Choose one network and one role.",
            )
    for table, other, name in ((first, second, names[0]), (second, first, names[1])):
        alone = ~table[key].isin(other[key])
        if alone.any():
            raise StageError(
                f"{noun} '{table.loc[alone, key].iloc[0]}' is in {name} alone "
                f"({int(alone.sum())} such in all)",
                where=where,
                remedy="Compare runs that were tested on the same patients.",
            )
    theirs = second.set_index(key).loc[first[key]]
    differs = (theirs["label"].to_numpy() != first["label"].to_numpy()).nonzero()[0]
    if len(differs):
        row = int(differs[0])
        raise StageError(
            f"{noun} '{first[key].iloc[row]}' is {first['label'].iloc[row]} in {names[0]} and "
            f"{theirs['label'].iloc[row]} in {names[1]}",
            where=where,
            remedy="Aggregate both runs with the same slides.csv.",
        )
    pair = first.rename(columns={"score": "first"}).reset_index(drop=True)
    return pair.assign(second=theirs["score"].to_numpy())
