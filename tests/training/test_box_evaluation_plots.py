"""The drawings of a detector's evaluation, from figures made up here."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from medkd.training.box_evaluation_plots import _froc, box_evaluation_drawings


def report(*, false_alarms: int, farthest: float) -> dict[str, Any]:
    """Of 10 images with 8 boxes, 4 of which are found at the threshold."""
    curve = {
        "false_positives_per_image": [0.0, farthest],
        "recall": [0.25, 0.75],
        "precision": [1.0, 0.5],
    }
    return {
        "images": {"test": {"boxes": 8, "images": 10}},
        "models": [
            {
                "name": name,
                "at_threshold": {"found": 4, "false_alarms": false_alarms},
                "curve": curve,
            }
            for name in ("ensemble_dense", "teacher")
        ],
    }


@pytest.mark.parametrize(
    ("false_alarms", "farthest", "edge"),
    [
        (3, 0.9, 1.5),  # 0.3 an image
        (3, 4.0, 4.2),
        (3, 50.0, 8.0),  # what lies farther right is of no use to anyone
        (150, 50.0, 15.75),  # but the threshold's own point is: 15 an image
    ],
)
def test_the_curve_reaches_as_far_as_it_is_of_use(
    false_alarms: int, farthest: float, edge: float
) -> None:
    made_up = report(false_alarms=false_alarms, farthest=farthest)
    (axes,) = _froc(made_up).axes
    assert axes.get_xlim() == pytest.approx((0, edge))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of a drawing that has no room for its axes
        drawn = box_evaluation_drawings(made_up)
    assert set(drawn) == {"froc", "precision_recall"}
