"""A site's results and labels, written by hand as ``medkd infer`` and a hospital would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from medkd.inference.package import ModelPackage

SCALE, SHIFT = 0.6, -1.2
"""What the new scanner does to the logit of a score."""


def new_site(seed: int, positives: int, negatives: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, (patients,), and scores: logits 2 N(+-1, 1) as the new scanner changes them."""
    random = np.random.default_rng(seed)
    labels = np.arange(positives + negatives) < positives
    drawn = 2 * random.normal(np.where(labels, 1.0, -1.0))
    return labels, expit(SCALE * drawn + SHIFT)


def write_result(
    folder: Path,
    package: ModelPackage,
    slide_id: str,
    score: float | None,
    *,
    tiles: int = 50,
    distances: Mapping[str, float] | None = None,
    **changes: Any,
) -> Path:
    """``folder/slide_id/result.json``; without a score the call is ``no result``."""
    gates = [
        {"name": f"out of distribution: {what}", "value": value, "limit": 1.0, "passed": False}
        for what, value in (distances or {}).items()
    ]
    manifest = package.manifest
    probability = None if score is None else float(manifest.calibration(score))
    content = {
        "schema_version": 1,
        "slide_id": slide_id,
        "call": "no result" if score is None else "indeterminate",
        "reasons": [],
        "score": score,
        "calibration": manifest.calibration.kind,
        "probability_msi": probability,
        "interval": None if score is None else [probability, probability],
        "students": {},
        "disagreement": None if score is None else 0.0,
        "operating_point": manifest.operating_point.model_dump(mode="json"),
        "qc": {"gates": gates, "warnings": []},
        "tiles": {"candidate": 60, "used": tiles, "unreadable": 0, "rejected": {}},
        "tissue_area_mm2": 12.0,
        "mpp": {"value": 0.25, "source": "metadata"},
        "reading": {"reader": "openslide", "reason": "by hand", "icc": "none"},
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "sha256": package.sha256,
        },
        "software": {},
        "timing_s": {},
        "synthetic": {"slide": False, "model": False},
        "research_use_only": True,
        "created": "2030-01-02T03:04:05+00:00",
        **changes,
    }
    path = folder / slide_id / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_labels(path: Path, rows: Sequence[Sequence[str]], *, patients: bool = False) -> Path:
    """A table of slide_id, label and, if asked for, patient_id."""
    header = ("slide_id", "label", "patient_id")[: 3 if patients else 2]
    path.write_text("".join(",".join(row) + "\n" for row in (header, *rows)))
    return path


def write_site(
    folder: Path,
    package: ModelPackage,
    labels: Sequence[bool],
    scores: Sequence[float],
    distances: Sequence[Mapping[str, float]] | None = None,
) -> tuple[Path, Path]:
    """Results and labels of patients with one slide each; their folder and file."""
    results = folder / "results"
    names = [f"s{number:03d}" for number in range(len(labels))]
    for number, (name, score) in enumerate(zip(names, scores, strict=True)):
        held = None if distances is None else distances[number]
        write_result(results, package, name, float(score), distances=held)
    rows = [(name, "MSI" if label else "MSS") for name, label in zip(names, labels, strict=True)]
    return results, write_labels(folder / "labels.csv", rows)
