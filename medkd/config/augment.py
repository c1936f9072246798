"""What augmentation does to a training tile."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from medkd.config.types import Fraction
from medkd.schema import Strict


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("give the least, then the largest")
    return pair


_Sigma = Annotated[float, Field(ge=0.01, le=32)]
_Side = Annotated[int, Field(ge=1, le=65536)]
SigmaRange = Annotated[tuple[_Sigma, _Sigma], Field(strict=False), AfterValidator(_ascending)]
SideRange = Annotated[tuple[_Side, _Side], Field(strict=False), AfterValidator(_ascending)]
_Quality = Annotated[int, Field(ge=1, le=100)]
QualityRange = Annotated[tuple[_Quality, _Quality], Field(strict=False), AfterValidator(_ascending)]


class AugmentConfig(Strict):
    """What is done to a training tile, in this order.

    The defaults mirror, turn by quarters and jitter the channels. Histology has no up and no left,
    so every turn and mirror image is as likely as any other.
    """

    enabled: bool = Field(True, description="Whether tiles are augmented at all.")
    where: Literal["device", "loader"] = Field(
        "device",
        description="Whole batches where the networks are, or tile by tile through MONAI's "
        "transforms in the processes that load them. Distributed alike; the draws differ.",
    )
    flip_p: Fraction = Field(
        0.5, description="Probability of a mirror image, up-down or left-right."
    )
    turn_p: Fraction = Field(
        0.75,
        description="Probability of one to three quarter turns; 0.75 makes all four as likely.",
    )
    affine_p: Fraction = Field(
        0.0,
        description="Probability of the four below; beyond its rim the tile is mirrored.",
    )
    affine_degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        10.0, description="Turn by up to this, either way."
    )
    affine_scale: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.1, description="Height and width each by a factor from 1 ± this."
    )
    affine_shear: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.05,
        description="Rows along the columns, then columns along the rows, each by up to this.",
    )
    affine_shift_px: Annotated[float, Field(ge=0, le=4096)] = Field(
        8.0, description="Each axis by up to this."
    )
    colour_p: Fraction = Field(
        1.0, description="Probability that each channel is scaled and shifted by itself."
    )
    colour_scale: Fraction = Field(0.1, description="Factor from 1 ± this.")
    colour_shift: Annotated[float, Field(ge=0, le=255)] = Field(
        12.0, description="Up to this many levels of 255, either way."
    )
    photometric_p: Fraction = Field(0.0, description="Probability of the four below.")
    brightness: Fraction = Field(0.1, description="Factor from 1 ± this, on all channels.")
    contrast: Fraction = Field(
        0.1, description="Factor from 1 ± this, on the distance from the tile's mean luma."
    )
    saturation: Fraction = Field(
        0.1, description="Factor from 1 ± this, on the distance from each pixel's luma."
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.02,
        description="Turn about the grey axis by up to this share of a full turn, either way.",
    )
    stain_p: Fraction = Field(
        0.0,
        description="Probability that haematoxylin, eosin and DAB are each scaled and shifted.",
    )
    stain_scale: Fraction = Field(
        0.05, description="Factor from 1 ± this on the stain's optical density."
    )
    stain_shift: Annotated[float, Field(ge=0, le=6)] = Field(
        0.02, description="Up to this much optical density, either way."
    )
    blur_p: Fraction = Field(0.0, description="Probability of a Gaussian blur.")
    blur_sigma_px: SigmaRange = Field((0.25, 1.5), description="Least and largest sigma.")
    jpeg_p: Fraction = Field(
        0.0, description="Probability of a compression as JPEG; needs 'where: loader'."
    )
    jpeg_quality: QualityRange = Field((40, 95), description="Least and largest quality.")
    cutout_p: Fraction = Field(0.0, description="Probability that rectangles are covered.")
    cutout_holes: Annotated[int, Field(ge=1, le=64)] = Field(1, description="How many.")
    cutout_px: SideRange = Field((16, 64), description="Least and largest side of each.")
    cutout_fill: Annotated[float, Field(ge=0, le=255)] = Field(
        0.0, description="Their level of 255."
    )

    @model_validator(mode="before")
    @classmethod
    def _is_a_section(cls, content: Any) -> Any:
        if isinstance(content, bool):
            raise ValueError(
                f"is a section: write '{{enabled: {str(content).lower()}}}', or set its key "
                "'enabled'"
            )
        return content

    @model_validator(mode="after")
    def _jpeg_is_of_the_loader(self) -> AugmentConfig:
        if self.jpeg_p > 0 and self.where != "loader":
            raise ValueError("'jpeg_p' needs 'where: loader': no device compresses as JPEG")
        return self
