"""How a slide becomes patches."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medkd.config.types import FilePath, Fraction, Positive
from medkd.schema import Strict

Micrometres = Annotated[float, Field(gt=0)]
SlideMpp = Annotated[float, Field(gt=0)]
ClassNames = Annotated[tuple[str, ...], Field(strict=False)]


class TileConfig(Strict):
    """How a slide becomes patches. Recorded with every tile store and model package."""

    mpp: SlideMpp = Field(0.5, description="Resolution of a tile, micrometres per pixel.")
    size_px: Annotated[int, Field(ge=16, le=4096)] = Field(
        224, description="Side of a tile, pixels at that resolution."
    )
    size_um: Micrometres | None = Field(
        None,
        description="Side of a tile, micrometres; then 'mpp' follows from it and 'size_px' and is "
        "left out.",
    )
    step_px: Positive | None = Field(
        None, description="Distance between tiles, pixels; null: the side (no overlap)."
    )
    min_tissue: Fraction = Field(0.5, description="Least share of a tile that must be tissue.")
    min_focus: Annotated[float, Field(ge=0)] = Field(
        0.05,
        description="Least focus score of a tile; sharp tissue is above 0.07, blurred by 3 um "
        "below 0.05. 0 keeps blurred tiles.",
    )
    max_pen: Fraction = Field(0.1, description="Largest share of a tile that may be pen ink.")
    max_fold: Fraction = Field(
        0.2, description="Largest share of a tile that may be folded tissue; 1 keeps folds."
    )
    max_white: Fraction = Field(
        0.9,
        description="Largest share of a tile that may be white in its own pixels, whatever the "
        "thumbnail shows there. Blank tiles are above 0.97, very loose tissue is about 0.75, other "
        "tissue below 0.3.",
    )
    annotations: FilePath | None = Field(
        None,
        description="Folder with <slide_id>.geojson (QuPath), areas in level-0 pixels; null: none. "
        "infer looks at no annotations.",
    )
    annotations_include: ClassNames = Field(
        (), description="Classes of areas that tiles must lie in; none: everywhere."
    )
    annotations_exclude: ClassNames = Field(
        (), description="Classes of areas that tiles must not lie in."
    )
    max_unreadable: Fraction = Field(
        0.1,
        description="A slide fails if more than this share of the tiles that had to be read "
        "could not be.",
    )
    mpp_range: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.1, 4.0), description="A slide's own resolution outside this range is not believed."
    )
    max_upsampling: Annotated[float, Field(ge=1)] = Field(
        1.1, description="How much coarser than 'mpp' a slide may be; beyond, it is refused."
    )
    use_objective_power: bool = Field(
        False, description="Where mpp is missing, take 10 / objective power (a guess, recorded)."
    )
    reader: Literal["auto", "jpeg", "openslide", "cucim"] = Field(
        "auto",
        description="What reads slides: 'jpeg' decodes the native tiles of JPEG pyramids, fast; "
        "'openslide' reads every format; 'auto' takes the first where it can. 'cucim' (an extra) "
        "reads only pyramids whose every native tile was checked before.",
    )
    icc: Literal["ignore", "apply"] = Field(
        "ignore",
        description="Whether a slide's ICC profile is applied, so that colours become sRGB; such "
        "a slide is read through OpenSlide. infer repeats it.",
    )
    store: Literal["jpeg", "coordinates"] = Field(
        "jpeg",
        description="'jpeg' keeps a copy of each tile; 'coordinates' just its place: training and "
        "infer then read the slide itself, without that JPEG's loss.",
    )
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = Field(
        90, description="JPEG quality of stored tiles; infer repeats the same encoding."
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        3600.0, description="A slide that takes longer is given up, seconds."
    )
    workers: Positive = Field(2, description="Slides read at the same time, a process each.")

    @model_validator(mode="before")
    @classmethod
    def _size_gives_mpp(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        size_um, size_px = content.get("size_um"), content.get("size_px", cls._default("size_px"))
        if not isinstance(size_um, int | float) or not isinstance(size_px, int):
            return content  # without it, or told as a fault of its own
        if size_um <= 0 or size_px < 1:
            return content
        mpp = content.get("mpp")
        if isinstance(mpp, int | float) and not math.isclose(mpp * size_px, size_um, rel_tol=1e-9):
            raise ValueError(
                f"'size_um' {size_um:g} over 'size_px' {size_px} is {size_um / size_px:g} um/px, "
                f"and 'mpp' is {mpp:g}: leave 'mpp' out (or set it to null)"
            )
        return {**content, "mpp": size_um / size_px}

    @classmethod
    def _default(cls, name: str) -> Any:
        return cls.model_fields[name].default

    @model_validator(mode="after")
    def _annotations_have_a_use(self) -> TileConfig:
        if self.annotations and not (self.annotations_include or self.annotations_exclude):
            raise ValueError(
                "'annotations' needs a class in 'annotations_include' or 'annotations_exclude'"
            )
        both = sorted({*self.annotations_include} & {*self.annotations_exclude})
        if both:
            raise ValueError(
                f"{both[0]!r} stands in both 'annotations_include' and 'annotations_exclude'"
            )
        return self

    def recorded(self) -> dict[str, Any]:
        """What decides a store's content.

        How many processes made it does not, nor how long they might take, nor where the
        annotations lay: each slide's record has a digest of its own.
        """
        never = {"workers", "time_limit_s", "annotations", "size_um"}  # mpp says the last
        return self.model_dump(mode="json", exclude=never)

    def packaged(self) -> dict[str, Any]:
        """What a model package says of its tiles: what was drawn on slides stays behind."""
        drawn = {"annotations", "annotations_include", "annotations_exclude"}
        return self.model_dump(mode="json", exclude=drawn | {"size_um"})
