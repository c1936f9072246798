"""The tissue of a synthetic slide: where what lies, in micrometres, and how much stain it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

# One unit of stain is 128 levels, so that folds can hold twice as much.
UNIT = 128

# Amounts of stain, units.
_STROMA_E, _EPITHELIUM_E, _SHEET_E, _MUCIN_E, _LUMEN_E = 0.62, 0.55, 0.50, 0.10, 0.03
_STROMA_H, _EPITHELIUM_H, _SHEET_H, _MUCIN_H, _LUMEN_H = 0.08, 0.22, 0.26, 0.20, 0.02

_ANGLES, _VARIANTS = 12, 6

# Length and width in micrometres, amount of haematoxylin in units.
_NUCLEI = {
    "epithelial": (10.0, 6.8, 0.95),
    "lymphocyte": (6.8, 6.4, 1.35),
    "stromal": (12.0, 3.6, 0.95),
}
_KINDS = tuple(_NUCLEI)

# x, y (micrometres), angle (radians), kind
AddNuclei = Callable[[np.ndarray, np.ndarray, np.ndarray, str], None]


@dataclass(frozen=True)
class Structure:
    """A gland, a solid sheet or a mucin pool, micrometres."""

    kind: str
    x_um: float
    y_um: float
    radius_um: float
    waves: tuple[tuple[int, float, float], ...]

    def outline(self, angle: np.ndarray) -> np.ndarray:
        """Radius at ``angle``, micrometres."""
        factor = np.ones_like(angle)
        for count, size, phase in self.waves:
            factor = factor + size * np.cos(count * angle + phase)
        return self.radius_um * factor


@dataclass(frozen=True)
class Tissue:
    """What a slide shows.

    Attributes:
        islands: share of tissue, float32 on a grid of ``grid_um``.
        structures: glands, sheets and pools, none over another.
        nuclei: x, y (micrometres), angle (radians), kind (index); float32 N x 4.
    """

    width_um: float
    height_um: float
    grid_um: float
    islands: np.ndarray
    structures: tuple[Structure, ...]
    nuclei: np.ndarray


def smooth_noise(
    random: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]
) -> np.ndarray:
    """Noise that varies over ``cell`` (rows, columns), float32 of ``shape``, about N(0, 1)."""
    small = tuple(max(math.ceil(n / c) + 3, 4) for n, c in zip(shape, cell, strict=True))
    values = random.standard_normal(small).astype(np.float32)
    image = Image.fromarray(values).resize(
        (shape[1], shape[0]), Image.Resampling.BICUBIC, box=(1, 1, small[1] - 1, small[0] - 1)
    )
    return np.asarray(image)


def lay_out_tissue(
    width_um: float, height_um: float, severity: float, random: np.random.Generator
) -> Tissue:
    """Place islands, structures and nuclei.

    Args:
        width_um, height_um: of the slide.
        severity: of the MSI-like pattern, 0 to 1: more solid sheets, mucin and lymphocytes, fewer
            well-formed glands.
    """
    grid_um = 4.0
    shape = (math.ceil(height_um / grid_um), math.ceil(width_um / grid_um))
    field = smooth_noise(random, shape, (350 / grid_um, 350 / grid_um))
    field = field + 0.25 * smooth_noise(random, shape, (60 / grid_um, 60 / grid_um))
    # The same share of glass on every slide, so that the area of tissue tells no class.
    threshold = float(np.quantile(field, random.uniform(0.25, 0.4)))
    islands = np.clip((field - threshold) / 0.06, 0, 1).astype(np.float32)
    structures = _place_structures(islands, grid_um, width_um, height_um, severity, random)
    nuclei = _place_nuclei(structures, islands, grid_um, width_um, height_um, severity, random)
    return Tissue(width_um, height_um, grid_um, islands, structures, nuclei)


def _place_structures(
    islands: np.ndarray,
    grid_um: float,
    width_um: float,
    height_um: float,
    severity: float,
    random: np.random.Generator,
) -> tuple[Structure, ...]:
    chances = np.array([0.92 - 0.62 * severity, 0.06 + 0.40 * severity, 0.02 + 0.22 * severity])
    chances /= chances.sum()
    placed: list[Structure] = []
    taken = np.empty((0, 3))
    tries = int(width_um * height_um / 2500)
    for x, y in zip(
        random.uniform(0, width_um, tries), random.uniform(0, height_um, tries), strict=True
    ):
        kind = str(random.choice(("gland", "sheet", "mucin"), p=chances))
        radius = random.uniform(40, 75) if kind == "gland" else random.uniform(45, 95)
        row = min(int(y / grid_um), islands.shape[0] - 1)
        column = min(int(x / grid_um), islands.shape[1] - 1)
        if islands[row, column] < 1:
            continue
        gaps = np.hypot(taken[:, 0] - x, taken[:, 1] - y) - taken[:, 2] - radius
        if len(gaps) and gaps.min() < -2:
            continue
        rough = 0.05 if kind == "gland" else 0.09
        waves = tuple(
            (
                count,
                float(random.normal(0, rough / math.sqrt(count - 1))),
                float(random.uniform(0, 6.3)),
            )
            for count in (2, 3, 4, 5)
        )
        placed.append(Structure(kind, float(x), float(y), float(radius), waves))
        taken = np.vstack([taken, (x, y, radius)])
    return tuple(placed)


def _place_nuclei(
    structures: tuple[Structure, ...],
    islands: np.ndarray,
    grid_um: float,
    width_um: float,
    height_um: float,
    severity: float,
    random: np.random.Generator,
) -> np.ndarray:
    parts: list[np.ndarray] = []

    def add(x: np.ndarray, y: np.ndarray, angle: np.ndarray, kind: str) -> None:
        parts.append(np.stack([x, y, angle, np.full_like(x, _KINDS.index(kind))], 1))

    # Stroma: spindle cells along the fibres, lymphocytes in loose crowds.
    area_mm2 = width_um * height_um / 1e6
    count = int(900 * area_mm2)
    add(
        random.uniform(0, width_um, count),
        random.uniform(0, height_um, count),
        random.normal(0.6, 0.5, count),
        "stromal",
    )
    crowds = random.poisson(area_mm2 * (10 + 45 * severity))
    for _ in range(crowds):
        size = random.poisson(26)
        x, y = random.uniform(0, width_um), random.uniform(0, height_um)
        spread = random.uniform(12, 40)
        add(
            random.normal(x, spread, size),
            random.normal(y, spread, size),
            random.uniform(0, 3.2, size),
            "lymphocyte",
        )
    stroma = np.concatenate(parts)
    inside = np.zeros(len(stroma), bool)
    for structure in structures:
        inside |= _relative_radius(structure, stroma[:, 0], stroma[:, 1])[0] < 1.02
    parts = [stroma[~inside]]

    for structure in structures:
        if structure.kind == "gland":
            _gland_nuclei(structure, severity, random, add)
        else:
            _filled_nuclei(structure, severity, random, add)
    nuclei = np.concatenate(parts)
    row = (nuclei[:, 1] / grid_um).astype(int)
    column = (nuclei[:, 0] / grid_um).astype(int)
    within = (row >= 0) & (row < islands.shape[0]) & (column >= 0) & (column < islands.shape[1])
    nuclei = nuclei[within]
    on_tissue = islands[row[within], column[within]] > 0.6
    return nuclei[on_tissue].astype(np.float32)


def _relative_radius(
    structure: Structure, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the centre over the outline's radius there, and the angle."""
    dx, dy = x - structure.x_um, y - structure.y_um
    angle = np.arctan2(dy, dx)
    return np.hypot(dx, dy) / structure.outline(angle), angle


def _gland_nuclei(
    structure: Structure, severity: float, random: np.random.Generator, add: AddNuclei
) -> None:
    radius = structure.radius_um
    count = int(2 * math.pi * radius * 0.82 / 6.5)
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False) + random.normal(0, 0.02, count)
    # Nuclei stand at the base of the cells, long axis towards the lumen.
    distance = structure.outline(angle) - random.uniform(5.5, 11.0, count)
    add(
        structure.x_um + distance * np.cos(angle),
        structure.y_um + distance * np.sin(angle),
        angle + random.normal(0, 0.15, count),
        "epithelial",
    )
    _lymphocytes_within(structure, 0.72, severity, random, add)


def _filled_nuclei(
    structure: Structure, severity: float, random: np.random.Generator, add: AddNuclei
) -> None:
    radius = structure.radius_um
    if structure.kind == "sheet":
        # A jittered grid: cells are packed, and no two nuclei share a place.
        steps = np.arange(-radius * 1.3, radius * 1.3, 11.0)
        x, y = (grid.ravel() for grid in np.meshgrid(steps, steps))
        x = structure.x_um + x + random.uniform(-3, 3, x.size)
        y = structure.y_um + y + random.uniform(-3, 3, y.size)
    else:
        count = random.poisson(math.pi * radius**2 / 2500)
        x = structure.x_um + random.uniform(-radius, radius, count)
        y = structure.y_um + random.uniform(-radius, radius, count)
    relative, _ = _relative_radius(structure, x, y)
    kept = relative < (0.95 if structure.kind == "sheet" else 0.8)
    add(x[kept], y[kept], random.uniform(0, 3.2, int(kept.sum())), "epithelial")
    if structure.kind == "sheet":
        _lymphocytes_within(structure, 0.0, severity, random, add)


def _lymphocytes_within(
    structure: Structure,
    inner: float,
    severity: float,
    random: np.random.Generator,
    add: AddNuclei,
) -> None:
    """Intraepithelial lymphocytes, the best-known sign of MSI."""
    count = random.poisson(severity**1.5 * structure.radius_um / 6)
    angle = random.uniform(0, 2 * math.pi, count)
    share = np.sqrt(random.uniform(inner**2, 0.95**2, count))
    distance = structure.outline(angle) * share
    add(
        structure.x_um + distance * np.cos(angle),
        structure.y_um + distance * np.sin(angle),
        random.uniform(0, 3.2, count),
        "lymphocyte",
    )


@cache
def nucleus_bank(mpp: float) -> tuple[tuple[tuple[np.ndarray, ...], ...], ...]:
    """Pre-drawn nuclei, [kind][angle][variant], uint8 amounts of haematoxylin at ``mpp``.

    The bank is the same for every slide: what differs is where the nuclei lie.
    """
    random = np.random.default_rng(20)
    bank = []
    for length_um, width_um, amount in _NUCLEI.values():
        angles = []
        for step in range(_ANGLES):
            angle = math.pi * step / _ANGLES
            variants = []
            for _ in range(_VARIANTS):
                scale = random.uniform(0.88, 1.15)
                variants.append(
                    _nucleus(
                        length_um * scale,
                        width_um * random.uniform(0.9, 1.1) * scale,
                        amount * random.uniform(0.8, 1.1),
                        angle,
                        mpp,
                        random,
                    )
                )
            angles.append(tuple(variants))
        bank.append(tuple(angles))
    return tuple(bank)


def _nucleus(
    length_um: float,
    width_um: float,
    amount: float,
    angle: float,
    mpp: float,
    random: np.random.Generator,
) -> np.ndarray:
    half = math.ceil((length_um / 2 + 1.5) / mpp)
    steps = np.arange(-half, half + 1, dtype=np.float32) * mpp
    x, y = np.meshgrid(steps, steps)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    relative = np.hypot(along / (length_um / 2), across / (width_um / 2))
    # The edge is soft over about 0.7 um, the reach of a 20x lens; chromatin makes it uneven.
    edge = np.clip((1 - relative) * (width_um / 2) / 0.7 + 0.5, 0, 1)
    chromatin = smooth_noise(random, x.shape, (1.3 / mpp, 1.3 / mpp))
    rim = 1 + 0.25 * np.clip(1 - np.abs(relative - 0.85) / 0.15, 0, 1)
    values = amount * edge * (1 + 0.18 * chromatin) * rim
    return np.clip(values * UNIT, 0, 255).astype(np.uint8)


def rasterise(
    tissue: Tissue, width_px: int, height_px: int, mpp: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Amounts of haematoxylin and eosin, uint8 height_px x width_px each, 128 to the unit."""
    base_h, base_e = _base_stains(tissue, random)
    size = (width_px, height_px)
    haematoxylin, eosin = (
        np.array(Image.fromarray(base).resize(size, Image.Resampling.BICUBIC))
        for base in (base_h, base_e)
    )
    _stamp_nuclei(tissue.nuclei, haematoxylin, eosin, mpp, random)
    _add_grain(haematoxylin, eosin, random)
    return haematoxylin, eosin


def _base_stains(tissue: Tissue, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Everything but nuclei, on a grid of 1 um."""
    shape = (math.ceil(tissue.height_um), math.ceil(tissue.width_um))
    islands = np.asarray(
        Image.fromarray(tissue.islands).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    )
    # Fibres: noise drawn out along two directions, mixed over some 200 um.
    mix = 1 / (1 + np.exp(-3 * smooth_noise(random, shape, (200, 200))))
    fibres = mix * smooth_noise(random, shape, (2.5, 30)) + (1 - mix) * smooth_noise(
        random, shape, (22, 3)
    )
    clouds = smooth_noise(random, shape, (90, 90))
    eosin = _STROMA_E * (1 + 0.22 * fibres + 0.12 * clouds)
    haematoxylin = _STROMA_H * (1 + 0.3 * clouds)
    for structure in tissue.structures:
        _paint(structure, haematoxylin, eosin, random)
    return tuple(
        np.clip(stain * islands * UNIT, 0, 255).astype(np.uint8) for stain in (haematoxylin, eosin)
    )


def _paint(
    structure: Structure, haematoxylin: np.ndarray, eosin: np.ndarray, random: np.random.Generator
) -> None:
    reach = structure.radius_um * 1.4
    top, left = max(int(structure.y_um - reach), 0), max(int(structure.x_um - reach), 0)
    bottom, right = int(structure.y_um + reach), int(structure.x_um + reach)
    h, e = haematoxylin[top:bottom, left:right], eosin[top:bottom, left:right]
    if not h.size:
        return
    y, x = np.mgrid[top : top + h.shape[0], left : left + h.shape[1]].astype(np.float32)
    relative, _ = _relative_radius(structure, x, y)
    body = np.clip((1 - relative) * structure.radius_um / 1.5, 0, 1)
    texture = smooth_noise(random, h.shape, (5, 5))

    def lay(weight: np.ndarray, amount_h: float, amount_e: float, uneven: float) -> None:
        h[:] += weight * (amount_h * (1 + uneven * texture) - h)
        e[:] += weight * (amount_e * (1 + uneven * texture) - e)

    if structure.kind == "gland":
        lay(body, _EPITHELIUM_H, _EPITHELIUM_E, 0.12)
        inner = 1 - random.uniform(24, 30) / structure.radius_um
        lumen = np.clip((inner - relative) * structure.radius_um / 2, 0, 1)
        lay(lumen, _LUMEN_H, _LUMEN_E, 0.3)
    elif structure.kind == "sheet":
        lay(body, _SHEET_H, _SHEET_E, 0.15)
    else:
        streaks = 1 + 0.35 * smooth_noise(random, h.shape, (3, 18))
        lay(body, 0, 0, 0)
        h[:] += body * _MUCIN_H * streaks
        e[:] += body * _MUCIN_E * streaks


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
        # Where haematoxylin is bound, little eosin is.
        under = eosin[top:bottom, left:right]
        np.minimum(under, np.uint8(255) - sprite, out=under)


def _add_grain(haematoxylin: np.ndarray, eosin: np.ndarray, random: np.random.Generator) -> None:
    """Fine texture of tissue and a trace of camera noise, from one tile of noise laid out often."""
    side = 512
    height, width = haematoxylin.shape
    for amounts in (haematoxylin, eosin):
        noise = random.normal(0, 1, (side, side)).astype(np.float32)
        scaled = np.clip(np.rint(noise * 5), -16, 16).astype(np.int16)
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = amounts[top : top + side, left : left + side]
                turned = np.rot90(scaled, int(random.integers(4)))[: part.shape[0], : part.shape[1]]
                # Noise is in proportion to the stain, with a floor of a level or two on glass.
                strength = (part >> 5).astype(np.int16) + 2
                part[:] = np.clip(part + ((turned * strength) >> 3), 0, 255)
