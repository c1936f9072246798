"""Ways of scoring the same test patients: the poolings of a run, and what other runs ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.errors import StageError
from medkd.slide_level.pairing import paired_rows

POOLINGS_FILE = "patient_poolings.parquet"
_COLUMNS = (
    "pooling",
    "shipped",
    "patient_id",
    "role",
    "label",
    "tiles",
    "score",
    "probability",
    "threshold",
)
AGGREGATE_AGAIN = "Run 'medkd aggregate' again."


@dataclass(frozen=True)
class ScoredModel:
    """One way of scoring the test patients: a pooling of this run, or what another run ships.

    Attributes:
        name: of the pooling, or of the other run.
        scores: before calibration, float64, (patients,).
        probabilities: calibrated on its own validation patients, float64, (patients,).
        threshold: its operating point, on the probability.
    """

    name: str
    scores: np.ndarray
    probabilities: np.ndarray
    threshold: float


def read_poolings(folder: Path) -> pd.DataFrame:
    """``patient_poolings.parquet`` of a run, checked by itself.

    Raises:
        StageError: it is absent, cannot be read, names no shipped pooling or several, has no test
            patients, or holds a value that is no probability.
    """
    path = folder / POOLINGS_FILE
    table = read_aggregated(path, _COLUMNS)
    shipped = table.loc[table["shipped"], "pooling"].unique()
    if len(shipped) != 1:
        raise StageError(
            f"{len(shipped)} poolings are shipped, not one", where=path, remedy=AGGREGATE_AGAIN
        )
    for column in ("score", "probability", "threshold"):
        wrong = table[~np.isfinite(table[column].to_numpy(np.float64))]
        if len(wrong):
            row = wrong.iloc[0]
            raise StageError(
                f"the {column} of patient '{row['patient_id']}' by {row['pooling']} is not a "
                f"number ({len(wrong)} such in all)",
                where=path,
                remedy="Look at predictions.parquet, then run 'medkd aggregate' again.",
            )
    outside = table[(table["probability"] < 0) | (table["probability"] > 1)]
    if len(outside):
        raise StageError(
            f"the probability of patient '{outside['patient_id'].iloc[0]}' is not between 0 and 1",
            where=path,
            remedy=AGGREGATE_AGAIN,
        )
    tested = table[table["role"] == "test"]
    if not len(tested):
        raise StageError("has no test patient", where=path, remedy=AGGREGATE_AGAIN)
    twice = tested[tested.duplicated(["pooling", "patient_id"])]
    if len(twice):
        raise StageError(
            f"patient '{twice['patient_id'].iloc[0]}' comes twice",
            where=path,
            remedy=AGGREGATE_AGAIN,
        )
    everyone = set(tested["patient_id"])
    for name, of_pooling in tested.groupby("pooling"):
        if set(of_pooling["patient_id"]) != everyone or of_pooling["threshold"].nunique() != 1:
            raise StageError(
                f"the pooling {name} has other patients than the others, or several thresholds",
                where=path,
                remedy=AGGREGATE_AGAIN,
            )
    # A stable sort keeps the order of poolings and of patients, with what ships in front.
    return table.sort_values("shipped", ascending=False, kind="stable", ignore_index=True)


def scored_model(name: str, table: pd.DataFrame, order: np.ndarray) -> ScoredModel:
    """The rows of one pooling, patients in the order of ``order``."""
    table = table.set_index("patient_id").loc[order]
    return ScoredModel(
        name,
        table["score"].to_numpy(np.float64),
        table["probability"].to_numpy(np.float64),
        float(table["threshold"].iloc[0]),
    )


def other_run(name: str, config: Config, first: pd.DataFrame) -> ScoredModel:
    """What another run ships, on the same test patients.

    Args:
        name: of a run in the same output folder, or a run's folder.
        config: the experiment that is evaluated.
        first: its shipped pooling's test patients, as :func:`read_poolings` has them.

    Raises:
        StageError: there is no such run, it is this one, it is not aggregated, or it was tested on
            other patients or labels.
    """
    folder = config.run_folder.parent / name
    if not folder.is_dir():
        folder = Path(name)
    if not folder.is_dir():
        there = sorted(path.name for path in config.run_folder.parent.iterdir() if path.is_dir())
        raise StageError(
            "is neither a run of this output nor a folder",
            where=f"--against {name}",
            remedy=f"Runs here: {', '.join(there)}.",
        )
    if folder.resolve() == config.run_folder.resolve():
        raise StageError(
            "is the run that is evaluated", where=f"--against {name}", remedy="Name another run."
        )
    other = read_poolings(folder)
    other = other[other["shipped"] & (other["role"] == "test")]
    columns = ["patient_id", "label", "score"]
    paired_rows(
        first[columns],
        other[columns],
        names=(config.run_name, name),
        where=f"--against {name}",
    )
    return scored_model(name, other, first["patient_id"].to_numpy())


def read_aggregated(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table that ``medkd aggregate`` wrote.

    Raises:
        StageError: it is absent or cannot be read.
    """
    if not path.exists():
        raise StageError(
            "no aggregation yet, or one of an earlier medkd",
            where=path,
            remedy="Run 'medkd aggregate' first.",
        )
    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError) as error:
        # What pandas and pyarrow raise are kinds of these.
        raise StageError(
            f"cannot be read: {str(error)[:200]}", where=path, remedy=AGGREGATE_AGAIN
        ) from None
