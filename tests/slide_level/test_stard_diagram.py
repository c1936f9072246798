"""The drawn flow: its numbers, its reasons, and that other people's text stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from medkd.slide_level.stard import Flow, Group
from medkd.slide_level.stard_diagram import stard_diagram

SVG = "{http://www.w3.org/2000/svg}"


def flow(reason: str = "failed in tiling: missing mpp") -> Flow:
    return Flow(
        eligible=Group(20, 7, 25),
        slide_fates={reason: 3},
        without_tiles={reason: Group(2, 1, 2)},
        no_result=Group(1, 0, 1),
        indeterminate=Group(3, 1, 4),
        called_negative=Group(9, 1, 11),
        called_positive=Group(5, 4, 7),
    )


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(drawn).iter(f"{SVG}text")]


def draw(of: Flow, positive: str = "MSI") -> str:
    return str(stard_diagram(of.to_json(), positive=positive, negative="MSS"))


def test_every_box_says_how_many_and_by_the_reference_standard() -> None:
    assert texts(draw(flow())) == [
        "Test patients in slides.csv: 20 (25 slides)",
        "reference standard: MSI 7, MSS 13",
        "No tile to score: 2 patients",
        "failed in tiling: missing mpp: 2 (MSI 1, MSS 1)",
        "(and 1 slide of patients with others)",
        "Scored: 18 patients",
        "No result: 1 patient",
        "too little tissue, or too few usable tiles",
        "MSI 0, MSS 1",
        "Passed the quality gates: 17 patients",
        *("Called MSS: 9", "by the reference standard:", "MSI 1", "MSS 8"),
        *("Indeterminate: 3", "by the reference standard:", "MSI 1", "MSS 2"),
        *("Called MSI suspected: 5", "by the reference standard:", "MSI 4", "MSS 1"),
    ]


def test_no_text_leaves_its_box_and_no_two_boxes_overlap() -> None:
    drawn = ET.fromstring(draw(flow("failed in tiling: " + "a very long reason " * 6)))
    boxes = [
        [float(rect.get(key)) for key in ("x", "y", "width", "height")]
        for rect in drawn.iter(f"{SVG}rect")
    ]
    for text in drawn.iter(f"{SVG}text"):
        x, y = float(text.get("x")), float(text.get("y"))
        (box,) = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3]]
        # Of letters of 14 px 8 px each are more than most are wide.
        assert x + 7.2 * len(text.text or "") <= box[0] + box[2]
    for number, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:number]:
            apart_x = x + width <= other_x or other_x + other_width <= x
            assert apart_x or y + height <= other_y or other_y + other_height <= y


def test_names_are_text_and_no_markup() -> None:
    assert "reference standard: <b>&, MSS 13" not in draw(flow(), "<b>&")
    assert "reference standard: <b>& 7, MSS 13" in texts(draw(flow(), "<b>&"))
