"""Tiles as objects that QuPath imports: GeoJSON, in the coordinates that QuPath gives the slide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from medkd.inference.engine import ScoredTile, SlideInference
from medkd.inference.maps.grid import colours, disclaimer
from medkd.inference.package import ModelPackage
from medkd.inference.result import Result

# Told apart by colour-blind people; Okabe and Ito's vermillion and blue.
_POSITIVE_RGB = (213, 94, 0)
_NEGATIVE_RGB = (0, 114, 178)

_BOUNDS = (
    openslide.PROPERTY_NAME_BOUNDS_X,
    openslide.PROPERTY_NAME_BOUNDS_Y,
    openslide.PROPERTY_NAME_BOUNDS_WIDTH,
    openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
)


def geojson_map(inference: SlideInference, result: Result, package: ModelPackage) -> bytes:
    """A FeatureCollection with a square for each scored tile, as QuPath reads tile objects.

    The class of a tile is what a slide would be called whose score were the tile's: positive at or
    above the operating point. Its colour is that of its probability on the scale from 0 to 1, as in
    ``heatmap.png``.

    Args:
        inference: of the slide.
        result: of the same.
        package: the model.
    """
    manifest = package.manifest
    probabilities = np.array([tile.probability for tile in inference.tiles], float)
    is_positive = manifest.calibration(probabilities) >= result.operating_point.threshold
    left, top = qupath_origin(inference.properties.path)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_square(tile.x - left, tile.y - top, inference.tile_extent_px)],
            },
            "properties": {
                "objectType": "tile",
                "color": colour,
                "classification": (
                    {"name": manifest.positive, "color": _POSITIVE_RGB}
                    if positive
                    else {"name": package.negative, "color": _NEGATIVE_RGB}
                ),
                "measurements": _measurements(tile, package),
            },
        }
        for tile, colour, positive in zip(
            inference.tiles, colours(probabilities).tolist(), is_positive, strict=True
        )
    ]
    document = {
        "type": "FeatureCollection",
        # A foreign member (RFC 7946, 6.1): QuPath passes it over.
        "medkd": {
            "slide_id": result.slide_id,
            "call": result.call,
            "model": result.model.model_dump(mode="json"),
            "operating_point": result.operating_point.threshold,
            "mpp": result.mpp.value,
            "origin_level0_px": [left, top],
            "note": disclaimer(result),
        },
        "features": features,
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8")


def qupath_origin(path: Path) -> tuple[int, int]:
    """Where QuPath puts a slide's origin: x and y in level-0 pixels of OpenSlide.

    QuPath crops a slide to the bounds that OpenSlide knows of it (it is opened with ``--no-crop``
    where that is not wanted), and counts pixels from their corner. Without all four of them the
    origin is level 0's own.
    """
    with openslide.OpenSlide(path) as slide:
        if not all(name in slide.properties for name in _BOUNDS):
            return 0, 0
        return int(slide.properties[_BOUNDS[0]]), int(slide.properties[_BOUNDS[1]])


def _measurements(tile: ScoredTile, package: ModelPackage) -> dict[str, float]:
    measured = {f"probability of {package.manifest.positive}": round(tile.probability, 6)}
    if len(package.manifest.students) > 1:
        measured["disagreement of students"] = round(tile.disagreement, 6)
    return measured


def _square(x: float, y: float, side: float) -> list[list[Any]]:
    right, bottom = round(x + side, 3), round(y + side, 3)
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
