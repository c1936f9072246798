"""The contract of ``model.json``: what a model package says of itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medkd.config import InferConfig, SlideLevelConfig, TileConfig
from medkd.datasets.stain import StainReference
from medkd.inference.recalibration_record import Interval, RecalibrationRecord, Sha256
from medkd.schema import Strict
from medkd.slide_level.calibration import CalibrationMap
from medkd.slide_level.conformal import ConformalSets
from medkd.slide_level.out_of_distribution import OutOfDistribution
from medkd.slide_level.slide_head import PackagedSlideHead


class Preprocessing(Strict):
    """How a slide becomes the tiles that the students were trained on."""

    tile: TileConfig
    reader: Literal["openslide"] = "openslide"
    jpeg_round_trip: Literal[True] = Field(
        True, description="Tiles are encoded and decoded at tile.jpeg_quality, as in training."
    )
    stain: StainReference | None = Field(
        None, description="Whose colours a decoded tile is given, as in training; null: none's."
    )


class Student(Strict):
    """One network that ships."""

    name: str
    network: str
    width: float = 1.0
    stem_stride: int | None = Field(None, description="null: the network's own.")
    max_pool: bool | None = Field(None, description="null: the network's own.")
    parameters: int
    onnx: str = Field(
        description="tiles, uint8 N x size x size x 3 -> probabilities, float32 N x classes, and "
        "embeddings, float32 N x embedding_size."
    )
    embedding_size: int | None = Field(
        None, description="Length of a tile's pooled features; null: the network has none."
    )
    safetensors: str


class PackagedOperatingPoint(Strict):
    """The frozen threshold and what it reached where it was chosen."""

    threshold: float
    target_sensitivity: float | None
    sensitivity: float
    sensitivity_interval: Interval
    specificity: float
    specificity_interval: Interval
    cohort: str
    patients: int
    positives: int
    date: str
    method: str
    rule: str = Field(
        "fixed sensitivity",
        description="fixed sensitivity, fixed specificity, Youden or cost-weighted.",
    )
    prevalence: float | None = Field(None, description="Of the cohort; null in older packages.")
    confidence: float | None = Field(
        None, description="Level of the intervals; null in older packages."
    )
    target_specificity: float | None = Field(None, description="null: not the rule.")
    cost_ratio: float | None = Field(
        None, description="What a missed positive costs, in false alarms; null: not the rule."
    )
    stated_prevalence: float | None = Field(
        None, description="For which costs were weighed; null: not the rule."
    )
    fitted_to_sha256: Sha256 | None = Field(
        None,
        description="SHA-256 of all that gives the probability that it is a threshold of: classes, "
        "preprocessing, students, slide head, calibration and conformal sets.",
    )


class Quantisation(Strict):
    """What became of the students' answers when they were turned into 8-bit integers.

    Changes are absolute differences of probabilities, measured on tiles that did not set ranges.
    """

    from_version: str = Field(description="Of the package whose students these are in float32.")
    from_sha256: Sha256
    method: str
    calibration_slides: int
    calibration_tiles: int
    measured_slides: int
    measured_tiles: int
    tile_change_mean: float
    tile_change_max: float
    slide_change_mean: float
    slide_change_max: float
    calls_changed: int | None = Field(
        description="Measured slides on the other side of the threshold; null: there is none."
    )
    distance_change_max: float | None = Field(
        None,
        description="Of the embedding from the training slides, as a share of its limit; null: it "
        "is not compared.",
    )


class Provenance(Strict):
    """Where the model comes from."""

    run_id: str
    experiment: str
    run_name: str
    method: str
    seed: int
    epochs: int
    best_epoch: int
    data_digest: str
    patients: dict[str, int] = Field(description="Patients by role.")
    tiles: dict[str, int] = Field(description="Tiles by role.")
    trained_on_synthetic: bool
    software: str
    torch: str


class Manifest(Strict):
    """``model.json``."""

    schema_version: Literal[1]
    name: str
    version: str
    created: str
    task: Literal["classification"]
    research_use_only: Literal[True]
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    positive: str
    preprocessing: Preprocessing
    students: Annotated[tuple[Student, ...], Field(strict=False, min_length=1)]
    slide_head: PackagedSlideHead
    calibration: CalibrationMap = Field(
        description="From the students' mean score to the probability of the positive class."
    )
    operating_point: PackagedOperatingPoint | None = Field(
        description="A threshold of that probability."
    )
    conformal: ConformalSets | None = Field(
        None, description="Sets that call instead of the operating point; null: it calls."
    )
    recalibration: RecalibrationRecord | None = Field(
        None, description="Where these come from if not from the training; null: from there."
    )
    test_performance: dict[str, Any] | None = Field(
        None, description="Figures on test patients, as in evaluation.json."
    )
    gates: InferConfig
    trained_mpp: Interval | None = Field(
        None,
        description="Least and largest resolution of level 0 of training slides, um/px; null: "
        "not known, and no gate.",
    )
    out_of_distribution: OutOfDistribution | None = Field(
        None,
        description="What slides are held against; null: packaged before that was, and no gate.",
    )
    slide_level: SlideLevelConfig
    quantisation: Quantisation | None = Field(
        None, description="Of int8 students; null: they are in float32."
    )
    provenance: Provenance
    files: dict[str, Sha256] = Field(description="SHA-256 of every other file.")

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> Manifest:
        if self.positive not in self.classes:
            raise ValueError(f"'positive' must be one of the classes {list(self.classes)}")
        return self


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of ``model.json``, published as ``model.schema.json``."""
    return Manifest.model_json_schema()
