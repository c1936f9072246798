"""``slide_features.parquet``: what each slide of a run looks like; a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.errors import StageError
from medkd.slide_level.slide_features import STAIN, SlideFeatures

FEATURE_FILE = "slide_features.parquet"

_SLIDE = ["slide_id", "patient_id", "role", "tiles"]
_AGAIN = "Run 'medkd predict' again."


def feature_row(slide_id: str, patient_id: str, role: str, features: SlideFeatures) -> pa.Table:
    """The row of one slide."""
    columns: dict[str, pa.Array] = {
        "slide_id": pa.array([slide_id]),
        "patient_id": pa.array([patient_id]),
        "role": pa.array([role]),
        "tiles": pa.array([features.tiles], pa.int32()),
    }
    for kind, by_name in (("mean", features.means), ("variance", features.variances)):
        for name, values in by_name.items():
            columns[f"{kind}_{name}"] = pa.array([values.tolist()], pa.list_(pa.float32()))
    return pa.table(columns)


@dataclass(frozen=True)
class CohortFeatures:
    """What the slides of a run look like.

    Attributes:
        slides: ``slide_id``, ``patient_id``, ``role`` and ``tiles`` of each.
        means, variances: over the tiles of each slide, float64 (slides, D), of the stain and of
            the students that have pooled features; see
            :class:`medkd.slide_level.slide_features.SlideFeatures`.
    """

    slides: pd.DataFrame
    means: Mapping[str, np.ndarray]
    variances: Mapping[str, np.ndarray]


def read_features(path: Path, students: Sequence[str]) -> CohortFeatures | None:
    """Read the file; None where there is none.

    Args:
        path: of the file.
        students: whose pooled features are wanted.

    Raises:
        StageError: it cannot be read, lacks a column, or holds something that is not finite.
    """
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        found = {
            kind: {
                name: np.array(table[f"{kind}_{name}"].to_pylist(), np.float64)
                for name in (STAIN, *students)
                if name == STAIN or f"{kind}_{name}" in table.column_names
            }
            for kind in ("mean", "variance")
        }
        slides = table.select(_SLIDE).to_pandas()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StageError(f"cannot be read: {str(error)[:200]}", where=path, remedy=_AGAIN) from None
    for values in (*found["mean"].values(), *found["variance"].values()):
        if values.ndim != 2 or not np.isfinite(values).all():
            raise StageError("holds features that are not numbers", where=path, remedy=_AGAIN)
    return CohortFeatures(slides, found["mean"], found["variance"])
