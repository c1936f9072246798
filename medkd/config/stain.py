"""What is done to every tile's colours before a network sees it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medkd.config.types import FilePath, Positive
from medkd.schema import Strict


class StainConfig(Strict):
    """Stain normalisation, the same in training, prediction and inference."""

    normalise: Literal["none", "macenko", "reinhard"] = Field(
        "none",
        description="Give each tile the colours of a reference: Macenko's method (its two stains) "
        "or Reinhard's (mean and deviation in CIELAB). docs/transforms.md",
    )
    reference: Literal["training", "published", "image"] = Field(
        "training",
        description="Fitted on tiles of the training patients; the one published with Macenko's "
        "method; or an image of your own.",
    )
    reference_tiles: Positive = Field(
        500,
        description="Of 'reference: training': how many tiles are measured, at most, of each "
        "patient in turn.",
    )
    reference_image: FilePath | None = Field(
        None, description="Of 'reference: image': a PNG, TIFF or JPEG of stained tissue."
    )

    @model_validator(mode="after")
    def _reference_is_there(self) -> StainConfig:
        if (self.reference == "image") != (self.reference_image is not None):
            raise ValueError("'reference: image' and the key 'reference_image' need each other")
        if self.reference == "published" and self.normalise == "reinhard":
            raise ValueError("'reference: published' is of 'normalise: macenko' alone")
        return self
