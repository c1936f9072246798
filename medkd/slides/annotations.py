"""Regions that a person drew on a slide, from GeoJSON as QuPath exports it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medkd.config import TileConfig
from medkd.errors import SlideError

Ring = np.ndarray
"""Corners of a closed line, float64, N x 2: x and y in level-0 pixels."""

_FEWEST_CORNERS = 3
_FARTHEST_PX = 1e9


class Area(NamedTuple):
    """One region: the class that it was given, and its polygons, each an outline and holes."""

    name: str
    polygons: tuple[tuple[Ring, ...], ...]


@dataclass(frozen=True)
class Annotations:
    """Where tiles are wanted on one slide.

    Attributes:
        file: the GeoJSON file's name.
        sha256: of its content; None where there is no such file, then all of the slide is wanted.
        include: tiles are wanted in these areas only; None: everywhere.
        exclude: but not in these.
        warnings: what a person should know, a sentence each.
    """

    file: str
    sha256: str | None
    include: tuple[Area, ...] | None
    exclude: tuple[Area, ...]
    warnings: tuple[str, ...]

    def wanted(self, height: int, width: int, scale: float) -> np.ndarray:
        """Where tiles are wanted, on a picture of the slide: bool, height x width.

        Args:
            height, width: of the picture.
            scale: level-0 pixels to one pixel of it.
        """
        if self.include is None:
            wanted = np.ones((height, width), bool)
        else:
            wanted = _covered(self.include, height, width, scale)
        return wanted & ~_covered(self.exclude, height, width, scale)

    def warnings_on(self, width_px: int, height_px: int) -> tuple[str, ...]:
        """All warnings, for a slide of this size."""
        areas = (self.include or ()) + self.exclude
        beyond = sum(_is_beyond(area, width_px, height_px) for area in areas)
        if not beyond:
            return self.warnings
        return (
            *self.warnings,
            f"{beyond} of {len(areas)} areas of {self.file} lie outside of the slide; their "
            "coordinates must be level-0 pixels",
        )

    def recorded(self) -> dict[str, Any]:
        """What the slide's record says of them."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "include_areas": None if self.include is None else len(self.include),
            "exclude_areas": len(self.exclude),
        }


def annotation_file(parameters: TileConfig, slide_id: str) -> Path | None:
    """Where the annotations of a slide are looked for; None where none are asked for."""
    if parameters.annotations is None:
        return None
    return parameters.annotations / f"{slide_id}.geojson"


def annotation_digest(parameters: TileConfig, slide_id: str) -> str | None:
    """SHA-256 of the slide's annotations; None where there are none.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path = annotation_file(parameters, slide_id)
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def read_annotations(parameters: TileConfig, slide_id: str) -> Annotations | None:
    """Read what was drawn on a slide; None where no annotations are asked for.

    A slide without a file is wanted as a whole, with a warning.

    Raises:
        SlideError: the file cannot be read, or is not the GeoJSON of areas.
    """
    path = annotation_file(parameters, slide_id)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        warning = f"no annotations: {path.name} is not in {path.parent}; all tissue is used"
        return Annotations(path.name, None, None, (), (warning,))
    except OSError as error:
        raise SlideError(
            "unreadable_annotations",
            f"cannot be read: {error.strerror or error}",
            where=path,
            remedy="Check the file and the right to read it.",
        ) from error
    features = _features(content, path)
    names = {*parameters.annotations_include, *parameters.annotations_exclude}
    found: dict[str, list[Area]] = {name: [] for name in names}
    others: Counter[str] = Counter()
    for number, feature in enumerate(features, 1):
        name = _class_name(feature, path, number)
        if name not in names:
            others[name or "no class"] += 1
            continue
        polygons = _polygons(feature, path, number)
        if polygons is None:
            others[f"{name}, not an area"] += 1
        else:
            found[name].append(Area(name, polygons))
    warnings = []
    missing = [name for name in sorted(names) if not found[name]]
    if missing:
        there = Counter({name: len(areas) for name, areas in found.items() if areas}) + others
        told = ", ".join(f"{name} ({count})" for name, count in sorted(there.items()))
        warnings.append(
            f"{path.name} has no area of class {', '.join(missing)}; it has: {told or 'nothing'}"
        )
    include = parameters.annotations_include
    return Annotations(
        path.name,
        hashlib.sha256(content).hexdigest(),
        tuple(area for name in include for area in found[name]) if include else None,
        tuple(area for name in parameters.annotations_exclude for area in found[name]),
        tuple(warnings),
    )


def _features(content: bytes, path: Path) -> list[Any]:
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _malformed(path, "is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        what = f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise _malformed(path, what) from None
    except RecursionError:
        raise _malformed(path, "is nested too deeply") from None
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict) and document.get("type") == "Feature":
        document = [document]
    if not isinstance(document, list):
        raise _malformed(path, "is neither a FeatureCollection nor a list of features")
    return document


def _class_name(feature: Any, path: Path, number: int) -> str | None:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise _malformed(path, "is not a Feature", number)
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _malformed(path, "its properties are not a mapping", number)
    classification = properties.get("classification")
    if classification is None:
        return None
    name = classification.get("name") if isinstance(classification, dict) else None
    if not isinstance(name, str):
        raise _malformed(path, "its properties.classification.name is not a text", number)
    return name


def _polygons(feature: Any, path: Path, number: int) -> tuple[tuple[Ring, ...], ...] | None:
    """The polygons of a feature; None where it is a point or a line."""
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return None
    if kind not in ("Polygon", "MultiPolygon"):
        raise _malformed(path, f"its geometry is {kind!r}, not a Polygon or MultiPolygon", number)
    polygons = geometry.get("coordinates")
    if kind == "Polygon":
        polygons = [polygons]
    if not isinstance(polygons, list) or not polygons:
        raise _malformed(path, "its coordinates are not a list of polygons", number)
    read = []
    for rings in polygons:
        if not isinstance(rings, list) or not rings:
            raise _malformed(path, "its coordinates are not a list of rings", number)
        read.append(tuple(_ring(ring, path, number) for ring in rings))
    return tuple(read)


def _ring(corners: Any, path: Path, number: int) -> Ring:
    if not isinstance(corners, list):
        raise _malformed(path, "a ring of it is not a list of points", number)
    for corner in corners:
        if not (isinstance(corner, list) and len(corner) >= 2 and all(map(_is_number, corner))):
            raise _malformed(path, f"{str(corner)[:60]} is not a point [x, y]", number)
    ring = np.array([corner[:2] for corner in corners], float).reshape(-1, 2)
    if len(np.unique(ring, axis=0)) < _FEWEST_CORNERS:
        raise _malformed(path, "a ring of it has fewer than 3 corners", number)
    return ring


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -_FARTHEST_PX < value < _FARTHEST_PX  # not a number is not, either


def _malformed(path: Path, what: str, number: int | None = None) -> SlideError:
    return SlideError(
        "malformed_annotations",
        what if number is None else f"feature {number}: {what}",
        where=path,
        remedy="Export it again as GeoJSON (QuPath: File > Export objects as GeoJSON), or remove "
        "the file to use all tissue of the slide.",
    )


def _is_beyond(area: Area, width_px: int, height_px: int) -> bool:
    corners = np.concatenate([rings[0] for rings in area.polygons])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return bool((high <= 0).any() or (low >= (width_px, height_px)).any())


def _covered(areas: Sequence[Area], height: int, width: int, scale: float) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for area in areas:
        for rings in area.polygons:
            _fill([ring / scale for ring in rings], mask)
    return mask


def _fill(rings: Sequence[Ring], mask: np.ndarray) -> None:
    """Set every pixel of ``mask`` whose centre lies within ``rings`` (even-odd, so holes stay).

    Along each row of pixel centres every edge that crosses it turns inside to outside or back.
    Takes time with the edges' height and the polygon's box, not with their product.
    """
    corners = np.concatenate(rings)
    first_row, first_column = (max(math.ceil(corners[:, axis].min() - 0.5), 0) for axis in (1, 0))
    last_row = min(math.ceil(corners[:, 1].max() - 0.5), mask.shape[0])
    last_column = min(math.ceil(corners[:, 0].max() - 0.5), mask.shape[1])
    height, width = last_row - first_row, last_column - first_column
    if height <= 0 or width <= 0:
        return
    begin = corners
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    rows = np.ceil(np.stack([begin[:, 1], end[:, 1]]) - 0.5)
    rows = np.clip(rows - first_row, 0, height).astype(int)
    top, count = rows.min(axis=0), np.abs(rows[1] - rows[0])
    edge = np.repeat(np.arange(len(begin)), count)
    nth = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count)
    row = top[edge] + nth
    (x, y), (to_x, to_y) = begin[edge].T, end[edge].T
    crossing = x + (first_row + row + 0.5 - y) * (to_x - x) / (to_y - y)
    column = np.clip(np.ceil(crossing - 0.5) - first_column, 0, width).astype(int)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    turned = (turns % 2).astype(np.uint8).reshape(height, width + 1)
    inside = np.bitwise_xor.accumulate(turned, axis=1)[:, :width].astype(bool)
    mask[first_row:last_row, first_column:last_column] |= inside
