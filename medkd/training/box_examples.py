"""Test images that are worth looking at, drawn with true and found boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medkd.datasets.box_drawing import BOX_COLOURS, draw_box, draw_line
from medkd.slides.imported_tiles import read_image
from medkd.tasks.detections import Detections, box_iou
from medkd.training.box_evaluation import Evaluated
from medkd.training.box_predictions import FoundBoxes

TRUE_COLOUR, FOUND_COLOUR = BOX_COLOURS[:2]

_LONGER_SIDE_PX = 480
_LEGEND_PX = 26
_LEAST_IOU = 0.5
_MOST = 6


@dataclass(frozen=True)
class Example:
    """A test image.

    Attributes:
        image: its number.
        kind: ``miss``, ``false_alarm`` or ``best``.
        why: in words.
    """

    image: int
    kind: str
    why: str


def choose_examples(model: Evaluated, test: FoundBoxes, most: int = _MOST) -> list[Example]:
    """The worst misses, the worst false alarms, and the best images: at most so many of each.

    A miss is the worse the larger the share of the image that the missed box covers, a false alarm
    the higher it scores. The best images are those in which every box was found and nothing else,
    by the smallest IoU of a box.
    """
    shown = [above(found, model.threshold) for found in test.found[model.name]]
    misses = _misses(shown, test)
    alarms = _false_alarms(model)
    failed = {example.image for example in (*misses, *alarms)}
    best = _best([n for n in range(len(shown)) if n not in failed], shown, test)
    return [*misses[:most], *alarms[:most], *best[:most]]


def above(found: Detections, threshold: float) -> Detections:
    """The detections that count."""
    count = int((found.scores >= threshold).sum())
    return Detections(found.boxes[:count], found.scores[:count], found.classes[:count])


def true_boxes(test: FoundBoxes, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, K x 4, pixels of the file, and classes, int64 K, of an image."""
    rows = test.truth[image]
    rows = rows[rows[:, 0] >= 0]
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _overlaps(found: Detections, test: FoundBoxes, image: int) -> np.ndarray:
    """Of each true box the highest IoU with a box of its class that was found."""
    boxes, classes = true_boxes(test, image)
    ious = box_iou(boxes, found.boxes) * (classes[:, None] == found.classes)
    return ious.max(axis=1, initial=0.0)


def _misses(shown: Sequence[Detections], test: FoundBoxes) -> list[Example]:
    ranked = []
    for image, found in enumerate(shown):
        boxes, _ = true_boxes(test, image)
        overlaps = _overlaps(found, test, image)
        shares = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / test.sizes_px[image].prod()
        missed = np.flatnonzero(overlaps < _LEAST_IOU)
        if len(missed):
            largest = missed[shares[missed].argmax()]
            near = (
                f"the best box overlaps it by {overlaps[largest]:.2f}"
                if overlaps[largest]
                else "nothing was found there"
            )
            why = f"missed: {shares[largest]:.0%} of the image; {near}"
            ranked.append((-float(shares[largest]), image, why))
    return [Example(image, "miss", why) for _, image, why in sorted(ranked)]


def _false_alarms(model: Evaluated) -> list[Example]:
    matches = model.matches
    has_box = matches.truth_counts > 0
    wrong = ~matches.right[0] & (matches.scores >= model.threshold)
    # Scores fall: the first of an image is its highest.
    images, first = np.unique(matches.image_of[wrong], return_index=True)
    scores = matches.scores[wrong]
    return [
        Example(
            int(images[place]),
            "false_alarm",
            f"false alarm with a score of {scores[first[place]]:.2f}"
            + ("" if has_box[images[place]] else ", and nothing is there"),
        )
        for place in np.argsort(first)
    ]


def _best(clean: Sequence[int], shown: Sequence[Detections], test: FoundBoxes) -> list[Example]:
    ranked = []
    for image in clean:
        overlaps = _overlaps(shown[image], test, image)
        if len(overlaps):
            ranked.append((-float(overlaps.min()), image))
    return [
        Example(image, "best", f"found, and nothing else: IoU {-negative:.2f}")
        for negative, image in sorted(ranked)
    ]


def draw_example(
    test: FoundBoxes, image: int, found: Detections, classes: Sequence[str]
) -> Image.Image:
    """An image with its true boxes, whole lines, and those found, dashed, with their scores.

    Its longer side has 480 px; a legend is below.

    Args:
        test: the images.
        image: the number of one.
        found: what counts in it.
        classes: their names; they are told where there are several.

    Raises:
        StageError: the image cannot be read.
    """
    pixels = Image.fromarray(read_image(test.root / test.images[image]))
    scale = _LONGER_SIDE_PX / max(pixels.size)
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    sheet = Image.new("RGB", (size[0], size[1] + _LEGEND_PX), "white")
    sheet.paste(pixels.resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(sheet)
    # It has most of the world's letters, and is wherever medkd is.
    font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)

    def told(number: int) -> str:
        return f"{classes[number]} " if len(classes) > 1 else ""

    boxes, numbers = true_boxes(test, image)
    for box, number in zip(boxes * scale, numbers, strict=True):
        draw_box(draw, box, TRUE_COLOUR, size)
        if len(classes) > 1:
            _tag(draw, told(int(number)).strip(), (box[0], box[3]), TRUE_COLOUR, font, size)
    for box, score, number in zip(found.boxes * scale, found.scores, found.classes, strict=True):
        draw_box(draw, box, FOUND_COLOUR, size, dash_px=10)
        text = f"{told(int(number))}{score:.2f}"
        _tag(draw, text, (box[0], box[1] - 18), FOUND_COLOUR, font, size)
    _legend(draw, size, font)
    return sheet


def _legend(draw: ImageDraw.ImageDraw, size: tuple[int, int], font: ImageFont.FreeTypeFont) -> None:
    middle = size[1] + _LEGEND_PX // 2
    left = 8
    for colour, text, dash in ((TRUE_COLOUR, "true", 0), (FOUND_COLOUR, "found, score", 10)):
        draw_line(draw, (left, middle), (left + 34, middle), colour, dash_px=dash)
        draw.text((left + 42, middle), text, fill="#1d2733", font=font, anchor="lm")
        left += 42 + int(draw.textlength(text, font=font)) + 22


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: str,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    wide = draw.textlength(text, font=font) + 8
    left = min(max(float(corner[0]), 0.0), size[0] - wide)
    top = min(max(float(corner[1]), 0.0), size[1] - 18.0)
    draw.rectangle((left, top, left + wide, top + 17), fill=colour)
    draw.text((left + 4, top + 9), text, fill="#101010", font=font, anchor="lm")


def as_image_file(image: Image.Image, kind: str) -> bytes:
    """The content of an image file, ``PNG`` or ``JPEG``."""
    content = io.BytesIO()
    image.save(content, format=kind, **({"quality": 85} if kind == "JPEG" else {}))
    return content.getvalue()
