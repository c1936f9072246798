"""Images with boxes: one parquet table, whatever layout they came in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medkd.errors import StageError
from medkd.files import atomic_path, make_folder
from medkd.importers.images import image_sizes
from medkd.importers.names import compile_pattern, matched
from medkd.importers.problems import LayoutError, Problem, write_problems

TABLE_NAME = "boxes.parquet"
PROBLEMS_NAME = "import_problems.csv"

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("labels", pa.list_(pa.string())),
        ("patient_id", pa.string()),
        ("sequence_id", pa.string()),
        ("role", pa.string()),
        ("mask", pa.string()),
    ]
)
"""One row for each image. ``image``, ``mask``: paths relative to the root. ``boxes``: x and y of
the top left and of the bottom right corner, pixels of this image. What nobody knows is null."""

_METADATA_KEY = b"medkd"

# Boxes that were rounded, or written as fractions, may end a little outside.
_TOLERANCE_PX = 1.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxedImage:
    """An image and its boxes as a layout gives them.

    Attributes:
        image: its path, relative to the root.
        boxes: x_min, y_min, x_max, y_max, in units of ``frame``.
        labels: one for each box.
        frame: width and height that the boxes speak of; (1, 1) where they are fractions.
        exact: the file must have the size ``frame``. Otherwise the boxes are scaled to the file.
        role: ``train``, ``validation`` or ``test``, where the layout says so.
        mask: path of its mask, relative to the root, where there is one.
    """

    image: str
    boxes: Sequence[Box]
    labels: Sequence[str]
    frame: tuple[float, float]
    exact: bool = False
    role: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class BoxTable:
    """A table of boxes. ``images``: a row for each image, :data:`SCHEMA`; ``classes``: sorted."""

    images: pd.DataFrame
    root: Path
    classes: tuple[str, ...]


@dataclass(frozen=True)
class BoxSummary:
    """What was written.

    Attributes:
        images: in the table.
        without_boxes: of these, images that show nothing of any class.
        boxes: by label.
        patients, sequences: how many, or None where nobody knows.
        problems: images that were left out.
    """

    images: int
    without_boxes: int
    boxes: Mapping[str, int]
    patients: int | None
    sequences: int | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are written.

    Attributes:
        patient, sequence: find them in an image's path, relative to the root; None: not known.
        decode: read every pixel of every image once.
    """

    patient: str | None = None
    sequence: str | None = None
    decode: bool = False


def write_boxes(
    found: Sequence[BoxedImage],
    problems: Sequence[Problem],
    root: Path,
    out: Path,
    classes: Sequence[str],
    options: BoxOptions,
) -> BoxSummary:
    """Check the images and their boxes, and write boxes.parquet to ``out``.

    An image is left out, and told of, where it cannot be read, EXIF data turn it, it has another
    size than its boxes speak of, or one of its boxes is empty or lies outside: without that box the
    image would teach that nothing is there.

    Raises:
        ConfigError: a pattern is none.
        LayoutError: no image is left.
        OutputError: no permission, or no space.
    """
    patient = options.patient and compile_pattern(options.patient, "--patient")
    sequence = options.sequence and compile_pattern(options.sequence, "--sequence")
    left_out = list(problems)
    rows: list[dict[str, object]] = []
    names = [item.image for item in found]
    sizes = image_sizes(root, names, decode=options.decode, turned=False)
    for item, size in zip(found, sizes, strict=True):
        where = str(root / item.image)
        who = matched(patient, item.image) if patient else None
        which = matched(sequence, item.image) if sequence else None
        if isinstance(size, Problem):
            left_out.append(size)
            continue
        boxes = _scaled(item, size)
        wrong = _fault(item, size, boxes) or (
            "--patient finds nothing in its path"
            if who == ""
            else "--sequence finds nothing in its path"
            if which == ""
            else ""
        )
        if wrong:
            left_out.append(Problem("wrong", where, wrong, "Mend it, or drop the image."))
            continue
        rows.append(
            {
                "image": item.image,
                "width_px": size[0],
                "height_px": size[1],
                "boxes": [_clipped(box, size) for box in boxes],
                "labels": list(item.labels),
                "patient_id": who,
                "sequence_id": which,
                "role": item.role,
                "mask": item.mask,
            }
        )
    if not rows:
        raise LayoutError(
            "no image is left" + (f"; the first problem: {left_out[0]}" if left_out else ""),
            where=root,
            remedy="Name the data set as it was unpacked.",
        )
    make_folder(out)
    write_problems(out / PROBLEMS_NAME, left_out)
    about = {"root": root.absolute().as_posix(), "classes": sorted(classes)}
    metadata = {_METADATA_KEY: json.dumps(about).encode()}
    with atomic_path(out / TABLE_NAME) as temporary:
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table.replace_schema_metadata(metadata), temporary)
    counts = Counter(label for item in rows for label in item["labels"])  # type: ignore[attr-defined]
    return BoxSummary(
        len(rows),
        sum(not item["labels"] for item in rows),
        {name: counts[name] for name in sorted(classes)},
        len({item["patient_id"] for item in rows}) if patient else None,
        len({item["sequence_id"] for item in rows}) if sequence else None,
        tuple(left_out),
    )


def read_boxes(path: Path) -> BoxTable:
    """Read a boxes.parquet.

    Raises:
        StageError: there is none, or it is not one.
    """
    remedy = "Import the data set first: medkd import kvasir, coco or yolo."
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[_METADATA_KEY])
    except FileNotFoundError:
        raise StageError("no boxes are there yet", where=path, remedy=remedy) from None
    except (OSError, ValueError, KeyError) as error:
        raise StageError(f"is no table of boxes: {error}", where=path, remedy=remedy) from error
    # Objects, so that boxes are lists, not arrays in arrays, and what is not known stays None.
    images = pd.DataFrame(table.to_pylist(), columns=SCHEMA.names, dtype=object)
    images = images.astype({"width_px": "int32", "height_px": "int32"})
    return BoxTable(images, Path(about["root"]), tuple(about["classes"]))


def _scaled(item: BoxedImage, size: tuple[int, int]) -> list[Box]:
    across, down = size[0] / item.frame[0], size[1] / item.frame[1]
    return [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in item.boxes]


def _fault(item: BoxedImage, size: tuple[int, int], boxes: Sequence[Box]) -> str:
    if item.exact and item.frame != size:
        return (
            f"is {size[0]} x {size[1]} px, and its boxes speak of {item.frame[0]:g} x "
            f"{item.frame[1]:g} px"
        )
    for given, box in zip(item.boxes, boxes, strict=True):
        x0, y0, x1, y1 = box
        inside = (
            min(x0, y0) >= -_TOLERANCE_PX
            and x1 <= size[0] + _TOLERANCE_PX
            and y1 <= size[1] + _TOLERANCE_PX
        )
        cut = _clipped(box, size)
        if not (inside and cut[0] < cut[2] and cut[1] < cut[3]):
            shown = ", ".join(f"{value:g}" for value in given)
            return f"its box ({shown}) is {'empty' if inside else 'not inside the image'}"
    return ""


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    width, height = size
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
