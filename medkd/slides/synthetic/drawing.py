"""Synthetic H&E slides: the project's embedded data. They imitate; they are evidence of nothing.

Geometry is drawn in micrometres from the seed alone and then rasterised, so a slide shows the same
tissue at 0.25 and at 0.5 um/px. Stains are amounts of haematoxylin and eosin that go through
Beer-Lambert's law with each site's own colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.optimize import root
from scipy.special import ndtri

from medkd.slides.synthetic.stains import UNIT, rasterise
from medkd.slides.synthetic.tissue import lay_out_tissue

Label = Literal["MSI", "MSS"]
SiteName = Literal["A", "B"]
Artefact = Literal["pen", "fold", "out_of_focus", "pale"]
Chroma = Literal["444", "422", "420"]
ARTEFACTS: tuple[Artefact, ...] = get_args(Artefact)

# Severity in [0, 1] of the MSI-like pattern. The classes overlap: an ideal reader of the severity
# itself reaches an AUROC of Phi(0.38 / (0.12 sqrt(2))) = 0.987.
_SEVERITY_MEAN = {"MSS": 0.31, "MSI": 0.69}
_SEVERITY_SD = 0.12

# Share of red and of green light that tissue lets through, on average.
_MEAN_TRANSMISSION = np.array([0.73, 0.385])

_PEN_COLOURS = {
    "blue": (30, 60, 170),
    "green": (20, 120, 60),
    "black": (25, 25, 30),
    "red": (190, 25, 40),
}


@dataclass(frozen=True)
class Site:
    """A laboratory: its stains (optical density of red, green, blue per unit) and JPEG quality."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[int, int, int]
    jpeg_quality: int


SITES: dict[SiteName, Site] = {
    "A": Site((0.58, 0.64, 0.28), (0.07, 0.50, 0.22), (243, 242, 245), 88),
    "B": Site((0.50, 0.66, 0.40), (0.05, 0.58, 0.36), (240, 241, 238), 75),
}


@dataclass(frozen=True)
class SlideSpec:
    """All that decides a slide's bytes.

    Raises ValueError, on making one, that says which value is wrong.

    Attributes:
        label: ``MSI`` or ``MSS``; decides the severity where that is None.
        seed: of everything that is drawn.
        width_px, height_px: of level 0.
        mpp: of level 0, micrometres per pixel, 0.2 to 1.
        site: ``A`` or ``B``: stain and JPEG quality.
        severity: of the MSI-like pattern, 0 to 1, shared by a patient's slides; drawn from the
            label and the seed where None.
        artefacts: what went wrong on this slide.
        with_label_and_macro: add the associated images that scanners add.
        chroma: how JPEG keeps colour: ``444`` in full, ``422`` at half the width, ``420`` at half
            the width and height, as most scanners do.
    """

    label: Label
    seed: int
    width_px: int = 2048
    height_px: int = 2048
    mpp: float = 0.5
    site: SiteName = "A"
    severity: float | None = None
    artefacts: frozenset[Artefact] = frozenset()
    with_label_and_macro: bool = False
    chroma: Chroma = "444"

    def __post_init__(self) -> None:
        if self.label not in _SEVERITY_MEAN:
            raise ValueError(f"label must be MSI or MSS, not {self.label!r}")
        if self.site not in SITES:
            raise ValueError(f"site must be one of {sorted(SITES)}, not {self.site!r}")
        if self.chroma not in get_args(Chroma):
            raise ValueError(f"chroma must be one of {get_args(Chroma)}, not {self.chroma!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is")
        if not 0.2 <= self.mpp <= 1:
            raise ValueError(f"mpp must lie between 0.2 and 1 um/px, not {self.mpp}")
        if min(self.width_px, self.height_px) < 256:
            raise ValueError(
                f"a slide must be at least 256 px wide and high, not "
                f"{self.width_px} x {self.height_px}"
            )
        unknown = self.artefacts - set(ARTEFACTS)
        if unknown:
            raise ValueError(f"unknown artefacts {sorted(unknown)}; known: {list(ARTEFACTS)}")
        if self.severity is not None and not 0 <= self.severity <= 1:
            raise ValueError(f"severity must lie between 0 and 1, not {self.severity}")


def draw_severity(label: Label, seed: int) -> float:
    """A patient's severity: normal around the mean of ``label``, cut to [0, 1]."""
    return severity_at(label, float(np.random.default_rng((seed, 1)).random()))


def severity_at(label: Label, quantile: float) -> float:
    """The severity that the share ``quantile`` of patients with ``label`` stay below."""
    return float(np.clip(_SEVERITY_MEAN[label] + _SEVERITY_SD * ndtri(quantile), 0, 1))


def draw_slide(spec: SlideSpec) -> np.ndarray:
    """Draw a slide: uint8, height_px x width_px x 3, RGB."""
    severity = draw_severity(spec.label, spec.seed) if spec.severity is None else spec.severity
    random = np.random.default_rng((spec.seed, 2))
    width_um, height_um = spec.width_px * spec.mpp, spec.height_px * spec.mpp
    tissue = lay_out_tissue(width_um, height_um, severity, random)
    haematoxylin, eosin = rasterise(tissue, spec.width_px, spec.height_px, spec.mpp, random)
    strengths = _strengths(haematoxylin, eosin, random)
    artefact_random = np.random.default_rng((spec.seed, 3))
    if "pale" in spec.artefacts:
        _change_stain("pale", haematoxylin, eosin, spec, artefact_random)
    if "fold" in spec.artefacts:
        _change_stain("fold", haematoxylin, eosin, spec, artefact_random)
    image = _stain(haematoxylin, eosin, SITES[spec.site], strengths)
    if "out_of_focus" in spec.artefacts:
        _defocus(image, spec, artefact_random)
    if "pen" in spec.artefacts:
        image = _mark_with_pen(image, spec, artefact_random)
    return image


def _strengths(
    haematoxylin: np.ndarray, eosin: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """How strongly each stain is taken up on this slide.

    Lymphocytes and sheets take more haematoxylin than glands, so slides' mean colours would tell
    their class. They are levelled: the tissue of every slide lets about the same light through, up
    to a variation that knows nothing of the class.
    """
    wanted = _MEAN_TRANSMISSION ** random.uniform(0.88, 1.13, 2)
    some = (slice(None, None, 11), slice(None, None, 11))
    amounts = np.stack([stain[some].ravel() for stain in (haematoxylin, eosin)]) / np.float32(UNIT)
    amounts = amounts[:, amounts.sum(0) > 0.15]
    if not amounts.size:
        return np.ones(2)
    # Red and green of a stain between those of the sites.
    colours = np.mean([[site.haematoxylin[:2], site.eosin[:2]] for site in SITES.values()], 0).T

    def excess(strengths: np.ndarray) -> np.ndarray:
        return (10 ** -((colours * strengths) @ amounts)).mean(1) - wanted

    # Rounded, lest the last bits of a sum decide a slide's bytes.
    return np.round(np.clip(root(excess, np.ones(2), tol=1e-4).x, 0.5, 1.8), 3)


def _stain(
    haematoxylin: np.ndarray, eosin: np.ndarray, site: Site, strengths: np.ndarray
) -> np.ndarray:
    """Beer-Lambert through a table over both amounts: exact, and one look-up per pixel."""
    amounts = np.arange(256, dtype=np.float32) / 128
    density = amounts[:, None, None] * np.float32(strengths[0]) * np.array(
        site.haematoxylin, np.float32
    ) + amounts[None, :, None] * np.float32(strengths[1]) * np.array(site.eosin, np.float32)
    colours = np.array(site.glass, np.float32) * np.power(np.float32(10), -density)
    table = np.clip(np.rint(colours), 0, 255).astype(np.uint8).reshape(-1, 3)
    index = haematoxylin.astype(np.uint16)
    index <<= 8
    index |= eosin
    return table[index]


def _ellipse(
    spec: SlideSpec, random: np.random.Generator, share: float
) -> tuple[slice, slice, np.ndarray]:
    """A soft ellipse over about ``share`` of the side: its rows, columns and weight in [0, 1]."""
    half_h, half_w = int(spec.height_px * share / 2), int(spec.width_px * share / 2)
    y = int(random.integers(half_h, spec.height_px - half_h))
    x = int(random.integers(half_w, spec.width_px - half_w))
    rows = np.linspace(-1, 1, 2 * half_h, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, 2 * half_w, dtype=np.float32)[None, :]
    weight = np.clip((1 - np.hypot(rows, columns)) * 5, 0, 1)
    return slice(y - half_h, y + half_h), slice(x - half_w, x + half_w), weight


def _change_stain(
    artefact: Artefact,
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    spec: SlideSpec,
    random: np.random.Generator,
) -> None:
    if artefact == "pale":
        rows, columns, weight = _ellipse(spec, random, 0.5)
        factor = 1 - 0.65 * weight
    else:
        rows, columns = slice(0, spec.height_px), slice(0, spec.width_px)
        angle, offset = random.uniform(0, math.pi), random.uniform(-0.2, 0.2)
        side_um = min(spec.width_px, spec.height_px) * spec.mpp
        y = (np.arange(spec.height_px, dtype=np.float32)[:, None] - spec.height_px / 2) * spec.mpp
        x = (np.arange(spec.width_px, dtype=np.float32)[None, :] - spec.width_px / 2) * spec.mpp
        along = x * math.cos(angle) + y * math.sin(angle)
        across = -x * math.sin(angle) + y * math.cos(angle) - offset * side_um
        across += 30 * np.sin(along / 110)
        # Some 70 um wide; tissue lies double there, and has no sharp edge to it.
        factor = 1 + 1.1 * np.clip((35 - np.abs(across)) / 10, 0, 1)
    for amounts in (haematoxylin, eosin):
        part = amounts[rows, columns]
        part[:] = np.clip(part * factor, 0, 255).astype(np.uint8)


def _defocus(image: np.ndarray, spec: SlideSpec, random: np.random.Generator) -> None:
    rows, columns, weight = _ellipse(spec, random, 0.45)
    part = image[rows, columns]
    blurred = Image.fromarray(part).filter(ImageFilter.GaussianBlur(5 / spec.mpp))
    mixed = part + (np.asarray(blurred, np.float32) - part) * weight[..., None]
    part[:] = np.rint(mixed).astype(np.uint8)


def _mark_with_pen(image: np.ndarray, spec: SlideSpec, random: np.random.Generator) -> np.ndarray:
    """One stroke of a felt pen over part of the slide; ink lies over tissue and glass alike."""
    colour = np.array(_PEN_COLOURS[str(random.choice(sorted(_PEN_COLOURS)))], np.float32)
    # Drawn small and enlarged: a stroke has no detail, and this is cheap at any size.
    scale = max(spec.width_px, spec.height_px) / 512
    size = (round(spec.width_px / scale), round(spec.height_px / scale))
    layer = Image.new("L", size)
    start, turn = random.uniform(0, 2 * math.pi), random.uniform(1.5, 4)
    radius = random.uniform(0.15, 0.3) * min(size)
    centre = (random.uniform(0.3, 0.7) * size[0], random.uniform(0.3, 0.7) * size[1])
    angles = np.linspace(start, start + turn, 200)
    points = [
        (centre[0] + radius * math.cos(a), centre[1] + 0.8 * radius * math.sin(a)) for a in angles
    ]
    # Some 150 um wide, but never so wide that a small slide is all ink.
    width = max(round(min(150 / (spec.mpp * scale), 0.12 * min(size))), 3)
    stroke = ImageDraw.Draw(layer)
    for x, y in points:
        stroke.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=230)
    layer = layer.filter(ImageFilter.GaussianBlur(1))
    box = layer.getbbox() or (0, 0, 1, 1)
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    x1, y1 = min(x1, spec.width_px), min(y1, spec.height_px)
    ink = layer.crop(box).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    alpha = (np.asarray(ink, np.float32) / 255 * 0.9)[..., None]
    part = image[y0:y1, x0:x1]
    image[y0:y1, x0:x1] = np.rint(part + (colour - part) * alpha).astype(np.uint8)
    return image
