"""How figures read on the page, and the drawings in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from medkd.slide_level.evaluation_page import estimate_html, p_value
from medkd.slide_level.evaluation_plots import evaluation_drawings


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (
            {"value": 0.5, "lower": 0.25, "upper": 0.75},
            '<b>0.500</b> <span class="i">0.250 to 0.750</span>',
        ),
        (
            {"value": 1.0, "lower": None, "upper": None, "reason": "one <b> alone"},
            '<b>1.000</b> <span class="why">one &lt;b&gt; alone</span>',
        ),
        (
            {"value": None, "lower": 2.0, "upper": None, "reason": "infinite"},
            '<span class="i">at least 2.000</span> <span class="why">infinite</span>',
        ),
    ],
)
def test_a_figure_comes_with_its_interval_or_with_the_reason(estimate, shown: str) -> None:
    assert estimate_html(estimate) == shown


def test_differences_have_a_sign() -> None:
    assert estimate_html({"value": 0.0625, "lower": -0.5, "upper": 0.625}, 2, True) == (
        '<b>+0.06</b> <span class="i">-0.50 to +0.62</span>'
    )


@pytest.mark.parametrize(("value", "shown"), [(None, ""), (0.0004, "<0.001"), (0.0365, "0.036")])
def test_p_values_are_never_nought(value: float | None, shown: str) -> None:
    assert p_value(value) == shown


def drawn_report(*, called: bool = True) -> dict:
    interval = {"value": 0.5, "lower": 0.1, "upper": 0.9}
    ppv = interval if called else {"value": None, "reason": "no patient is called positive"}
    return {
        "classes": {"positive": "MSI", "negative": "MSS"},
        "settings": {"confidence": 0.95},
        "cohort": {"positives": 1, "negatives": 2, "prevalence": 1 / 3},
        "model": {"operating_point": {"threshold": 0.5}},
        "accuracy": {
            "threshold": {"sensitivity": interval, "specificity": interval, "ppv": ppv},
        },
        "discrimination": {
            "roc": {"false_positive_rate": [0, 0, 1], "sensitivity": [0, 1, 1]},
            "precision_recall": {"recall": [1, 1, 0], "precision": [0.5, 1, 1]},
            "probabilities": {"edges": [0, 0.5, 1], "positives": [0, 1], "negatives": [2, 0]},
        },
        "calibration": {
            "reliability": [
                {"mean_probability": 0.9, "share": 1.0, "interval": [0.1, 1.0], "patients": 3}
            ]
        },
        "decision_curves": {
            "threshold_probabilities": [0.25, 0.5],
            "curves": [
                {
                    "prevalence": prevalence,
                    "net_benefit": [0.1, 0.1],
                    "lower": [0, 0],
                    "upper": [0.2, 0.2],
                    "treat_all": [0.1, -0.5],
                }
                for prevalence in (1 / 3, 0.15)
            ],
        },
    }


@pytest.mark.parametrize("called", [True, False])
def test_drawings_are_svg_and_the_same_each_time(called: bool) -> None:
    drawn = evaluation_drawings(drawn_report(called=called))
    assert list(drawn) == [
        "roc",
        "precision_recall",
        "probabilities",
        "reliability",
        "decision_curve_0",
        "decision_curve_1",
    ]
    for svg in drawn.values():
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert drawn == evaluation_drawings(drawn_report(called=called))
