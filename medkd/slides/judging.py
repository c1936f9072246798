"""What becomes of a tile, by its own pixels. The tile stage and infer both ask here."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from medkd.config import TileConfig
from medkd.slides.folds import UNKNOWN_STAIN, Stain, find_folds
from medkd.slides.quality import (
    COARSE_MPP,
    black_mask,
    find_pen,
    focus_score,
    resample,
    white_mask,
)
from medkd.slides.tissue import find_tissue

USED = "used"
UNREADABLE = "unreadable"
BACKGROUND = "background"
PEN = "pen"
BLACK = "black"
FOLD = "fold"
WHITE = "white"
OUT_OF_FOCUS = "out_of_focus"
ANNOTATION = "annotation"
REJECTIONS = (BACKGROUND, ANNOTATION, PEN, BLACK, FOLD, WHITE, OUT_OF_FOCUS)
"""Why a tile that could be had is not used."""

MAX_BLACK = 0.5
"""A tile of which more than this is black (the scanner's void, an opaque fold) is refused."""

# A tile on which the thumbnail shows tissue and that is this bright throughout was not scanned
# at full resolution, or was lost there.
_LOST_ABOVE = 250


# On a tile alone a stroke has less room than on a slide. Of 1,542 real tissue tiles one is taken
# for ink at this size, and an ink of a tenth of a tile of 112 um is found.
_SMALLEST_STROKE_IN_TILE_MM2 = 0.001


class Judgement(NamedTuple):
    """Of one tile that was read.

    Attributes:
        fate: ``used``, ``unreadable``, or one of :data:`REJECTIONS`.
        tissue_fraction: share of it that is tissue.
        focus: see :func:`medkd.slides.quality.focus_score`; nan where it was not measured.
    """

    fate: str
    tissue_fraction: float
    focus: float


def judge_tile(
    pixels: np.ndarray,
    parameters: TileConfig,
    *,
    tissue_fraction: float = math.nan,
    stain: Stain = UNKNOWN_STAIN,
) -> Judgement:
    """Judge a tile by its own pixels.

    Args:
        pixels: uint8, H x W x 3, RGB, at ``parameters.mpp``.
        parameters: hold the thresholds.
        tissue_fraction: what the thumbnail shows of it, where pen and folds were looked for
            too; nan where the thumbnail shows nothing: then they are looked for here.
        stain: what the slide's tissue takes up.
    """
    coarse = resample(pixels, parameters.mpp, COARSE_MPP)
    if math.isnan(tissue_fraction):
        fate, tissue_fraction = _judged_alone(coarse, parameters, stain)
    elif tissue_fraction > 0 and pixels.min() >= _LOST_ABOVE:
        fate = UNREADABLE
    else:
        fate = USED
    if fate == USED:
        if black_mask(coarse).mean() > MAX_BLACK:
            fate = BLACK
        elif white_mask(coarse).mean() > parameters.max_white:
            fate = WHITE
    if fate != USED:
        return Judgement(fate, tissue_fraction, math.nan)
    focus = focus_score(pixels, parameters.mpp)
    fate = USED if focus >= parameters.min_focus else OUT_OF_FOCUS
    return Judgement(fate, tissue_fraction, focus)


def _judged_alone(coarse: np.ndarray, parameters: TileConfig, stain: Stain) -> tuple[str, float]:
    """Fate and tissue share of a tile of which the thumbnail shows nothing."""
    mpp = max(parameters.mpp, COARSE_MPP)
    # One tile may be less than the smallest tissue that is believed of a whole slide.
    fraction = float(find_tissue(coarse, mpp, smallest_mm2=0).mean())
    if find_pen(coarse, mpp, _SMALLEST_STROKE_IN_TILE_MM2).mean() > parameters.max_pen:
        return PEN, fraction
    if find_folds(coarse, mpp, stain).mean() > parameters.max_fold:
        return FOLD, fraction
    return (USED if fraction >= parameters.min_tissue else BACKGROUND), fraction
