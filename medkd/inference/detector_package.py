"""The model package of a detector: students, how their boxes become one list, the threshold.

As in the package that calls slides, every file's SHA-256 stands in ``model.json``, whose own hash
names the model in every result, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medkd.files import make_folder, write_bytes, write_json
from medkd.inference.package import CARD
from medkd.inference.package_files import MANIFEST, check_files, hashes_of, read_manifest
from medkd.inference.recalibration_record import Sha256
from medkd.schema import Strict

SCHEMA_VERSION = 1
TASK = "detection"

Share = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[float, Field(gt=0)]
_Name = Annotated[str, Field(min_length=1)]
_ROLES = "By role."


class DetectorStudent(Strict):
    """One network that ships."""

    name: str
    network: str
    width: float = 1.0
    stem_stride: int | None = Field(None, description="null: the network's own.")
    max_pool: bool | None = Field(None, description="null: the network's own.")
    pyramid_channels: int | None = Field(
        None, description="Width of its pyramid and heads; null: anchors.channels."
    )
    parameters: int
    onnx: str = Field(
        description="images, uint8 N x image_px x image_px x 3, RGB -> predictions, float32 N x "
        "anchors x (classes + 4): probabilities, then x1, y1, x2, y2 in pixels of that square, cut "
        "at its edges."
    )
    safetensors: str


class Anchors(Strict):
    """What the networks are built with; whoever reads the ONNX files needs none of it."""

    strides: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    sizes: Annotated[tuple[_Side, ...], Field(strict=False, min_length=1)] = Field(
        description="Sides of the anchors of a cell, in strides of its level."
    )
    ratios: Annotated[tuple[_Side, ...], Field(strict=False, min_length=1)] = Field(
        description="Their heights over their widths."
    )
    channels: int = Field(
        description="Width of pyramid and heads, where a student has none of its own."
    )


class Selection(Strict):
    """Which of a network's boxes are looked at."""

    least_score: Share = Field(description="Boxes of a lower score are left out.")
    nms_iou: Share = Field(
        description="Of two boxes of a class that overlap more, the better one stays."
    )
    most: Annotated[int, Field(ge=1)] = Field(description="Boxes that an image keeps.")


class EnsembleAp50(Strict):
    """AP50 on validation images of each way to make one list of the students' boxes."""

    dense: Share
    boxes: Share


class DetectorEnsemble(Strict):
    """How students' boxes become one list."""

    kind: Literal["dense", "boxes"] = Field(
        description="dense: the selection is of the mean of the students' predictions at each "
        "anchor; boxes: of each student's, and weighted box fusion (arXiv 1910.13302) joins them."
    )
    fusion_iou: Share = Field(description="Boxes that overlap more are fused by 'boxes'.")
    validation_ap50: EnsembleAp50


class DetectorProvenance(Strict):
    """Where the model comes from."""

    run_id: str
    experiment: str
    run_name: str
    method: str
    seed: int
    epochs: int
    best_epoch: int
    data_digest: str
    images: dict[str, int] = Field(description=_ROLES)
    boxes: dict[str, int] = Field(description=_ROLES)
    images_without_boxes: dict[str, int] = Field(description=_ROLES)
    software: str
    torch: str


class DetectorManifest(Strict):
    """``model.json`` of a detector."""

    schema_version: Literal[1]
    name: str
    version: str
    created: str
    task: Literal["detection"]
    research_use_only: Literal[True]
    classes: Annotated[tuple[_Name, ...], Field(strict=False, min_length=1)]
    image_px: Annotated[int, Field(ge=1)] = Field(
        description="Side of the square that images are resized to."
    )
    keep_aspect: bool = Field(
        description="The longer side fills the square, and the rest, to the right or below, is "
        "black; false: each axis is scaled by itself."
    )
    anchors: Anchors
    students: Annotated[tuple[DetectorStudent, ...], Field(strict=False, min_length=1)]
    ensemble: DetectorEnsemble
    selection: Selection
    threshold: Share = Field(
        description="Boxes that score at least this are called: the highest F1 at IoU 0.5 on "
        "validation images; 1 where no box was right."
    )
    validation: dict[str, float] = Field(
        description="Figures of what ships on validation images, those at a threshold at this one."
    )
    provenance: DetectorProvenance
    files: dict[str, Sha256] = Field(description="SHA-256 of every other file.")

    @model_validator(mode="after")
    def _no_name_twice(self) -> DetectorManifest:
        for what, names in (
            ("class", self.classes),
            ("student", tuple(student.name for student in self.students)),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} stands there twice")
        return self


@dataclass(frozen=True)
class DetectorPackage:
    """A package whose every file was checked.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        sha256: of the manifest, and so of all its files.
    """

    folder: Path
    manifest: DetectorManifest
    sha256: str


def detector_manifest_schema() -> dict[str, Any]:
    """The JSON schema of a detector's ``model.json``, published as ``detector.schema.json``."""
    return DetectorManifest.model_json_schema()


def write_package_of_detector(
    folder: Path, content: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Write a package; ``model.json`` comes last, so a folder that has it is whole.

    Args:
        folder: replaced file by file.
        content: a :class:`DetectorManifest` as plain values, without ``files``.
        files: relative path to content of every other file but the model card.

    Raises:
        OutputError: no permission, or no space.
    """
    # Through the model, so that what is written is what will be read.
    draft = DetectorManifest.model_validate({**content, "files": {}})
    make_folder(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    whole = {**files, CARD: detector_card(draft).encode("utf-8")}
    for name, data in whole.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)
    manifest = draft.model_copy(update={"files": hashes_of(folder, whole)})
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def load_detector_package(folder: Path) -> DetectorPackage:
    """Read a package and check every file of it.

    Raises:
        ModelPackageError: something is missing, changed, added, or of another schema.
    """
    manifest, sha256 = read_manifest(folder, DetectorManifest, SCHEMA_VERSION, TASK)
    needed = {
        name: student.name
        for student in manifest.students
        for name in (student.onnx, student.safetensors)
    }
    check_files(folder, manifest.files, needed)
    return DetectorPackage(folder, manifest, sha256)


_FIGURES = {
    "ap": "AP (COCO, IoU 0.50 to 0.95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "recall_at_1_fp": "recall at one false positive an image",
    "fp_per_negative_image": "false positives per image without a box, at the threshold",
    "sensitivity": "sensitivity per image, at the threshold",
    "mean_iou": "mean IoU, at the threshold",
}


def detector_card(manifest: DetectorManifest) -> str:
    """The model card in Markdown, from nothing but the manifest."""
    origin, ensemble = manifest.provenance, manifest.ensemble
    ways = {"dense": "mean of dense predictions", "boxes": "weighted box fusion"}
    compared = ensemble.validation_ap50
    resized = "the rest black" if manifest.keep_aspect else "each axis scaled by itself"
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        "**Research use only. Not a medical device; no box may guide the care of a patient.**",
        "",
        "## What it does",
        "",
        f"Finds boxes of {', '.join(manifest.classes)} in images, which are resized to "
        f"{manifest.image_px} x {manifest.image_px} px ({resized}). A box counts from a score of "
        f"{manifest.threshold:.4f} on.",
        "",
        "## What it is",
        "",
        f"{len(manifest.students)} student networks: "
        + ", ".join(
            f"{s.name} ({s.network}, width {s.width:g}, {s.parameters:,} parameters)"
            for s in manifest.students
        )
        + f". Trained with the method {origin.method}. Their boxes become one list by "
        f"{ways[ensemble.kind]}; AP50 on validation images was {compared.dense:.3f} by "
        f"{ways['dense']} and {compared.boxes:.3f} by {ways['boxes']}.",
        "",
        "## Data",
        "",
        "| role | images | boxes | images without a box |",
        "|---|---:|---:|---:|",
        *(
            f"| {role} | {count:,} | {origin.boxes[role]:,} "
            f"| {origin.images_without_boxes[role]:,} |"
            for role, count in origin.images.items()
        ),
        "",
        f"Data digest `{origin.data_digest[:16]}`, seed {origin.seed}, epoch {origin.best_epoch} "
        f"of {origin.epochs}, run `{origin.run_id}`; {origin.software}, torch {origin.torch}.",
        "",
        "## On validation images",
        "",
        "The epoch, the way to one list and the threshold were chosen on them: on other images "
        "expect less.",
        "",
        "| figure | value |",
        "|---|---:|",
        *(
            f"| {_FIGURES[name]} | {value:.3f} |"
            for name, value in manifest.validation.items()
            if name in _FIGURES
        ),
        "",
    ]
    return "\n".join(lines)
