"""How much haematoxylin and eosin the tissue of a synthetic slide takes, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from medkd.slides.synthetic.tissue import NUCLEUS_KINDS, Structure, Tissue, smooth_noise

# One unit of stain is 128 levels, so that folds can hold twice as much.
UNIT = 128

# Amounts of (haematoxylin, eosin), units.
_STROMA = (0.09, 0.62)
_EPITHELIUM = (0.27, 0.50)
_SHEET = (0.27, 0.46)
_MUCIN = (0.13, 0.06)
_EMPTY = (0.015, 0.03)

# weight in [0, 1] by pixel, amounts of the stains there, factor on them
Lay = Callable[[np.ndarray, tuple[float, float], np.ndarray | float], None]

_ANGLES, _VARIANTS = 12, 8

# Length and width in micrometres, amount of haematoxylin in units, how uneven the chromatin is.
_NUCLEI = {
    "epithelial": (10.0, 6.8, 0.80, 0.26),
    "lymphocyte": (7.3, 6.8, 1.20, 0.18),
    "stromal": (13.0, 3.6, 0.80, 0.20),
    "debris": (3.6, 2.6, 0.85, 0.20),
}


def rasterise(
    tissue: Tissue, width_px: int, height_px: int, mpp: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Amounts of haematoxylin and eosin, uint8 height_px x width_px each, UNIT levels to the unit.

    Everything but nuclei is drawn on a grid of two pixels and enlarged: it has no finer detail
    than that but the grain, and takes a quarter of the time.
    """
    base = _base_stains(tissue, 2 * mpp, random)
    size = (width_px, height_px)
    box = (0, 0, width_px / 2, height_px / 2)
    haematoxylin, eosin = (
        np.array(Image.fromarray(stain).resize(size, Image.Resampling.BICUBIC, box=box))
        for stain in base
    )
    _stamp_nuclei(tissue.nuclei, haematoxylin, eosin, mpp, random)
    _add_grain(haematoxylin, eosin, random)
    return haematoxylin, eosin


def _base_stains(
    tissue: Tissue, grid_um: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Everything but nuclei, uint8, on a grid of ``grid_um``."""
    shape = (math.ceil(tissue.height_um / grid_um), math.ceil(tissue.width_um / grid_um))

    def noise(cell_um: float) -> np.ndarray:
        return smooth_noise(random, shape, (cell_um / grid_um, cell_um / grid_um))

    def enlarged(values: np.ndarray) -> np.ndarray:
        return np.asarray(
            Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        )

    fine = noise(4.5)
    clouds = noise(110)
    # Collagen: bundles are the stripes of a phase that wanders over several scales, so that they
    # wave, join and part. Their trace is kept for mucin, which is drawn out the same way.
    phase = enlarged(tissue.fibres) + 2.2 * noise(28) + 0.5 * fine
    stripes = np.sin(phase)
    # Fibrils are finer stripes within the bundles; squared, they are thin bright gaps.
    fibrils = np.sin(2.6 * phase + 1.5 * clouds)
    fibrils *= fibrils
    eosin = _STROMA[1] * (0.9 + 0.2 * stripes + 0.22 * fibrils + 0.16 * clouds + 0.07 * fine)
    haematoxylin = _STROMA[0] * (1 + 0.3 * clouds - 0.3 * stripes)
    # Between bundles the section tears into clefts, in some places more than in others.
    clefts = np.clip((-stripes - 1.0 + 0.45 * clouds + 0.35 * noise(16)) * 2.2, 0, 0.9)
    eosin -= eosin * clefts
    haematoxylin -= haematoxylin * clefts
    for structure in tissue.structures:
        _paint(structure, haematoxylin, eosin, fine, stripes, grid_um, random)
    # Ragged and sharp: tissue ends within a few micrometres.
    cover = np.clip((enlarged(tissue.islands) + 0.035 * fine + 0.02 * stripes) * 14, 0, 1)
    haematoxylin *= cover
    eosin *= cover
    return _levels(haematoxylin), _levels(eosin)


def _levels(amounts: np.ndarray) -> np.ndarray:
    return np.clip(amounts * UNIT, 0, 255, out=amounts).astype(np.uint8)


def _paint(
    structure: Structure,
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    fine: np.ndarray,
    stripes: np.ndarray,
    grid_um: float,
    random: np.random.Generator,
) -> None:
    reach = float(structure.outline_um.max()) + 8
    top, left = (max(int((c - reach) / grid_um), 0) for c in (structure.y_um, structure.x_um))
    bottom, right = (int((c + reach) / grid_um) for c in (structure.y_um, structure.x_um))
    window = (slice(top, max(bottom, 0)), slice(left, max(right, 0)))
    h, e, texture, streaks = (a[window] for a in (haematoxylin, eosin, fine, stripes))
    if not h.size:
        return
    x = (np.arange(left, left + h.shape[1], dtype=np.float32) + 0.5)[None, :] * grid_um
    y = (np.arange(top, top + h.shape[0], dtype=np.float32) + 0.5)[:, None] * grid_um
    depth, angle = structure.depth(x, y)
    depth = depth + 0.8 * texture
    uneven = 1 + 0.13 * texture

    def lay(weight: np.ndarray, stain: tuple[float, float], factor: np.ndarray | float) -> None:
        h[:] += weight * (stain[0] * factor - h)
        e[:] += weight * (stain[1] * factor - e)

    if structure.halo_um > 0:
        gap = np.clip((depth + structure.halo_um) / 1.2, 0, 1) * np.clip(0.5 - depth / 1.2, 0, 1)
        lay(gap * np.clip(0.9 + 0.8 * texture, 0, 0.9), _EMPTY, 1)
    body = np.clip(depth / 1.2, 0, 1)
    if structure.kind == "sheet":
        lay(body, _SHEET, uneven)
        if structure.radius_um > 30:
            _holes(structure, 2.2, (3, 8), (0.2, 0.75), _EMPTY, (x, y), lay, random)
    elif structure.kind == "mucin":
        lay(body, _MUCIN, 1 + 0.5 * streaks + 0.2 * texture)
        # Mucin is lost in part when the section is cut.
        lay(body * np.clip(-1.5 * streaks - 0.4 + 0.6 * texture, 0, 1), _EMPTY, 1)
    else:
        # Columnar cells: their borders run from the base to the lumen; the base is bluer.
        cells = round(2 * math.pi * structure.radius_um / 7.5)
        borders = 1 - 0.16 * np.cos(cells * angle + 1.5 * texture) ** 8
        lay(body, _EPITHELIUM, uneven * borders)
        h *= 1 - body * np.clip((depth - 13) / 25, 0, 0.45)
        apex = 1 - (structure.wall_um - 7) / structure.radius_um
        _holes(structure, 4, (3.5, 6.5), (apex - 0.07, apex + 0.07), _MUCIN, (x, y), lay, random)
        wall = structure.wall_um + 2.5 * texture + 1.5 * np.cos(3 * angle + structure.x_um)
        brush = np.clip(1 - np.abs(depth - wall + 1.5) / 1.8, 0, 1)
        e *= 1 + 0.45 * brush
        lay(np.clip((depth - wall) / 1.2, 0, 1), _EMPTY, 1 + 0.4 * texture)
        if structure.content > 0:
            flakes = np.clip(texture + streaks - 1.6 + 1.8 * structure.content, 0, 1)
            inside = np.clip((depth - wall - 4) / 3, 0, 1)
            lay(inside * flakes * 0.8, (0.12, 0.5), uneven)


def _holes(
    structure: Structure,
    mean_count: float,
    radii_um: tuple[float, float],
    where: tuple[float, float],
    stain: tuple[float, float],
    grid: tuple[np.ndarray, np.ndarray],
    lay: Lay,
    random: np.random.Generator,
) -> None:
    """Drops of mucin in a gland's cells, or small lumens in a sheet: round and even inside.

    They lie between two shares, ``where``, of the way from the centre to the outline.
    """
    count = int(random.poisson(random.gamma(1, mean_count)))
    angles = random.uniform(-math.pi, math.pi, count)
    shares = random.uniform(*where, count)
    xs, ys = structure.around(angles, structure.outline(angles) * (1 - shares))
    for centre_x, centre_y, radius in zip(xs, ys, random.uniform(*radii_um, count), strict=True):
        distance = np.hypot(grid[0] - centre_x, grid[1] - centre_y)
        lay(np.clip((radius - distance) / 1.2, 0, 0.9), stain, 0.9)


@cache
def nucleus_bank(mpp: float) -> tuple[tuple[tuple[np.ndarray, ...], ...], ...]:
    """Pre-drawn nuclei, [kind][angle][variant], uint8 amounts of haematoxylin at ``mpp``.

    The bank is the same for every slide: what differs is where the nuclei lie.
    """
    bank = []
    for number, kind in enumerate(NUCLEUS_KINDS):
        length_um, width_um, amount, chromatin = _NUCLEI[kind]
        angles = []
        for step in range(_ANGLES):
            # The same variants at every angle, and the same sizes at every mpp.
            random = np.random.default_rng((20, number))
            angles.append(
                tuple(
                    _nucleus(
                        length_um * random.uniform(0.82, 1.18),
                        width_um * random.uniform(0.85, 1.15),
                        amount * random.uniform(0.75, 1.15),
                        chromatin,
                        math.pi * step / _ANGLES,
                        mpp,
                        np.random.default_rng((21, number, variant)),
                    )
                    for variant in range(_VARIANTS)
                )
            )
        bank.append(tuple(angles))
    return tuple(bank)


def _nucleus(
    length_um: float,
    width_um: float,
    amount: float,
    uneven: float,
    angle: float,
    mpp: float,
    random: np.random.Generator,
) -> np.ndarray:
    half = math.ceil((length_um / 2 + 1.5) / mpp)
    steps = np.arange(-half, half + 1, dtype=np.float32) * mpp
    x, y = np.meshgrid(steps, steps)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    # Not quite an ellipse: one end is blunter, and the outline has a dent or two.
    taper = 1 + random.uniform(-0.2, 0.2) * along / length_um
    relative = np.hypot(along / (length_um / 2), across / (width_um / 2 * taper))
    relative *= 1 + 0.05 * np.cos(3 * np.arctan2(across, along) + random.uniform(0, 6))
    # The edge is soft over about 0.7 um, the reach of a 20x lens; chromatin makes it uneven.
    edge = np.clip((1 - relative) * (width_um / 2) / 0.7 + 0.5, 0, 1)
    clumps = smooth_noise(random, x.shape, (1.4 / mpp, 1.4 / mpp))
    rim = 0.9 + 0.35 * np.clip(1 - np.abs(relative - 0.82) / 0.2, 0, 1)
    values = amount * edge * (1 + uneven * clumps) * rim
    return np.clip(values * UNIT, 0, 255).astype(np.uint8)


def _stamp_nuclei(
    nuclei: np.ndarray,
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    mpp: float,
    random: np.random.Generator,
) -> None:
    bank = nucleus_bank(mpp)
    height, width = haematoxylin.shape
    columns = np.rint(nuclei[:, 0] / mpp).astype(int)
    rows = np.rint(nuclei[:, 1] / mpp).astype(int)
    angles = np.rint(nuclei[:, 2] / math.pi * _ANGLES).astype(int) % _ANGLES
    kinds = nuclei[:, 3].astype(int)
    variants = random.integers(0, _VARIANTS, len(nuclei))
    for column, row, kind, angle, variant in zip(
        columns.tolist(),
        rows.tolist(),
        kinds.tolist(),
        angles.tolist(),
        variants.tolist(),
        strict=True,
    ):
        sprite = bank[kind][angle][variant]
        half = sprite.shape[0] // 2
        top, left = row - half, column - half
        bottom, right = row + half + 1, column + half + 1
        if top < 0 or left < 0 or bottom > height or right > width:
            continue
        part = haematoxylin[top:bottom, left:right]
        np.maximum(part, sprite, out=part)
        # Where haematoxylin is bound there is little eosin, but never none.
        under = eosin[top:bottom, left:right]
        np.minimum(under, np.uint8(200) - np.minimum(sprite, 170), out=under)
        np.maximum(under, sprite >> 2, out=under)


def _add_grain(haematoxylin: np.ndarray, eosin: np.ndarray, random: np.random.Generator) -> None:
    """Fine texture of tissue and a trace of camera noise, from one tile of noise laid out often."""
    side = 512
    height, width = haematoxylin.shape
    for amounts in (haematoxylin, eosin):
        noise = random.standard_normal((side, side), np.float32)
        scaled = np.clip(np.rint(noise * 5), -16, 16).astype(np.int16)
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = amounts[top : top + side, left : left + side]
                turned = np.rot90(scaled, int(random.integers(4)))[: part.shape[0], : part.shape[1]]
                # Noise is in proportion to the stain, with a floor of a level or two on glass.
                strength = (part >> 5).astype(np.int16) + 2
                part[:] = np.clip(part + ((turned * strength) >> 3), 0, 255)
