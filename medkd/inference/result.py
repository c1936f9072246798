"""The contract of ``result.json``; docs/infer.md explains every key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from medkd.inference.manifest import PackagedOperatingPoint
from medkd.inference.recalibration_record import Interval
from medkd.schema import Strict

SCHEMA_VERSION = 1


class Gate(Strict):
    """One quality check."""

    name: str
    value: float
    limit: float
    passed: bool


class NotChecked(Strict):
    """A quality check that this model cannot make, and why."""

    name: str
    reason: str


class Quality(Strict):
    """What was checked, and what is odd about the slide."""

    gates: Annotated[tuple[Gate, ...], Field(strict=False)]
    not_checked: Annotated[tuple[NotChecked, ...], Field(strict=False)] = ()
    warnings: Annotated[tuple[str, ...], Field(strict=False)]


class Tiles(Strict):
    """Tiles by fate: candidate = used + unreadable + sum of rejected."""

    candidate: int
    used: int
    unreadable: int
    rejected: dict[str, int]


class Mpp(Strict):
    """Micrometres per pixel of level 0, and where that comes from."""

    value: float
    source: str


class Reading(Strict):
    """What read the slide, why that, and what became of its ICC profile."""

    reader: str
    reason: str
    icc: str = Field(description="none, ignored or applied.")


class Model(Strict):
    """Which model called."""

    name: str
    version: str
    sha256: str


class Synthetic(Strict):
    """Whether the slide, or the slides the model was trained on, were drawn."""

    slide: bool
    model: bool


class Result(Strict):
    """``result.json``."""

    schema_version: Literal[1] = 1
    slide_id: str
    call: str = Field(description="MSS, MSI suspected, indeterminate or no result.")
    reasons: Annotated[tuple[str, ...], Field(strict=False)]
    score: float | None = Field(None, description="Of the students together, before calibration.")
    calibration: str = Field("none", description="Kind of the map from score to probability.")
    probability_msi: float | None
    interval: Interval | None = Field(description="Of the probability.")
    students: dict[str, float]
    disagreement: float | None
    mutual_information: float | None = Field(
        None, description="What the students disagree about, nats; at most ln 2."
    )
    operating_point: PackagedOperatingPoint
    qc: Quality
    tiles: Tiles
    tissue_area_mm2: float
    mpp: Mpp
    reading: Reading
    slide_fingerprint: str | None = Field(
        None,
        description="SHA-256 of the size and 16 blocks of the slide's file, or of the files of its "
        "DICOM series; null in older results.",
    )
    model: Model
    software: dict[str, str]
    timing_s: dict[str, float]
    synthetic: Synthetic
    research_use_only: Literal[True] = True
    created: str


def result_schema() -> dict[str, Any]:
    """The JSON schema of ``result.json``, published as ``result.schema.json``."""
    return Result.model_json_schema()
