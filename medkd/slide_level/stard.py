"""The flow of test patients from the table of slides to their calls (STARD, Bossuyt 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from medkd.errors import StageError
from medkd.slide_level.call import INDETERMINATE, NO_RESULT

_AGAIN = "Run 'medkd predict' and 'medkd aggregate' again."


@dataclass(frozen=True)
class Group:
    """Patients by the reference standard, and how many slides slides.csv lists of them."""

    patients: int
    positives: int
    slides: int

    @property
    def negatives(self) -> int:
        """Patients of the negative class."""
        return self.patients - self.positives


@dataclass(frozen=True)
class Flow:
    """Where every test patient went; each is in one of the last five.

    Attributes:
        eligible: test patients of slides.csv.
        slide_fates: slides that gave no tiles, by reason; their patients may have others.
        without_tiles: patients of whom no slide gave a tile, by reason.
        no_result: scored, but short of a quality gate.
        indeterminate, called_negative, called_positive: by their call.
    """

    eligible: Group
    slide_fates: Mapping[str, int]
    without_tiles: Mapping[str, Group]
    no_result: Group
    indeterminate: Group
    called_negative: Group
    called_positive: Group

    @property
    def excluded(self) -> int:
        """Patients without a tile."""
        return sum(group.patients for group in self.without_tiles.values())

    @property
    def scored(self) -> int:
        """Patients with a score, whatever their call."""
        return self.eligible.patients - self.excluded

    @property
    def called(self) -> int:
        """Patients who are called positive or negative."""
        return self.called_negative.patients + self.called_positive.patients

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {**asdict(self), "scored": self.scored, "called": self.called}


def patient_flow(
    slides: pd.DataFrame, calls: Mapping[str, str], *, positive_call: str, negative_call: str
) -> Flow:
    """Count where every patient went.

    Args:
        slides: every slide of the test patients: ``slide_id``, ``patient_id``, ``positive`` (bool,
            the patient's label), ``fate`` (why it gave no tiles; empty where it did).
        calls: of each patient with a score.
        positive_call, negative_call: how these two are worded.

    Raises:
        StageError: a patient with tiles has no call, or one without has, or a call is unknown.
    """
    patients = slides.groupby("patient_id").agg(
        positive=("positive", "first"),
        slides=("slide_id", "size"),
        lost=("fate", lambda fates: bool((fates != "").all())),
        fate=("fate", lambda fates: " and ".join(sorted(set(fates) - {""}))),
    )
    called = patients.index.to_series().map(calls)
    _check(patients, called, set(calls), {positive_call, negative_call, INDETERMINATE, NO_RESULT})
    lost = patients[patients["lost"]]
    return Flow(
        eligible=_group(patients),
        slide_fates={
            str(fate): int(count)
            for fate, count in slides.loc[slides["fate"] != "", "fate"].value_counts().items()
        },
        without_tiles={str(fate): _group(group) for fate, group in lost.groupby("fate")},
        no_result=_group(patients[called == NO_RESULT]),
        indeterminate=_group(patients[called == INDETERMINATE]),
        called_negative=_group(patients[called == negative_call]),
        called_positive=_group(patients[called == positive_call]),
    )


def _check(
    patients: pd.DataFrame, called: pd.Series, have_calls: set[str], known: set[str]
) -> None:
    where = "patient_calls.parquet"
    strangers = have_calls - set(patients.index)
    if strangers:
        raise StageError(
            f"patient '{min(strangers)}' is no test patient of slides.csv ({len(strangers)} such "
            "in all)",
            where=where,
            remedy=_AGAIN,
        )
    without = patients.index[~patients["lost"] & called.isna()]
    if len(without):
        raise StageError(
            f"patient '{without[0]}' has tiles and no call ({len(without)} such in all)",
            where=where,
            remedy=_AGAIN,
        )
    untiled = patients.index[patients["lost"] & called.notna()]
    if len(untiled):
        raise StageError(
            f"patient '{untiled[0]}' has a call and no tiles any more", where=where, remedy=_AGAIN
        )
    odd = sorted(set(called.dropna()) - known)
    if odd:
        raise StageError(
            f"'{odd[0]}' is no call of these classes",
            where=where,
            remedy="Run 'medkd aggregate' again with the data.classes of this configuration.",
        )


def _group(patients: pd.DataFrame) -> Group:
    return Group(len(patients), int(patients["positive"].sum()), int(patients["slides"].sum()))
