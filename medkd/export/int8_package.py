"""A model package with its students in 8-bit integers, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import ModelPackageError
from medkd.export.calibration_tiles import TileSets, calibration_batches, tile_sets
from medkd.export.check import INT8_TOLERANCE
from medkd.inference.new_version import version_name
from medkd.inference.package import CARD, ModelPackage, load_package, write_package
from medkd.inference.quantise import quantise
from medkd.inference.students import Seen, Students


@dataclass(frozen=True)
class Cost:
    """How far probabilities moved, absolute differences.

    Attributes:
        tiles: of the positive class, of every tile and student.
        slides: of every slide.
        calls_changed: slides on the other side of the threshold; None where there is none.
        distances: of the embedding of every slide from the training slides, as shares of its
            limit; empty where it is not compared.
    """

    tiles: np.ndarray
    slides: np.ndarray
    calls_changed: int | None
    distances: np.ndarray


def write_int8_package(
    package: ModelPackage, folder: Path, calibrate: Path
) -> tuple[ModelPackage, tuple[str, ...]]:
    """Write a new version of a package with int8 students.

    The operating point stays: what it is a threshold of moves by no more than 0.01.

    Args:
        package: in float32; left as it is.
        folder: of the new package.
        calibrate: a tiles folder of ``medkd tile``, or a slide.

    Returns:
        The new package, and what is to be told of it.

    Raises:
        ModelPackageError: the students are int8 already; or, on tiles that did not set ranges, the
            probability of a slide, or that of tiles on average, changes by more than 0.01.
        StageError, SlideError: see :func:`medkd.export.calibration_tiles.tile_sets`.
    """
    manifest = package.manifest
    if manifest.quantisation is not None:
        raise ModelPackageError(
            "has students of 8-bit integers already",
            where=package.folder,
            remedy=f"Quantise version {manifest.quantisation.from_version}, which is in float32.",
        )
    sets = tile_sets(calibrate, manifest.preprocessing)
    names = [name for name in manifest.files if name != CARD]
    files = {name: (package.folder / name).read_bytes() for name in names}
    for student in manifest.students:
        files[student.onnx] = quantise(files[student.onnx], calibration_batches(sets.calibration))
    content = manifest.model_dump(mode="json", exclude={"files"})
    write_package(folder, content, files)
    cost = measured_cost(
        package, load_package(folder, needs_operating_point=False), sets.measurement
    )
    _check_cost(package, cost)
    record = _record(package, sets, cost)
    content["quantisation"] = record
    content["version"] = version_name(manifest.version, "int8", record)
    # Figures on test patients are of the students in float32.
    content["test_performance"] = None
    write_package(folder, content, files)
    return load_package(folder, needs_operating_point=False), _told(record)


def measured_cost(old: ModelPackage, new: ModelPackage, tiles: dict[str, np.ndarray]) -> Cost:
    """What students say of the same tiles before and after.

    Args:
        old, new: packages of the same manifest.
        tiles: by slide, uint8 N x size_px x size_px x 3.
    """
    before, after = Students(old), Students(new)
    calibration, point = old.manifest.calibration, old.manifest.operating_point
    compared = old.manifest.out_of_distribution
    limit = None if compared is None else compared.limits.get("embedding")
    of_tiles, of_slides, of_distances, changed = [], [], [], 0
    for of_slide in tiles.values():
        said: tuple[Seen, Seen] = (before(of_slide), after(of_slide))
        for name, values in said[0].probabilities.items():
            of_tiles.append(np.abs(values - said[1].probabilities[name]))
        one, other = (
            who.score(seen).calibrated(calibration).score
            for who, seen in zip((before, after), said, strict=True)
        )
        of_slides.append(abs(one - other))
        if limit is not None:
            near, far = (
                who.distances(seen)["embedding"]
                for who, seen in zip((before, after), said, strict=True)
            )
            of_distances.append(abs(near - far) / limit)
        if point is not None:
            changed += (one >= point.threshold) != (other >= point.threshold)
    return Cost(
        np.concatenate(of_tiles),
        np.array(of_slides),
        None if point is None else changed,
        np.array(of_distances),
    )


def _check_cost(package: ModelPackage, cost: Cost) -> None:
    worst = float(cost.slides.max())
    mean = float(cost.tiles.mean())
    if worst <= INT8_TOLERANCE and mean <= INT8_TOLERANCE:
        return
    raise ModelPackageError(
        f"in 8-bit integers a slide's probability would change by up to {worst:.4f}, and a tile's "
        f"by {mean:.4f} on average; {INT8_TOLERANCE:g} is allowed",
        where=package.folder,
        remedy="Nothing was written. Calibrate on tiles of more slides, or use it in float32.",
    )


def _record(package: ModelPackage, sets: TileSets, cost: Cost) -> dict[str, Any]:
    return {
        "from_version": package.manifest.version,
        "from_sha256": package.sha256,
        "method": "static, weights int8 by channel, activations uint8, onnxruntime "
        + version("onnxruntime"),
        "calibration_slides": len(sets.calibration),
        "calibration_tiles": sum(map(len, sets.calibration.values())),
        "measured_slides": len(sets.measurement),
        "measured_tiles": sum(map(len, sets.measurement.values())),
        "tile_change_mean": round(float(cost.tiles.mean()), 6),
        "tile_change_max": round(float(cost.tiles.max()), 6),
        "slide_change_mean": round(float(cost.slides.mean()), 6),
        "slide_change_max": round(float(cost.slides.max()), 6),
        "calls_changed": cost.calls_changed,
        "distance_change_max": round(float(cost.distances.max()), 6)
        if cost.distances.size
        else None,
    }


def _told(record: dict[str, Any]) -> tuple[str, ...]:
    changed = record["calls_changed"]
    measured = _slides(record["measured_slides"])
    lines: tuple[str, ...] = (
        f"int8: ranges set on {record['calibration_tiles']:,} tiles of "
        f"{_slides(record['calibration_slides'])}.",
        f"Its cost, on {record['measured_tiles']:,} other tiles of {measured}: a tile's "
        f"probability changes by {record['tile_change_mean']:.4f} on average and "
        f"{record['tile_change_max']:.4f} at most, a slide's by {record['slide_change_mean']:.4f} "
        f"and {record['slide_change_max']:.4f} ({INT8_TOLERANCE:g} is allowed).",
    )
    if record["distance_change_max"] is not None:
        lines += (
            "The embedding's distance from the training slides changes by at most "
            f"{record['distance_change_max']:.0%} of its limit, which is kept.",
        )
    if changed is None:
        return lines
    return (*lines, f"The operating point is kept; of {measured}, {changed} changed side.")


def _slides(count: int) -> str:
    return f"{count} slide{'' if count == 1 else 's'}"
