"""Boxes drawn into images: where their lines lie, and in which colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from medkd.datasets.box_drawing import BOX_COLOURS, class_colour, draw_boxes

GREY = np.full((40, 60, 3), 128, np.uint8)
RIM = (0x20, 0x20, 0x20)


def test_a_line_lies_on_the_edge_with_a_rim_on_both_sides() -> None:
    drawn = draw_boxes(GREY, np.array([[10.0, 5, 50, 30]]), [1], line_px=1)
    line = ImageColor.getrgb(BOX_COLOURS[1])
    for place in ((5, 30), (30, 30), (20, 10), (20, 50)):
        assert tuple(drawn[place]) == line
    for place in ((4, 30), (6, 30), (20, 9), (20, 11)):
        assert tuple(drawn[place]) == RIM
    assert (drawn[8:28, 13:48] == 128).all()
    assert (drawn[:3] == 128).all()
    assert (GREY == 128).all()


@pytest.mark.parametrize("line_px", [1, 2, 3])
def test_a_box_that_fills_the_image_is_not_cut_in_half(line_px: int) -> None:
    drawn = draw_boxes(GREY, np.array([[0.0, 0, 60, 40]]), [0], line_px=line_px)
    colour = (drawn == ImageColor.getrgb(BOX_COLOURS[0])).all(-1)
    middle_row, middle_column = colour[20], colour[:, 30]
    for line in (middle_row, middle_column):
        assert line.sum() == 2 * line_px
        assert line[: len(line) // 2].sum() == line_px


def test_colours_begin_anew_after_the_last() -> None:
    assert class_colour(0) == class_colour(5) != class_colour(4)
    assert len(set(BOX_COLOURS)) == 5
