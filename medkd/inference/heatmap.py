"""Where on the slide the score comes from: the tiles' probabilities over the H&E thumbnail."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from medkd.inference.engine import ScoredTile, SlideInference

# Perceptually uniform, and read alike by colour-blind people.
COLOUR_MAP = "viridis"
_DISAGREEMENT_MAP = "cividis"

# A panel is some 500 pixels wide. What is finer is not seen, and takes 100 bytes a pixel to draw.
_MOST_SIDE_PX = 1200


def heatmap_values(
    tiles: Sequence[ScoredTile],
    tile_extent_px: float,
    scale: float,
    shape: tuple[int, int],
    value: Callable[[ScoredTile], float] = attrgetter("probability"),
) -> np.ndarray:
    """Probability of each pixel of a thumbnail; overlapping tiles are averaged.

    Args:
        tiles: corners in level-0 pixels.
        tile_extent_px: side of a tile, level-0 pixels.
        scale: thumbnail pixels per level-0 pixel.
        shape: height and width of the thumbnail.
        value: what of a tile is shown.

    Returns:
        float64, of ``shape``; nan where no tile lies.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for tile in tiles:
        rows, columns = tile_rectangle(tile.x, tile.y, tile_extent_px, scale)
        total[rows, columns] += value(tile)
        count[rows, columns] += 1
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)


def tile_rectangle(x: int, y: int, tile_extent_px: float, scale: float) -> tuple[slice, slice]:
    """Rows and columns of a tile on the thumbnail; neighbouring tiles share no pixel."""
    top, bottom = round(y * scale), round((y + tile_extent_px) * scale)
    left, right = round(x * scale), round((x + tile_extent_px) * scale)
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def heatmap_png(
    result: SlideInference, threshold: float | None, positive: str, *, synthetic_model: bool = False
) -> bytes:
    """The thumbnail with the outline of the tissue, and beside it what the students say over it.

    The scales, from 0 to 1, are the same on every slide.

    Args:
        result: of the slide.
        threshold: the operating point as a mean of tiles, marked on the scale; None: it is none.
        positive: name of the positive class.
        synthetic_model: the model learnt from drawn slides; the picture says so.
    """
    result = _as_drawn(result)
    height, width = result.thumbnail.shape[:2]
    scale = result.properties.mpp / result.thumbnail_mpp
    tall = height > 1.4 * width
    figure = Figure(
        figsize=(13, 8 if tall else max(3.0, 0.7 + 3.7 * height / width)),
        layout=ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97)),
    )
    slide, probability, disagreement = figure.subplots(1, 3)
    slide.imshow(result.thumbnail, interpolation="bicubic")
    for axes, title in (
        (slide, "H&E, tissue outlined"),
        (probability, f"probability of {positive} by tile"),
        (disagreement, "disagreement of students by tile"),
    ):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    if result.tissue_mask.any():
        slide.contour(result.tissue_mask, [0.5], colors="#0072B2", linewidths=0.8)
    for axes, colours, value in (
        (probability, COLOUR_MAP, "probability"),
        (disagreement, _DISAGREEMENT_MAP, "disagreement"),
    ):
        values = heatmap_values(
            result.tiles, result.tile_extent_px, scale, (height, width), attrgetter(value)
        )
        # Grey, so that every colour here is a tile's.
        grey = result.thumbnail.mean(axis=2)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        shown = axes.imshow(values, cmap=colours, vmin=0, vmax=1, alpha=0.6, interpolation="none")
        bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
        if axes is probability and threshold is not None:
            bar.ax.axhline(threshold, color="#D55E00", linewidth=2)
            bar.ax.text(
                -0.25, threshold, "operating\npoint", color="#D55E00", fontsize=7,
                ha="right", va="center",
            )  # fmt: skip
    _scale_bar(slide, width, result.thumbnail_mpp)
    note = f"{result.properties.slide_id}. Research use only."
    if result.properties.synthetic:
        note += " Synthetic slide."
    if synthetic_model:
        note += " Model trained on synthetic slides."
    figure.text(0.01, 0.01, note, fontsize=7, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _as_drawn(result: SlideInference) -> SlideInference:
    """The same with a thumbnail that is no finer than what can be seen of it."""
    factor = -(-max(result.thumbnail.shape) // _MOST_SIDE_PX)
    if factor == 1:
        return result
    mask = Image.fromarray(result.tissue_mask.astype(np.uint8) * 255)
    return replace(
        result,
        thumbnail=np.asarray(Image.fromarray(result.thumbnail).reduce(factor)),
        tissue_mask=np.asarray(mask.reduce(factor)) > 127,
        thumbnail_mpp=result.thumbnail_mpp * factor,
    )


def _scale_bar(axes: mpl.axes.Axes, width_px: int, mpp: float) -> None:
    """A bar of a round length, at most a quarter of the image."""
    lengths = [value * 10.0**power for power in range(0, 5) for value in (1, 2, 5)]
    length_um = max([um for um in lengths if um / mpp <= width_px / 4], default=lengths[0])
    # Below the image, where it hides no tissue and can be read on any stain.
    x0, y0 = 0.0, -0.035
    span = length_um / mpp / width_px
    axes.plot(
        [x0, x0 + span], [y0, y0], transform=axes.transAxes, color="black", linewidth=3,
        solid_capstyle="butt", clip_on=False,
    )  # fmt: skip
    axes.text(
        x0 + span + 0.015, y0, f"{length_um / 1000:g} mm", transform=axes.transAxes, fontsize=8,
        va="center",
    )  # fmt: skip
