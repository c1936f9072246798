"""From tile probabilities to calls."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medkd.config.types import Positive
from medkd.schema import Strict

HeadArchitecture = Literal[
    "mean_embedding", "max_embedding", "attention", "gated_attention", "transformer"
]
"""Learned poolings, on embeddings of tiles."""

TilePooling = Literal[
    "mean_probability",
    "mean_logit",
    "positive_fraction",
    "top_k",
    "quantile",
    "noisy_or",
    "histogram_logistic",
]
"""Poolings of tiles' probabilities."""

PoolingKind = TilePooling | HeadArchitecture

Ensembling = Literal["tiles_first", "slides_first"]
"""``tiles_first`` averages the students in each tile, then pools the tiles; ``slides_first`` pools
each student's tiles, then averages the students. For the mean the two are one."""

PatientPooling = Literal["tiles", "mean_of_slides", "max_of_slides"]
"""What of several slides makes a patient's score, see ``medkd.slide_level.pooling``."""

IntervalOf = Literal["tiles", "tiles_and_students"]

Share = Annotated[float, Field(gt=0, le=1)]


class PoolingParameters(Strict):
    """Parameters of the poolings of probabilities; each counts for its own kind only."""

    positive_from: Share = Field(
        0.5, description="Of positive_fraction: a tile with at least this is positive."
    )
    top_share: Share = Field(0.1, description="Of top_k: share of the tiles, rounded up.")
    top_min_tiles: Positive = Field(10, description="Of top_k: never fewer.")
    quantile: Annotated[float, Field(ge=0, le=1)] = Field(0.9, description="Of quantile.")
    noisy_or_tiles: Positive | None = Field(
        None, description="Of noisy_or: so many of the highest count; null: all."
    )
    histogram_bins: Annotated[int, Field(ge=2)] = Field(10, description="Of histogram_logistic.")
    histogram_inverse_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Of histogram_logistic: C of the regression's L2 penalty."
    )


class SlideHeadConfig(Strict):
    """How a learned pooling is made and trained."""

    hidden: Positive = Field(128, description="Channels of the attention.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="Of an embedding's channels."
    )
    epochs: Positive = Field(100, description="At most.")
    patience: Positive = Field(
        20, description="Epochs without a better validation loss that end the training."
    )
    batch_bags: Positive = Field(8, description="Patients in a batch.")
    max_tiles: Positive | None = Field(
        512, description="Tiles drawn of a training patient, anew in each epoch; null: all."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Of AdamW, constant.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        1e-2, description="Decoupled; biases do not decay."
    )


class SlideLevelConfig(Strict):
    """From tile probabilities to calls."""

    pooling: PoolingKind = Field(
        "mean_probability",
        description="Of tiles into a score: mean_probability, mean_logit, positive_fraction, "
        "top_k, quantile, noisy_or, histogram_logistic; or learned on what 'medkd predict "
        "--embeddings' keeps: mean_embedding, max_embedding, attention, gated_attention, "
        "transformer. "
        "docs/pooling.md",
    )
    compare_poolings: Annotated[tuple[PoolingKind, ...], Field(strict=False)] = Field(
        (), description="Others that 'medkd evaluate' sets beside it; they do not ship."
    )
    pooling_parameters: PoolingParameters = PoolingParameters()
    head: SlideHeadConfig = SlideHeadConfig()
    ensembling: Ensembling = Field(
        "tiles_first",
        description="Whether students are averaged in each tile (tiles_first) or each is pooled "
        "first (slides_first). Learned poolings are slides_first whatever stands here.",
    )
    patient_pooling: PatientPooling = Field(
        "tiles",
        description="Several slides of a patient: all tiles as of one slide, mean_of_slides or "
        "max_of_slides.",
    )
    interval: IntervalOf = Field(
        "tiles",
        description="What the interval of a score is for: other tiles of the slide, or other tiles "
        "and students (tiles_and_students), which is far wider for two students.",
    )
    calibration: Literal["best", "none", "temperature", "platt", "beta", "isotonic"] = Field(
        "best",
        description="How scores become probabilities, fitted to validation patients; best: of the "
        "others by cross-validated log loss, none where patients are few. docs/calibration.md",
    )
    operating_point: Literal["sensitivity", "specificity", "youden", "cost"] = Field(
        "sensitivity",
        description="What it reaches on validation patients: a fixed sensitivity, a fixed "
        "specificity, the largest sum of both, or the least cost.",
    )
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Of 'operating_point: sensitivity'."
    )
    target_specificity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Of 'operating_point: specificity'."
    )
    cost_ratio: Annotated[float, Field(gt=0)] = Field(
        10.0,
        description="Of 'operating_point: cost': a missed positive over a false alarm.",
    )
    cost_prevalence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="Of 'operating_point: cost': how common positives are where it is used."
    )
    conformal_error: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Call by conformal sets: of each class at most this share is called the other "
        "one on average, the rest may be indeterminate; null: by the operating point.",
    )
    bootstrap_resamples: Annotated[int, Field(ge=100)] = Field(
        2000, description="Resamples of patients (cohort) and of tiles (one slide)."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="Level of every interval."
    )

    @model_validator(mode="after")
    def _each_pooling_once(self) -> SlideLevelConfig:
        names = (self.pooling, *self.compare_poolings)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'compare_poolings' holds '{twice}', which is there already")
        return self
