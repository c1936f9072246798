"""Boxes instead of classes: what a detector is trained on, and what it is made of."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medkd.config.types import FilePath, Fraction, Positive
from medkd.schema import Strict

_Stride = Annotated[int, Field(ge=2)]
_Factor = Annotated[float, Field(gt=0)]


class DetectionConfig(Strict):
    """Finding boxes in images: read where 'task' is detection, and there alone."""

    boxes: FilePath = Field(
        Path("boxes.parquet"),
        description="Table of images with their boxes, which 'medkd import kvasir', 'coco' or "
        "'yolo' wrote.",
    )
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        ("polyp",), description="The labels of boxes, in the order of the networks' outputs."
    )
    image_px: Positive = Field(256, description="Side of the square that images are resized to.")
    keep_aspect: bool = Field(
        True,
        description="The longer side fills the square, and the rest is black; false: each axis is "
        "scaled by itself.",
    )
    strides: Annotated[tuple[_Stride, ...], Field(strict=False, min_length=1)] = Field(
        (8, 16, 32, 64),
        description="Pixels between cells on each level of the pyramid, each twice the one before.",
    )
    anchor_sizes: Annotated[tuple[_Factor, ...], Field(strict=False, min_length=1)] = Field(
        (3.0, 4.5),
        description="Sides of the anchors of a cell, in strides of its level.",
    )
    anchor_ratios: Annotated[tuple[_Factor, ...], Field(strict=False, min_length=1)] = Field(
        (1.0,), description="Their heights over their widths."
    )
    channels: Positive = Field(
        64,
        description="Width of pyramids and heads, a multiple of 8; a network can have its own "
        "(pyramid_channels).",
    )
    least_score: Fraction = Field(0.05, description="Boxes of a lower score are not looked at.")
    nms_iou: Fraction = Field(
        0.5, description="Of two boxes of a class that overlap more, the better one stays."
    )
    ensemble: Literal["auto", "dense", "boxes"] = Field(
        "auto",
        description="How students' boxes become one list: the mean of all their outputs at each "
        "anchor (dense), weighted box fusion (boxes), or what does better on validation images.",
    )
    fusion_iou: Fraction = Field(
        0.55, description="Boxes that overlap as much are fused by 'ensemble: boxes'."
    )

    @model_validator(mode="after")
    def _levels_double(self) -> DetectionConfig:
        if any(coarser != 2 * finer for finer, coarser in pairwise(self.strides)):
            raise ValueError(f"each of 'strides' {list(self.strides)} must be twice the one before")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice in 'classes'")
        return self
