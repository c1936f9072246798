"""A cohort whose every figure can be worked out by hand.

All tiles of a slide are equal, and all scores are multiples of 1/16, so means are exact. The two
students err by 1/16 in opposite ways; the teacher is wrong about everything.

On validation patients 2 of 2 positives are needed: the operating point is 0.5. On test patients
the positives reach 0.875 and 0.375, the negatives 0.5625, 0.125 and 0.0625: 5 of 6 pairs are in
order, 1 of 2 positives and 2 of 3 negatives are on their side of the operating point.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from medkd.config import Config, InferConfig, SlideLevelConfig
from medkd.slide_level.aggregate import Aggregation, aggregate
from medkd.slide_level.slide_quality import SlideQuality

STUDENTS = ("student_0", "student_1")
CONFIG = Config(
    slide_level=SlideLevelConfig(bootstrap_resamples=200),
    infer=InferConfig(min_tiles=4, min_tissue_mm2=0.5),
)
PATIENTS = (
    ("r1", "train", "MSI", 0.875),
    ("r2", "train", "MSS", 0.125),
    ("v1", "validation", "MSI", 0.75),
    ("v2", "validation", "MSI", 0.5),
    ("v3", "validation", "MSS", 0.25),
    ("v4", "validation", "MSS", 0.625),
    ("t1", "test", "MSI", 0.875),
    ("t2", "test", "MSI", 0.375),
    ("t3", "test", "MSS", 0.5625),
    ("t4", "test", "MSS", 0.125),
    ("t5", "test", "MSS", 0.0625),
)
LABELS = {patient: label for patient, _, label, _ in PATIENTS}


def slide_tiles(
    patient: str, role: str, score: float, *, slide: str = "", tiles: int = 4
) -> pd.DataFrame:
    """Predictions of one slide by teacher and students, as in docs/files.md."""
    of_network = {"teacher": 1 - score, STUDENTS[0]: score + 1 / 16, STUDENTS[1]: score - 1 / 16}
    return pd.DataFrame(
        [
            (slide or f"{patient}_s", patient, role, 448 * i, 0, network, probability)
            for network, probability in of_network.items()
            for i in range(tiles)
        ],
        columns=["slide_id", "patient_id", "role", "x", "y", "network", "probability"],
    ).astype({"x": "int32", "y": "int32", "probability": "float32"})


def predictions() -> pd.DataFrame:
    """One slide of four tiles for each patient."""
    return pd.concat(
        [slide_tiles(patient, role, score) for patient, role, _, score in PATIENTS],
        ignore_index=True,
    )


def aggregated(
    table: pd.DataFrame | None = None,
    labels: dict[str, str] | None = None,
    *,
    qualities: dict[str, SlideQuality] | None = None,
    synthetic: bool = False,
    distance_limits: dict[str, float] | None = None,
    config: Config = CONFIG,
) -> Aggregation:
    """The cohort aggregated, with what is given in place of its own; 2 mm² a slide."""
    table = predictions() if table is None else table
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        table.to_parquet(path, index=False)
        return aggregate(
            path,
            LABELS if labels is None else labels,
            {
                slide: (qualities or {}).get(slide, SlideQuality(2.0, 4))
                for slide in table["slide_id"].unique()
            },
            STUDENTS,
            config,
            embeddings=Path(folder) / "embeddings",
            date="2030-01-02",
            synthetic=synthetic,
            distance_limits=distance_limits,
        )


def one_class() -> Aggregation:
    """The cohort with no negative among the test patients."""
    table = predictions()
    return aggregated(table[~table["patient_id"].isin(["t3", "t4", "t5"])])
