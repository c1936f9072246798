"""A whole experiment: one file serves every stage of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medkd.config.data import DataConfig, SplitConfig
from medkd.config.detection import DetectionConfig
from medkd.config.evaluate import EvaluateConfig
from medkd.config.slide_level import SlideLevelConfig
from medkd.config.stain import StainConfig
from medkd.config.tile import TileConfig
from medkd.config.train import TrainConfig
from medkd.config.types import FilePath, Fraction, Positive
from medkd.schema import Strict


class InferConfig(Strict):
    """Quality gates that are frozen into the model package."""

    min_tiles: Positive = Field(10, description="Fewer usable tiles give 'no result'.")
    min_tissue_mm2: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Less tissue gives 'no result', square millimetres."
    )
    max_disagreement: Annotated[float, Field(gt=0)] = Field(
        0.25, description="Students whose slide scores spread wider give 'indeterminate'."
    )
    max_out_of_focus: Fraction = Field(
        0.5, description="A larger share of the tissue out of focus gives 'indeterminate'."
    )
    max_unreadable: Fraction = Field(
        0.1, description="A larger share of the tissue that cannot be read gives 'indeterminate'."
    )
    mpp_tolerance: Fraction = Field(
        0.2,
        description="How far a slide's own resolution may lie outside that of the training slides, "
        "as a share; farther gives 'indeterminate'.",
    )
    out_of_distribution: bool = Field(
        True,
        description="Slides whose stain or embedding lies farther from the training slides than "
        "those of validation patients give 'indeterminate'.",
    )
    out_of_distribution_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.01,
        description="The most patients like those of validation that may be taken for others, as a "
        "share. Below 2 / share - 1 validation patients docs/infer.md says what holds.",
    )
    early_stop: bool = Field(
        False,
        description="Read tiles in random order, and stop once those read so far settle the call. "
        "For the mean probability and intervals for tiles alone.",
    )
    early_stop_error: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.01, description="How often a call may differ for having stopped early."
    )


class MlflowConfig(Strict):
    """Where runs are tracked. The variable MLFLOW_TRACKING_URI comes first if it is set."""

    tracking_uri: str | None = Field(
        None, description="An MLflow tracking URI; null: sqlite in the output folder."
    )
    experiment: str = Field("medkd", description="Name of the MLflow experiment.")
    registered_model: str | None = Field(
        "medkd-msi", description="Name in MLflow's model registry; null: do not register."
    )
    log_checkpoints: bool = Field(
        True, description="Upload each network's weights of the chosen epoch when training is over."
    )
    system_metrics: bool = Field(
        True, description="Log the use of processor, memory, disk, network and GPU every 10 s."
    )


class Config(Strict):
    """A whole experiment."""

    output: FilePath = Field(
        Path("medkd-output"), description="Folder that every stage writes to and reads from."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the split and the training.")
    task: Literal["classification", "detection"] = Field(
        "classification",
        description="What networks learn: classes of slides by their tiles (data, tile, stain), or "
        "boxes in images (detection).",
    )
    data: DataConfig = DataConfig()
    detection: DetectionConfig = DetectionConfig()
    tile: TileConfig = TileConfig()
    split: SplitConfig = SplitConfig()
    stain: StainConfig = StainConfig()
    train: TrainConfig = TrainConfig()
    slide_level: SlideLevelConfig = SlideLevelConfig()
    infer: InferConfig = InferConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mlflow: MlflowConfig = MlflowConfig()

    @model_validator(mode="after")
    def _each_class_has_a_weight(self) -> Config:
        weights = self.train.class_weights
        if weights is not None and len(weights) != len(self.data.classes):
            raise ValueError(
                f"'train.class_weights' has {len(weights)} numbers for {len(self.data.classes)} "
                "classes"
            )
        return self

    @model_validator(mode="after")
    def _boxes_stay_with_what_they_show(self) -> Config:
        if self.task != "detection":
            return self
        augment = self.train.augment
        if augment.enabled and augment.where == "device":
            raise ValueError(
                "'task: detection' needs 'train.augment.where: loader': boxes are turned with "
                "their images there"
            )
        if augment.enabled and augment.affine_p > 0:
            raise ValueError(
                "'task: detection' needs 'train.augment.affine_p: 0': an affine transform would "
                "leave the boxes behind"
            )
        return self

    @model_validator(mode="after")
    def _annotations_can_be_found(self) -> Config:
        tile = self.tile
        if tile.annotations is None and (tile.annotations_include or tile.annotations_exclude):
            raise ValueError(
                "'tile.annotations_include' and 'tile.annotations_exclude' need the folder "
                "'tile.annotations'"
            )
        return self

    @property
    def tiles_folder(self) -> Path:
        """Where the tile stage writes."""
        return self.output / "tiles"

    @property
    def splits_file(self) -> Path:
        """Where the split stage writes."""
        return self.output / "splits.parquet"

    @property
    def run_name(self) -> str:
        """``train.name``; of a split into folds with the fold, such as ``kd_ml-fold3``."""
        split = self.split
        one_fold = split.scheme in ("holdout", "file") and split.fold == 0
        return self.train.name if one_fold else f"{self.train.name}-fold{split.fold}"

    @property
    def run_folder(self) -> Path:
        """Where everything of this training run lies."""
        return self.output / "runs" / self.run_name

    @property
    def model_folder(self) -> Path:
        """The run's model package."""
        return self.run_folder / "model"

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, in plain YAML and JSON types."""
        return self.model_dump(mode="json")
