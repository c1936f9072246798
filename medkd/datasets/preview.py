"""A sheet of tiles or images: each in a row, as stored and as augmented several times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from medkd.files import atomic_path

# An image is shown at its own size between these, pixels; smaller and larger ones are resized.
_LEAST_PX, _LARGEST_PX = 96, 256
_GAP_PX = 6
_DPI = 100
_LABEL_LETTERS = 26


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        label: class of the tile or image.
        name: of its slide, or of the image.
        images: uint8 3 x H x W, RGB; the stored one first.
    """

    label: str
    name: str
    images: Sequence[np.ndarray]


def sheet_pixels(rows: Sequence[SheetRow]) -> np.ndarray:
    """The images of all rows on white: uint8, height x width x 3.

    The first column stands a little apart from the others. Those of less than 96 px are enlarged by
    a whole factor, those of more than 256 px are made smaller.
    """
    lines = []
    for row in rows:
        tiles = [_shown(image) for image in row.images]
        side = tiles[0].shape[0]
        gap, wide = (np.full((side, n * _GAP_PX, 3), 255, np.uint8) for n in (1, 4))
        parts = [tiles[0], wide]
        for tile in tiles[1:]:
            parts += [tile, gap]
        lines += [np.hstack(parts[:-1]), np.full((_GAP_PX, 1, 3), 255, np.uint8)]
    width = lines[0].shape[1]
    return np.vstack([np.broadcast_to(line, (len(line), width, 3)) for line in lines[:-1]])


def write_sheet(
    path: Path,
    rows: Sequence[SheetRow],
    columns: Sequence[str],
    *,
    title: str,
    note: str,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Write a sheet as PNG.

    Args:
        path: of the picture.
        rows: as many images in each.
        columns: a name over each image.
        title: above all.
        note: below all, in small letters.
        colours: what each colour in the images means, told below the note.

    Raises:
        OutputError: it cannot be written.
    """
    pixels = sheet_pixels(rows)
    height, width = pixels.shape[:2]
    figure = Figure(dpi=_DPI, figsize=(width / _DPI, height / _DPI))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, interpolation="none", aspect="auto", extent=(0, width, height, 0))
    axes.spines[:].set_visible(False)
    side = _shown(rows[0].images[0]).shape[0]
    starts = [0, *(side + 4 * _GAP_PX + n * (side + _GAP_PX) for n in range(len(columns) - 1))]
    axes.set_xticks([start + side / 2 for start in starts], columns)
    axes.set_yticks(
        [n * (side + _GAP_PX) + side / 2 for n in range(len(rows))],
        [f"{row.label}\n{_shortened(row.name)}" for row in rows],
    )
    axes.tick_params(
        length=0, labelsize=9, top=True, bottom=False, labeltop=True, labelbottom=False
    )
    axes.set_title(title, loc="left", fontsize=11, pad=12)
    axes.text(0, height + 8, note, fontsize=7.5, color="0.35", va="top", ha="left", wrap=False)
    if colours:
        axes.legend(
            handles=[Patch(fc=colour, ec="0.1", label=name) for name, colour in colours.items()],
            loc="upper left",
            bbox_to_anchor=(0, height + 20),
            bbox_transform=axes.transData,
            ncols=len(colours),
            fontsize=7.5,
            frameon=False,
            borderaxespad=0,
            borderpad=0.2,
            handlelength=1,
        )
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=_DPI,
            bbox_inches="tight",
            pad_inches=0.12,
            metadata={"Software": None},
        )


def _shown(image: np.ndarray) -> np.ndarray:
    """H x W x 3, at the size at which it is shown."""
    tile = np.moveaxis(image, 0, -1)
    side = max(tile.shape[:2])
    if side < _LEAST_PX:
        factor = math.ceil(_LEAST_PX / side)
        return tile.repeat(factor, 0).repeat(factor, 1)
    if side > _LARGEST_PX:
        return np.asarray(Image.fromarray(tile).resize((_LARGEST_PX,) * 2, Image.Resampling.BOX))
    return tile


def _shortened(name: str) -> str:
    half = _LABEL_LETTERS // 2
    return name if len(name) <= _LABEL_LETTERS else f"{name[:half]}…{name[-half + 1 :]}"
