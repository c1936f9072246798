"""The tissue of a synthetic slide: where what lies, in micrometres. Nothing here knows a pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

NUCLEUS_KINDS = ("epithelial", "lymphocyte", "stromal", "debris")

# Shares of glands, solid sheets and mucin pools among the structures of the two patterns.
_KINDS = ("gland", "sheet", "mucin")
_SHARES_MSS = np.array([0.94, 0.05, 0.01])
_SHARES_MSI = np.array([0.10, 0.58, 0.32])

_OUTLINE_STEPS = 512

# x, y (micrometres), angle (radians), kind
AddNuclei = Callable[[np.ndarray, np.ndarray, np.ndarray, str], None]


@dataclass(frozen=True)
class Structure:
    """A gland, a solid sheet or a mucin pool.

    Attributes:
        kind: ``gland``, ``sheet`` or ``mucin``.
        x_um, y_um: of the centre.
        radius_um: mean distance of the outline from the centre.
        outline_um: that distance by angle, from -pi to pi in even steps.
        wall_um: height of a gland's epithelium, from its base to the lumen.
        halo_um: how far the stroma has shrunk away from it.
        content: of a gland's lumen, 0 (empty) to 1 (full of debris).
    """

    kind: str
    x_um: float
    y_um: float
    radius_um: float
    outline_um: np.ndarray
    wall_um: float
    halo_um: float
    content: float

    def outline(self, angle: np.ndarray) -> np.ndarray:
        """Distance of the outline from the centre at ``angle``, micrometres."""
        step = ((angle + math.pi) * (_OUTLINE_STEPS / (2 * math.pi))).astype(np.int32)
        return self.outline_um[np.minimum(step, _OUTLINE_STEPS - 1, out=step)]

    def around(self, angle: np.ndarray, depth_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points at ``depth_um`` inside the outline: x and y, micrometres."""
        wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
        distance = np.maximum(self.outline(wrapped) - depth_um, 0)
        return self.x_um + distance * np.cos(angle), self.y_um + distance * np.sin(angle)

    def depth(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far inside the outline points lie (micrometres; negative outside), and the angle."""
        dx, dy = x_um - self.x_um, y_um - self.y_um
        angle = np.arctan2(dy, dx)
        return self.outline(angle) - np.hypot(dx, dy), angle


@dataclass(frozen=True)
class Tissue:
    """What a slide shows.

    Attributes:
        width_um, height_um: of the slide.
        islands: positive on tissue, negative on glass; about 1 per 60 um from the edge. float32 on
            a grid of ``grid_um``.
        fibres: phase of the stroma's bundles, radians; they run along its level lines. Same grid.
        structures: glands, sheets and pools; where two overlap the later lies on top.
        nuclei: x, y (micrometres), angle (radians), kind (index in NUCLEUS_KINDS); float32 N x 4.
    """

    width_um: float
    height_um: float
    grid_um: float
    islands: np.ndarray
    fibres: np.ndarray
    structures: tuple[Structure, ...]
    nuclei: np.ndarray


def smooth_noise(
    random: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]
) -> np.ndarray:
    """Noise that varies over ``cell`` (rows, columns), float32 of ``shape``, about N(0, 1)."""
    small = tuple(max(math.ceil(n / c) + 3, 4) for n, c in zip(shape, cell, strict=True))
    values = random.standard_normal(small, np.float32)
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
        random: decides the rest.
    """
    grid_um = 4.0
    shape = (math.ceil(height_um / grid_um), math.ceil(width_um / grid_um))
    field = smooth_noise(random, shape, (450 / grid_um, 450 / grid_um))
    field = field + 0.22 * smooth_noise(random, shape, (70 / grid_um, 70 / grid_um))
    # A share of glass that knows nothing of the class, so that tissue area tells nothing.
    threshold = float(np.quantile(field, random.uniform(0.2, 0.35)))
    islands = (field - threshold).astype(np.float32)
    fibres = 34 * smooth_noise(random, shape, (420 / grid_um, 420 / grid_um))
    fibres = fibres + 8 * smooth_noise(random, shape, (90 / grid_um, 90 / grid_um))
    canvas = _Canvas(islands, np.zeros(shape, bool), grid_um)
    # Tumours lie towards one pattern or the other; few are half of each.
    pattern = 1 / (1 + math.exp(-11 * (severity - 0.5)))
    structures = _place_structures(canvas, width_um, height_um, pattern, random)
    nuclei = _place_nuclei(structures, canvas, fibres, width_um, height_um, pattern, random)
    return Tissue(width_um, height_um, grid_um, islands, fibres, structures, nuclei)


@dataclass(frozen=True)
class _Canvas:
    islands: np.ndarray
    taken: np.ndarray
    grid_um: float

    def cells(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = np.clip((y_um / self.grid_um).astype(np.intp), 0, self.taken.shape[0] - 1)
        column = np.clip((x_um / self.grid_um).astype(np.intp), 0, self.taken.shape[1] - 1)
        return row, column

    def fill(self, structure: Structure) -> None:
        reach = structure.outline_um.max()
        top, left = (
            max(int((c - reach) / self.grid_um), 0) for c in (structure.y_um, structure.x_um)
        )
        bottom, right = (
            int((c + reach) / self.grid_um) + 2 for c in (structure.y_um, structure.x_um)
        )
        part = self.taken[top:bottom, left:right]
        rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
        depth, _ = structure.depth(
            (columns + left + 0.5) * self.grid_um, (rows + top + 0.5) * self.grid_um
        )
        part |= depth > 0


def _new_structure(
    kind: str, x_um: float, y_um: float, radius_um: float, random: np.random.Generator
) -> Structure:
    angle = np.linspace(-math.pi, math.pi, _OUTLINE_STEPS, endpoint=False)
    counts = np.arange(2, 8)
    # Glands are cut at a slant: many are oval. Sheets and pools have bumpy outlines.
    sizes = random.normal(0, (0.05 if kind == "gland" else 0.09) / np.sqrt(counts - 1))
    sizes[0] = random.uniform(0.02, 0.26)
    phases = random.uniform(0, 2 * math.pi, len(counts))
    waves = sizes[:, None] * np.cos(counts[:, None] * angle + phases[:, None])
    return Structure(
        kind=kind,
        x_um=x_um,
        y_um=y_um,
        radius_um=radius_um,
        outline_um=(radius_um * (1 + waves.sum(0))).astype(np.float32),
        wall_um=float(random.uniform(23, 35)),
        # Solid nests shrink away from their stroma more than glands do. The gap is about as much
        # glass as glands have in their lumens: the share of glass in a tile tells no class.
        halo_um=float(random.uniform(3, 9) if kind == "sheet" else max(random.normal(0, 2), 0)),
        content=float(max(random.uniform(-0.8, 1), 0)),
    )


def _place_structures(
    canvas: _Canvas,
    width_um: float,
    height_um: float,
    pattern: float,
    random: np.random.Generator,
) -> tuple[Structure, ...]:
    shares = (1 - pattern) * _SHARES_MSS + pattern * _SHARES_MSI
    tries = int(width_um * height_um / 600)
    kinds = random.choice(len(_KINDS), tries, p=shares)
    xs, ys = random.uniform(0, width_um, tries), random.uniform(0, height_um, tries)
    # How crowded a tumour is differs between slides, whatever their class.
    gap_um = random.uniform(2, 9)
    # An outline is tried at 24 points outside it, and at 8 inside lest it enclose another.
    probe = np.linspace(-math.pi, math.pi, 32, endpoint=False)
    inner = np.arange(32) % 4 == 1
    placed: list[Structure] = []
    for kind, x, y in zip(kinds.tolist(), xs.tolist(), ys.tolist(), strict=True):
        row, column = int(y / canvas.grid_um), int(x / canvas.grid_um)
        if canvas.islands[row, column] < 0.1 or canvas.taken[row, column]:
            continue
        radius = 37 + 40 * random.random() ** 1.5
        structure = _new_structure(_KINDS[kind], x, y, radius, random)
        rows, columns = canvas.cells(*structure.around(probe, np.where(inner, 25.0, -gap_um)))
        if canvas.taken[rows, columns].any() or (canvas.islands[rows, columns] < 0.05).sum() > 1:
            continue
        placed.append(structure)
        canvas.fill(structure)
        if structure.kind == "mucin":
            placed.extend(_floating_nests(structure, random))
    return tuple(placed)


def _floating_nests(pool: Structure, random: np.random.Generator) -> list[Structure]:
    """Clusters of tumour cells that float in a pool of mucin."""
    nests = []
    for _ in range(random.poisson(1.3)):
        angle = random.uniform(-math.pi, math.pi)
        distance = random.uniform(0.1, 0.55) * pool.radius_um
        nest = _new_structure(
            "sheet",
            pool.x_um + distance * math.cos(angle),
            pool.y_um + distance * math.sin(angle),
            float(random.uniform(0.18, 0.34)) * pool.radius_um,
            random,
        )
        nests.append(replace(nest, halo_um=0.0))
    return nests


def _place_nuclei(
    structures: tuple[Structure, ...],
    canvas: _Canvas,
    fibres: np.ndarray,
    width_um: float,
    height_um: float,
    pattern: float,
    random: np.random.Generator,
) -> np.ndarray:
    parts: list[np.ndarray] = []

    def add(x: np.ndarray, y: np.ndarray, angle: np.ndarray, kind: str) -> None:
        index = np.full(len(x), NUCLEUS_KINDS.index(kind))
        parts.append(np.stack([x, y, angle, index], 1).astype(np.float32))

    # Stroma: spindle cells, as many on every slide whatever its class; lymphocytes in crowds.
    area_mm2 = width_um * height_um / 1e6
    count = int(random.uniform(1200, 2200) * area_mm2)
    x, y = random.uniform(0, width_um, count), random.uniform(0, height_um, count)
    down, across = (slope[canvas.cells(x, y)] for slope in np.gradient(fibres))
    along = np.arctan2(-across, down)
    add(x, y, along + random.normal(0, 0.25, count), "stromal")
    crowds = int(random.poisson(area_mm2 * (12 + 130 * pattern)))
    sizes = random.poisson(random.gamma(2, 7, crowds))
    for size, spread in zip(sizes.tolist(), random.uniform(14, 55, crowds).tolist(), strict=True):
        x = random.uniform(0, width_um) + spread * random.standard_normal(size)
        y = random.uniform(0, height_um) + spread * random.standard_normal(size)
        add(x, y, random.uniform(0, math.pi, size), "lymphocyte")
    stroma = np.concatenate(parts)
    parts = [stroma[~canvas.taken[canvas.cells(stroma[:, 0], stroma[:, 1])]]]

    for structure in structures:
        if structure.kind == "gland":
            _gland_nuclei(structure, random, add)
            _lymphocytes_within(structure, structure.wall_um, pattern, random, add)
        elif structure.kind == "sheet":
            _sheet_nuclei(structure, random, add)
            _lymphocytes_within(structure, 0.9 * structure.radius_um, pattern, random, add)
    nuclei = np.concatenate(parts)
    inside = (nuclei[:, 0] >= 0) & (nuclei[:, 0] < width_um)
    inside &= (nuclei[:, 1] >= 0) & (nuclei[:, 1] < height_um)
    nuclei = nuclei[inside]
    return nuclei[canvas.islands[canvas.cells(nuclei[:, 0], nuclei[:, 1])] > 0.03]


def _gland_nuclei(structure: Structure, random: np.random.Generator, add: AddNuclei) -> None:
    # Nuclei stand at the base of the cells, long axis towards the lumen, in more than one row.
    circumference = 2 * math.pi * (structure.radius_um - 8)
    count = int(circumference / 6.4 * random.uniform(1.0, 1.5))
    angle = np.linspace(-math.pi, math.pi, count, endpoint=False) + random.normal(0, 0.03, count)
    depth = 6.5 + np.where(np.arange(count) % 2, random.uniform(1.5, 9.5, count), 0)
    x, y = structure.around(angle, depth + random.normal(0, 1, count))
    add(x, y, angle + random.normal(0, 0.2, count), "epithelial")
    fragments = int(random.poisson(structure.content * 14))
    angle = random.uniform(-math.pi, math.pi, fragments)
    inner = max(structure.radius_um - structure.wall_um - 5, 0)
    x, y = structure.around(
        angle, structure.radius_um - inner * np.sqrt(random.uniform(0, 0.8, fragments))
    )
    if inner > 6:
        add(x, y, angle, "debris")


def _sheet_nuclei(structure: Structure, random: np.random.Generator, add: AddNuclei) -> None:
    # A jittered grid: cells are packed, and no two nuclei share a place.
    reach = structure.outline_um.max()
    steps = np.arange(-reach, reach, 11.0)
    x, y = (grid.ravel() for grid in np.meshgrid(steps, steps))
    x = x + np.where(np.arange(x.size) // len(steps) % 2, 5.5, 0)
    x = structure.x_um + x + random.uniform(-2.7, 2.7, x.size)
    y = structure.y_um + y + random.uniform(-2.7, 2.7, y.size)
    depth, _ = structure.depth(x, y)
    kept = (depth > 4) & (random.random(x.size) < 0.93)
    add(x[kept], y[kept], random.uniform(0, math.pi, int(kept.sum())), "epithelial")


def _lymphocytes_within(
    structure: Structure,
    reach_um: float,
    pattern: float,
    random: np.random.Generator,
    add: AddNuclei,
) -> None:
    """Intraepithelial lymphocytes, the best-known sign of MSI. Their number differs a lot."""
    expected = (0.06 + 0.94 * pattern) * structure.radius_um / 4.5
    count = int(random.poisson(random.gamma(2, expected / 2)))
    angle = random.uniform(-math.pi, math.pi, count)
    x, y = structure.around(angle, random.uniform(4, max(reach_um - 3, 5), count))
    add(x, y, angle, "lymphocyte")
