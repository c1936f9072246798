from __future__ import annotations

import math

import numpy as np
import pytest

from medkd.export.box_check import largest_differences


def said(*anchor: float, name: str = "a_predictions") -> dict[str, np.ndarray]:
    """One image with one anchor: probabilities, and a box."""
    return {name: np.array([[anchor]], np.float32)}


@pytest.mark.parametrize(
    ("found", "apart", "apart_px"),
    [
        (said(0.25, 0.5, 1, 2, 30, 40), 0, 0),
        (said(0.25, 0.375, 1, 2, 30, 40), 0.125, 0),
        (said(0.25, 0.5, 1, 2, 30, 37.5), 0, 2.5),
        (said(0.75, 0.5, 0, 2, 30, 40), 0.5, 1),
        (said(math.nan, 0.5, 1, 2, 30, 40), math.inf, 0),
        (said(0.25, 0.5, math.nan, 2, 30, 40), 0, math.inf),
        (said(0.25, 0.5, 1, 2, math.inf, 40), 0, math.inf),
        (said(0.25, 1, 2, 30, 40), math.inf, math.inf),
        (said(0.25, 0.5, 1, 2, 30, 40, name="b_predictions"), math.inf, math.inf),
        ({}, math.inf, math.inf),
    ],
)
def test_largest_differences(found, apart, apart_px) -> None:
    expected = said(0.25, 0.5, 1, 2, 30, 40)
    assert largest_differences(expected, found) == (apart, apart_px)


def test_the_worst_of_several_outputs_counts() -> None:
    expected = said(0.25, 0, 0, 8, 8) | said(0.25, 0, 0, 8, 8, name="b")
    found = said(0.5, 0, 0, 8, 8) | said(0.25, 0, 4, 8, 8, name="b")
    assert largest_differences(expected, found) == (0.25, 4)
