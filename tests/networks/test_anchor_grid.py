"""Anchors: their number, their places, their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medkd.networks.anchor_grid import AnchorGrid

GRID = AnchorGrid(image_px=20, strides=(8, 16), sizes_px=((8.0,), (16.0,)), ratios=(1.0, 4.0))


def test_counts() -> None:
    # 20 / 8 is 2.5, 20 / 16 is 1.25: what is left over has cells of its own.
    assert GRID.sides == (3, 2)
    assert GRID.cells == 9 + 4
    assert GRID.per_cell == 2
    assert GRID.count == 26
    assert GRID.boxes().shape == (26, 4)
    assert GRID.boxes().dtype == torch.float32


def test_places_and_order_by_hand() -> None:
    """Level, row, column, ratio; of 8 px and ratio 4, that is 4 px wide and 16 px high."""
    boxes = GRID.boxes().tolist()
    # the first cell of 8 px has its centre at 4, 4
    assert boxes[0] == [0, 0, 8, 8]
    assert boxes[1] == [2, -4, 6, 12]
    # the next one to the right is at 12, 4, and two on, partly outside, at 20, 4
    assert boxes[2] == [8, 0, 16, 8]
    assert boxes[5] == [18, -4, 22, 12]
    # the second row begins at 4, 12
    assert boxes[6] == [0, 8, 8, 16]
    # the second level comes after 9 cells: 16 px at 8, 8, then at 24, 8, then at 8, 24
    assert boxes[18] == [0, 0, 16, 16]
    assert boxes[19] == [4, -8, 12, 24]
    assert boxes[20] == [16, 0, 32, 16]
    assert boxes[22] == [0, 16, 16, 32]


def test_a_flat_anchor_is_wide() -> None:
    """A ratio is height / width: of 16 px and a quarter, 32 px wide and 8 px high."""
    grid = AnchorGrid(image_px=16, strides=(16,), sizes_px=((16.0,),), ratios=(0.25,))
    assert grid.boxes().tolist() == [[-8, 4, 24, 12]]


def test_of_a_cell_each_ratio_has_all_sizes() -> None:
    grid = AnchorGrid(image_px=16, strides=(16,), sizes_px=((4.0, 8.0),), ratios=(1.0, 4.0))
    assert grid.per_cell == 4
    x1, y1, x2, y2 = grid.boxes().unbind(1)
    assert (x2 - x1).tolist() == [4, 8, 2, 4]
    assert (y2 - y1).tolist() == [4, 8, 8, 16]


def test_sides_are_rounded_to_even_pixels() -> None:
    # 16 / sqrt 2 = 11.31 and 16 sqrt 2 = 22.63, halves 5.66 and 11.31
    grid = AnchorGrid(image_px=32, strides=(32,), sizes_px=((16.0,),), ratios=(2.0,))
    assert grid.boxes().tolist() == [[10, 5, 22, 27]]


def test_a_naive_transcription_gives_the_same() -> None:
    grid = AnchorGrid(
        image_px=100,
        strides=(8, 16, 32),
        sizes_px=((17.0, 23.5), (40.0, 50.8), (90.0, 120.0)),
        ratios=(0.5, 1.0, 2.0),
    )
    expected = []
    for stride, sizes in zip(grid.strides, grid.sizes_px, strict=True):
        side = -(-100 // stride)
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for ratio in grid.ratios:
                    for size in sizes:
                        width, height = size / ratio**0.5, size * ratio**0.5
                        half = round(width / 2), round(height / 2)
                        expected.append([x - half[0], y - half[1], x + half[0], y + half[1]])
    assert grid.boxes().tolist() == expected
    assert grid.count == len(expected) == (169 + 49 + 16) * 6


def test_equal_grids_share_their_boxes() -> None:
    same = AnchorGrid(20, (8, 16), ((8.0,), (16.0,)), (1.0, 4.0))
    assert same == GRID
    assert hash(same) == hash(GRID)
    assert same.boxes() is GRID.boxes()
    assert replace(GRID, image_px=24) != GRID


def test_boxes_serve_whoever_asks_later() -> None:
    """The first to ask may validate, or look at shapes alone; the next one learns."""
    grid = replace(GRID, image_px=40)
    with torch.inference_mode(), torch.device("meta"):
        grid.boxes()
    scale = torch.ones(1, requires_grad=True)
    (grid.boxes() * scale).square().sum().backward()
    assert scale.grad is not None
    assert scale.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": ()}, "a grid without strides"),
        ({"strides": (1, 2)}, "the finest stride is 1, no power of two from 2 on"),
        ({"strides": (12, 24)}, "the finest stride is 12, no power of two"),
        ({"strides": (0, 0)}, "the finest stride is 0"),
        ({"strides": (8, 32)}, r"of the strides \(8, 32\) one is not twice the one before"),
        ({"strides": (16, 8)}, "one is not twice the one before"),
        ({"image_px": 15}, "a cell of 16 px is larger than the image of 15 px"),
        ({"sizes_px": ((8.0,),)}, "sizes for 1 levels, of a pyramid of 2"),
        ({"sizes_px": ((8.0,), (8.0, 9.0))}, r"levels with \[1, 2\] sizes: each needs the same"),
        ({"sizes_px": ((), ())}, r"levels with \[0, 0\] sizes: .* at least one"),
        ({"ratios": ()}, r"the ratios \(\) are not all above 0, or none"),
        ({"ratios": (1.0, -1.0)}, "are not all above 0"),
        ({"ratios": (float("nan"),)}, "are not all above 0"),
        ({"sizes_px": ((8.0,), (0.0,))}, "an anchor of 0 px and ratio 1: a side must have at"),
        ({"sizes_px": ((3.9,), (8.0,))}, r"an anchor of 3.9 px and ratio 4: .* at least 2 px"),
        ({"sizes_px": ((float("inf"),), (8.0,))}, "an anchor of inf px"),
        ({"sizes_px": ((8.0,), (float("nan"),))}, "an anchor of nan px"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GRID, **change)


def test_the_smallest_anchor_has_an_area() -> None:
    grid = AnchorGrid(image_px=8, strides=(8,), sizes_px=((4.0,),), ratios=(0.25, 4.0))
    assert grid.boxes().tolist() == [[0, 3, 8, 5], [3, 0, 5, 8]]
