"""What the evaluation of a run reads, checked against the table of slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.datasets.split import check_split, read_split
from medkd.datasets.tables import SlideRow, read_slides
from medkd.errors import StageError, TooFewPatientsError
from medkd.slide_level.scored_models import (
    AGGREGATE_AGAIN,
    POOLINGS_FILE,
    ScoredModel,
    other_run,
    read_aggregated,
    read_poolings,
    scored_model,
)
from medkd.slide_level.stard import Flow, patient_flow
from medkd.slide_level.streaming import ENSEMBLE
from medkd.slides.imported_tiles import read_import_record
from medkd.slides.store import read_index

CALLS_FILE = "patient_calls.parquet"
_CALL_COLUMNS = ("patient_id", "role", "label", "network", "probability", "call")
# Calls and poolings are of one aggregation when their probabilities differ by rounding alone.
_ROUNDING = 1e-6
_FEWEST_OF_A_CLASS = 2


@dataclass(frozen=True)
class EvaluationInput:
    """A run's test patients, in one order throughout.

    Attributes:
        patient_ids: (patients,).
        truth: True for the positive class, bool, (patients,).
        poolings: the one that ships first.
        against: what other runs ship.
        flow: of all test patients of slides.csv.
        subgroups: for each column that slides.csv fills, ``patient_id`` and ``group``: one row for
            each value that a patient's slides have.
        roles: of every role with ``patients``, ``positives`` (of slides.csv) and ``scored``.
        synthetic_slides: how many of the test patients' slides were drawn.
        imported: where the tiles were imported, the importer's kind; otherwise empty.
    """

    patient_ids: np.ndarray
    truth: np.ndarray
    poolings: tuple[ScoredModel, ...]
    against: tuple[ScoredModel, ...]
    flow: Flow
    subgroups: dict[str, pd.DataFrame]
    roles: dict[str, dict[str, int]]
    synthetic_slides: int
    imported: str

    @property
    def shipped(self) -> ScoredModel:
        """The pooling that the model package uses."""
        return self.poolings[0]


def read_evaluation_input(config: Config, against: Sequence[str] = ()) -> EvaluationInput:
    """Read and check a run.

    Args:
        config: the experiment.
        against: other runs, each by its name in the same output folder or by its folder.

    Raises:
        StageError: something is missing, or does not belong together, or the test patients are too
            few to evaluate.
    """
    rows = read_slides(config.data.slides, config.data.classes)
    folder, positive = config.run_folder, config.data.positive
    poolings = read_poolings(folder)
    calls = read_aggregated(folder / CALLS_FILE, _CALL_COLUMNS)
    calls = calls[(calls["network"] == ENSEMBLE) & (calls["role"] == "test")]
    for table, name in ((poolings, POOLINGS_FILE), (calls, CALLS_FILE)):
        _check_labels(table, rows, folder / name)
    split = read_split(config.splits_file, config.split.fold)
    check_split(split, rows, where=config.splits_file)
    _check_roles(poolings, split, folder / POOLINGS_FILE)
    tested = poolings[poolings["role"] == "test"]
    first = tested[tested["shipped"]]
    _check_same_aggregation(first, calls, folder)
    truth = (first["label"] == positive).to_numpy()
    _check_enough(first, truth, positive, folder / POOLINGS_FILE)
    imported = read_import_record(config.tiles_folder)
    if imported is None:
        fates, synthetic = _tiled(config, rows)
    else:
        there = set(read_index(config.tiles_folder)["slide_id"])
        fates = {r.slide_id: "" if r.slide_id in there else "no imported tile" for r in rows}
        synthetic = set()
    test_ids = set(split.loc[split["role"] == "test", "patient_id"])
    of_test = [row for row in rows if row.patient_id in test_ids]
    call_of = dict(zip(calls["patient_id"], calls["call"], strict=True))
    flow = patient_flow(
        pd.DataFrame(
            [
                (row.slide_id, row.patient_id, row.label == positive, fates[row.slide_id])
                for row in of_test
            ],
            columns=["slide_id", "patient_id", "positive", "fate"],
        ),
        call_of,
        positive_call=f"{positive} suspected",
        negative_call=" or ".join(name for name in config.data.classes if name != positive),
    )
    order = first["patient_id"].to_numpy()
    return EvaluationInput(
        patient_ids=order,
        truth=truth,
        poolings=tuple(
            scored_model(str(name), of_pooling, order)
            for name, of_pooling in tested.groupby("pooling", sort=False)
        ),
        against=tuple(other_run(name, config, first) for name in dict.fromkeys(against)),
        flow=flow,
        subgroups={
            column: of_column
            for column in config.evaluate.subgroups
            if (of_column := _groups(column, rows, set(order))) is not None
        },
        roles=_roles(split, poolings, positive),
        synthetic_slides=sum(row.slide_id in synthetic for row in of_test),
        imported="" if imported is None else imported.kind,
    )


def _check_labels(table: pd.DataFrame, rows: Sequence[SlideRow], path: Path) -> None:
    now = {row.patient_id: row.label for row in rows}
    for patient, label in zip(table["patient_id"], table["label"], strict=True):
        if patient not in now:
            raise StageError(
                f"patient '{patient}' is not in slides.csv any more",
                where=path,
                remedy="Bring the patient back, or run 'medkd predict' and 'medkd aggregate' "
                "again.",
            )
        if now[patient] != label:
            raise StageError(
                f"patient '{patient}' was {label} when the run was aggregated and is "
                f"{now[patient]} in slides.csv now",
                where=path,
                remedy=AGGREGATE_AGAIN,
            )


def _check_roles(table: pd.DataFrame, split: pd.DataFrame, path: Path) -> None:
    role_of = dict(zip(split["patient_id"], split["role"], strict=True))
    for patient, role in zip(table["patient_id"], table["role"], strict=True):
        if role_of[patient] != role:
            raise StageError(
                f"patient '{patient}' was a {role} patient when the run was aggregated and is a "
                f"{role_of[patient]} patient of the split now",
                where=path,
                remedy="Train, predict and aggregate on this split, or bring the other one back.",
            )


def _check_same_aggregation(first: pd.DataFrame, calls: pd.DataFrame, folder: Path) -> None:
    probability = dict(zip(calls["patient_id"], calls["probability"], strict=True))
    same = set(probability) == set(first["patient_id"]) and np.allclose(
        [probability[patient] for patient in first["patient_id"]],
        first["probability"],
        rtol=0,
        atol=_ROUNDING,
    )
    if not same:
        raise StageError(
            f"{POOLINGS_FILE} and {CALLS_FILE} are of different aggregations",
            where=folder,
            remedy=AGGREGATE_AGAIN,
        )


def _check_enough(first: pd.DataFrame, truth: np.ndarray, positive: str, path: Path) -> None:
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < _FEWEST_OF_A_CLASS:
        raise TooFewPatientsError(
            f"of {len(truth)} test patients with a score {positives} are {positive} and "
            f"{negatives} are not; an evaluation takes {_FEWEST_OF_A_CLASS} of each at the least, "
            "and tens to mean anything",
            where=path,
            remedy="Give test a larger share, or add patients.",
        )
    if first["score"].nunique() == 1:
        raise StageError(
            f"all {len(truth)} test patients have the same score, {first['score'].iloc[0]:g}",
            where=path,
            remedy="Look at the training: these networks tell no patient from another.",
        )


def _tiled(config: Config, rows: Sequence[SlideRow]) -> tuple[dict[str, str], set[str]]:
    """Why each slide gave no tiles, empty where it did; and which slides were drawn."""
    path = config.tiles_folder / "report.csv"
    if not path.exists():
        raise StageError("no report of the tiling", where=path, remedy="Run 'medkd tile' again.")
    report = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("slide_id")
    fates = {}
    for row in rows:
        if row.slide_id not in report.index:
            raise StageError(
                f"says nothing of slide '{row.slide_id}'",
                where=path,
                remedy="Run 'medkd tile' again.",
            )
        found = report.loc[row.slide_id]
        if found["status"] == "failed":
            fates[row.slide_id] = f"failed in tiling: {found['reason'].replace('_', ' ')}"
        else:
            fates[row.slide_id] = "" if int(found["used"]) else "no usable tile"
    return fates, set(report.index[report["synthetic"] == "True"])


def _groups(column: str, rows: Sequence[SlideRow], patients: set[str]) -> pd.DataFrame | None:
    """A patient's values of a column; None where no slide of the table has one."""
    if not any(getattr(row, column) for row in rows):
        return None
    table = pd.DataFrame(
        [(row.patient_id, getattr(row, column)) for row in rows if row.patient_id in patients],
        columns=["patient_id", "group"],
    ).drop_duplicates(ignore_index=True)
    # A patient with a value on one slide and none on another has that value.
    has_value = table.groupby("patient_id")["group"].transform(lambda of: (of != "").any())
    table = table[(table["group"] != "") | ~has_value].reset_index(drop=True)
    table["group"] = table["group"].where(table["group"] != "")
    return table


def _roles(split: pd.DataFrame, poolings: pd.DataFrame, positive: str) -> dict[str, dict[str, int]]:
    scored = poolings[poolings["shipped"]].groupby("role")["patient_id"].nunique()
    return {
        role: {
            "patients": int((split["role"] == role).sum()),
            "positives": int(((split["role"] == role) & (split["label"] == positive)).sum()),
            "scored": int(scored.get(role, 0)),
        }
        for role in ("train", "validation", "test")
    }
