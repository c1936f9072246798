"""The contract of ``detections.json``, and the same boxes as COCO has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from medkd.inference.recalibration_record import Sha256
from medkd.schema import Strict
from medkd.tasks.detections import Detections

_Edge = Annotated[float, Field(ge=0)]


class DetectorModel(Strict):
    """Which model looked."""

    name: str
    version: str
    sha256: Sha256


class FoundBox(Strict):
    """One box."""

    box: Annotated[tuple[_Edge, _Edge, _Edge, _Edge], Field(strict=False)] = Field(
        description="x1, y1, x2, y2 in pixels of the image, from its upper left corner, the right "
        "and lower edge outside: x2 - x1 is the width."
    )
    score: Annotated[float, Field(ge=0, le=1)]
    class_name: str = Field(alias="class")
    called: bool = Field(description="Whether the score reaches the threshold.")


class LookedAt(Strict):
    """One image, or one frame of a video, and its boxes by falling score."""

    file: str = Field(description="Its name, or its path below the folder that was named.")
    frame: int | None = Field(description="Number of the frame, from 0; null: no video.")
    time_s: float | None = Field(description="Since the first frame, seconds; null: no video.")
    width: int = Field(description="Pixels, as viewers show it: EXIF orientation is applied.")
    height: int
    drawn: str | None = Field(description="The picture with its boxes; null: none was drawn.")
    boxes: Annotated[tuple[FoundBox, ...], Field(strict=False)]

    @property
    def called(self) -> int:
        """How many boxes reach the threshold."""
        return sum(box.called for box in self.boxes)


class FailedFile(Strict):
    """A file that could not be looked at, or not to its end."""

    file: str
    reason: str


class FoundInImages(Strict):
    """``detections.json``."""

    schema_version: Literal[1] = 1
    research_use_only: Literal[True] = True
    model: DetectorModel
    classes: Annotated[tuple[str, ...], Field(strict=False)]
    threshold: float
    images: Annotated[tuple[LookedAt, ...], Field(strict=False)]
    failed: Annotated[tuple[FailedFile, ...], Field(strict=False)]
    software: dict[str, str]
    created: str


def detections_schema() -> dict[str, Any]:
    """The JSON schema of ``detections.json``, published as ``detections.schema.json``."""
    return FoundInImages.model_json_schema(mode="serialization")


def found_boxes(
    found: Detections, classes: Sequence[str], threshold: float
) -> tuple[FoundBox, ...]:
    """Boxes in the words of ``detections.json``, to a hundredth of a pixel."""
    return tuple(
        FoundBox.model_validate(
            {
                "box": [round(edge, 2) for edge in box],
                # As it is: rounded, it could change sides of the threshold.
                "score": score,
                "class": classes[number],
                "called": score >= threshold,
            }
        )
        for box, score, number in zip(
            found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    )


def coco_of(result: FoundInImages) -> dict[str, Any]:
    """Images, categories and annotations with scores: https://cocodataset.org/#format-data.

    All boxes are there, called or not. Ids count from 1.
    """
    category = {name: number for number, name in enumerate(result.classes, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(result.images, start=1):
        for found in image.boxes:
            left, top, right, bottom = found.box
            wide, high = round(right - left, 2), round(bottom - top, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category[found.class_name],
                    "bbox": [left, top, wide, high],
                    "area": round(wide * high, 2),
                    "iscrowd": 0,
                    "score": found.score,
                }
            )
    return {
        "info": {
            "description": f"{result.model.name} {result.model.version}. Research use only.",
            "date_created": result.created,
            "threshold": result.threshold,
        },
        "images": [
            {
                "id": image_id,
                "file_name": image.file,
                "width": image.width,
                "height": image.height,
                **({} if image.frame is None else {"frame": image.frame, "time_s": image.time_s}),
            }
            for image_id, image in enumerate(result.images, start=1)
        ],
        "categories": [{"id": number, "name": name} for name, number in category.items()],
        "annotations": annotations,
    }
