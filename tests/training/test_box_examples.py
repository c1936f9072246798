"""Which test images are drawn, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from medkd.training.box_evaluation import evaluated
from medkd.training.box_examples import (
    FOUND_COLOUR,
    TRUE_COLOUR,
    above,
    as_image_file,
    choose_examples,
    draw_example,
)
from tests.training.test_box_evaluation import BOX, FAR, POLYP, VALIDATION, found, images

SMALL = (0, 0, 10, 10)
MANY = images(
    [[BOX], [SMALL], [SMALL, FAR], [], [], [BOX], [BOX]],
    good=[
        found((12, 10, 50, 50, 0.9)),
        found(),
        found((*SMALL, 0.8), (60, 60, 90, 70, 0.7)),
        found((*FAR, 0.65)),
        found((*FAR, 0.1)),
        found((*BOX, 0.9), (*FAR, 0.5)),
        found((*BOX, 0.55)),
    ],
)


def test_the_worst_and_the_best_come_first() -> None:
    model = evaluated("good", VALIDATION, MANY, POLYP)
    chosen = choose_examples(model, MANY)
    # From 0.6 on. Missed: 40 x 40 px by a score too low, 30 x 30 px by an IoU of 1/3, 10 x 10 px.
    assert [(one.kind, one.image) for one in chosen] == [
        ("miss", 6), ("miss", 2), ("miss", 1),
        ("false_alarm", 2), ("false_alarm", 3),
        ("best", 5), ("best", 0),
    ]  # fmt: skip
    assert [one.why for one in chosen] == [
        "missed: 16% of the image; nothing was found there",
        "missed: 9% of the image; the best box overlaps it by 0.33",
        "missed: 1% of the image; nothing was found there",
        "false alarm with a score of 0.70",
        "false alarm with a score of 0.65, and nothing is there",
        "found, and nothing else: IoU 1.00",
        "found, and nothing else: IoU 0.95",
    ]
    assert [one.image for one in choose_examples(model, MANY, most=1)] == [6, 2, 5]


def test_only_what_counts_is_drawn() -> None:
    assert above(MANY.found["good"][5], 0.6).scores.tolist() == pytest.approx([0.9])
    assert len(above(MANY.found["good"][1], 0.6)) == 0


def test_true_and_found_boxes_have_their_own_colours(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), "#800000").save(tmp_path / "0.png")
    shown = replace(MANY, root=tmp_path)
    picture = draw_example(shown, 0, found((30, 60, 60, 90, 0.9)), POLYP)
    pixels = np.asarray(picture)
    # 480 px and a legend below.
    assert pixels.shape == (506, 480, 3)

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(pixels[round(4.8 * y), round(4.8 * x)].tolist())

    true_colour, found_colour = map(ImageColor.getrgb, (TRUE_COLOUR, FOUND_COLOUR))
    # BOX from 10 to 50 px, a whole line.
    assert all(at(x, 50) == true_colour for x in range(12, 48))
    # Dashed: some of the line, and some of what is below it.
    lower_edge = {at(x, 90) for x in np.arange(32, 58, 0.25)}
    assert {found_colour, ImageColor.getrgb("#800000")} <= lower_edge
    assert at(20, 20) == ImageColor.getrgb("#800000")
    assert as_image_file(picture, "PNG").startswith(b"\x89PNG")
    assert as_image_file(picture, "JPEG").startswith(b"\xff\xd8")
