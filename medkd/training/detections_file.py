"""``detections.parquet``: what a run's ensemble found in the test images, and what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.errors import StageError
from medkd.files import atomic_path, sha256_of_file
from medkd.tasks.detections import Detections
from medkd.training.box_predictions import FoundBoxes

FOLDER, NAME = "evaluation", "detections.parquet"
_BOXES = pa.list_(pa.list_(pa.float32(), 4))
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("source", pa.string()),
        ("true_boxes", _BOXES),
        ("true_labels", pa.list_(pa.string())),
        ("boxes", _BOXES),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.string())),
    ]
)
"""One row for each test image. Boxes: x1, y1, x2, y2, pixels of the file, the right and lower edge
outside; those found with the score that each has, from the highest, however low.
``source``: the patient, else the sequence, else the image itself."""
_KEY = b"medkd"
_AGAIN = "Run 'medkd evaluate' on that run again."


@dataclass(frozen=True, eq=False)
class SavedDetections:
    """What :func:`write_detections` wrote.

    Attributes:
        run: name of the run.
        model: what found the boxes.
        threshold: the score from which on a detection counts.
        classes: their names, by number.
        weights: SHA-256 of the file of each network of the run.
        images: what was found under the name ``model``, and what is there; ``root`` is empty.
    """

    run: str
    model: str
    threshold: float
    classes: tuple[str, ...]
    weights: Mapping[str, str]
    images: FoundBoxes


def write_detections(path: Path, saved: SavedDetections) -> None:
    """Write the file, whole or not at all."""
    images, names = saved.images, saved.classes
    rows = []
    for number, found in enumerate(images.found[saved.model]):
        truth = images.truth[number][images.truth[number][:, 0] >= 0]
        width, height = images.sizes_px[number].tolist()
        rows.append(
            {
                "image": images.images[number],
                "width_px": width,
                "height_px": height,
                "source": images.sources[number],
                "true_boxes": truth[:, 1:].tolist(),
                "true_labels": [names[int(label)] for label in truth[:, 0]],
                "boxes": found.boxes.tolist(),
                "scores": found.scores.tolist(),
                "labels": [names[int(label)] for label in found.classes],
            }
        )
    about = {
        "schema_version": 1,
        "run": saved.run,
        "model": saved.model,
        "threshold": saved.threshold,
        "classes": list(names),
        "weights": dict(saved.weights),
    }
    table = pa.Table.from_pylist(rows, SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(about).encode()}), temporary)


def read_detections(path: Path) -> SavedDetections:
    """Read the file.

    Raises:
        StageError: there is none, or it is not one.
    """
    if not path.exists():
        raise StageError(
            "no evaluation of a detector is there",
            where=path,
            remedy="Run 'medkd evaluate' on that run first.",
        )
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[_KEY])
        rows = table.select(SCHEMA.names).to_pylist()
        classes = tuple(about["classes"])
        model = str(about["model"])
        return SavedDetections(
            run=str(about["run"]),
            model=model,
            threshold=float(about["threshold"]),
            classes=classes,
            weights=about["weights"],
            images=FoundBoxes(
                images=tuple(row["image"] for row in rows),
                root=Path(),
                sizes_px=np.array([(row["width_px"], row["height_px"]) for row in rows], np.int32),
                sources=np.array([row["source"] for row in rows]),
                truth=_truth(rows, classes),
                found={model: [_found(row, classes) for row in rows]},
            ),
        )
    except (OSError, ValueError, KeyError) as error:
        # What pyarrow raises are kinds of these.
        raise StageError(f"cannot be read: {str(error)[:200]}", where=path, remedy=_AGAIN) from None


def check_weights(run_folder: Path, saved: SavedDetections) -> None:
    """Refuse detections of networks that are not the run's any more.

    Raises:
        StageError: the run was trained again since.
    """
    for name, sha256 in saved.weights.items():
        path = run_folder / "networks" / f"{name}.safetensors"
        if not path.exists() or sha256_of_file(path) != sha256:
            raise StageError(
                f"was evaluated with other weights of {name} than it has now",
                where=run_folder,
                remedy=_AGAIN,
            )


def _truth(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> np.ndarray:
    most = max((len(row["true_boxes"]) for row in rows), default=0)
    truth = np.zeros((len(rows), most, 5), np.float32)
    truth[..., 0] = -1
    for image, row in zip(truth, rows, strict=True):
        for place, (box, label) in enumerate(
            zip(row["true_boxes"], row["true_labels"], strict=True)
        ):
            image[place, 0], image[place, 1:] = classes.index(label), box
    return truth


def _found(row: Mapping[str, Any], classes: Sequence[str]) -> Detections:
    return Detections(
        np.array(row["boxes"], np.float32).reshape(-1, 4),
        np.array(row["scores"], np.float32),
        np.array([classes.index(label) for label in row["labels"]], np.int64),
    )
