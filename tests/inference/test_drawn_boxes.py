"""Pictures with boxes: what is drawn where, as a reader of the picture sees it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medkd.inference.detection_result import FoundBox
from medkd.inference.drawn_boxes import drawn_boxes


def found(*box: float, called: bool = True, label: str = "polyp") -> FoundBox:
    return FoundBox.model_validate({"box": box, "score": 0.5, "class": label, "called": called})


def drawn(boxes: list[FoundBox], size: tuple[int, int], note: str = "a note") -> np.ndarray:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    content = drawn_boxes(pixels, boxes, ("polyp", "adenoma"), note=note, ending=".png")
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def coloured(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels, axis=2) > 60


def test_only_called_boxes_are_drawn() -> None:
    boxes = [found(100, 60, 180, 120), found(20, 60, 60, 120, called=False)]
    picture = coloured(drawn(boxes, (200, 150)))[60:150]
    rows, columns = np.nonzero(picture)
    assert (columns.min(), columns.max(), rows.max()) == (100, 179, 59)


@pytest.mark.parametrize(
    "box", [(0, 0, 200, 150), (190, 0, 200, 8), (0, 140, 9, 150), (199, 149, 200, 150)]
)
def test_boxes_at_the_rim_keep_their_label_inside(box) -> None:
    picture = coloured(drawn([found(*box)], (200, 150)))
    assert picture[:150, :200].sum() > 500  # a label of about 80 x 18 px
    assert not picture[150:].any()


def test_classes_have_colours_of_their_own() -> None:
    one, other = (
        drawn([found(50, 60, 90, 120, label=name)], (200, 150)) for name in ("polyp", "adenoma")
    )
    assert one[100, 50].tolist() != other[100, 50].tolist()


def test_a_long_note_takes_more_lines_not_a_wider_picture() -> None:
    short, long = (drawn([], (200, 150), "word " * count) for count in (2, 30))
    assert short.shape[1] == long.shape[1] == 200
    assert long.shape[0] > short.shape[0] + 40


def test_jpeg_and_png() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    for ending, kind in ((".jpg", "JPEG"), (".JPEG", "JPEG"), (".png", "PNG"), (".PNG", "PNG")):
        content = drawn_boxes(pixels, [], ("polyp",), note="x", ending=ending)
        assert Image.open(io.BytesIO(content)).format == kind
