"""The report on A4: what it says, on which pages, and what it looks like to a reader of PDF."""

from __future__ import annotations

import io

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from medkd.inference.engine import Students, infer_slide
from medkd.inference.infer_stage import build_result
from medkd.inference.package import load_package
from medkd.inference.report_content import report_content
from medkd.inference.report_pdf import report_pdf
from medkd.inference.result import Synthetic

TIMING = {"read": 1.0, "total": 2.5}


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture(scope="module")
def result(package, flat_slide):
    return build_result(infer_slide(flat_slide, package, Students(package)), package, TIMING)


def picture(width: int = 300, height: int = 200) -> bytes:
    """Red all over."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(buffer, format="png")
    return buffer.getvalue()


def document(result, package, heatmap: bytes | None = None) -> pypdfium2.PdfDocument:
    return pypdfium2.PdfDocument(report_pdf(result, package.manifest, heatmap or picture()))


def pages(found: pypdfium2.PdfDocument) -> list[str]:
    return [page.get_textpage().get_text_bounded() for page in found]


def words(found: pypdfium2.PdfDocument) -> str:
    return " ".join(" ".join(pages(found)).split())


def test_every_page_is_a4_and_says_what_it_is_for(result, package):
    found = document(result, package)
    for number, (page, text) in enumerate(zip(found, pages(found), strict=True), start=1):
        assert page.get_size() == pytest.approx((595.3, 841.9), abs=0.1)
        assert f"Research use only. {result.slide_id}" in text
        assert f"page {number} of {len(found)}" in text


def test_it_says_what_the_page_says(result, package):
    shown = words(document(result, package))
    content = report_content(result, package.manifest)
    assert result.call in shown
    for reason in result.reasons:
        assert reason in shown
    cells = {cell for table in content.tables for row in (table.head, *table.rows) for cell in row}
    values = {value.replace("`", "") for _, value in content.facts}
    # Long values are broken over lines, the hash within a word.
    together = shown.replace(" ", "")
    assert [one for one in cells | values if one.replace(" ", "") not in together] == []
    assert content.footer.replace(" ", "") in together
    assert f"operating point {result.operating_point.threshold:.2f}" in shown


def test_the_picture_keeps_its_shape(result, package):
    """Three to two, and red, within the margins."""
    found = document(result, package)
    shown = np.asarray(found[0].render(scale=1).to_pil())
    red = (shown[..., 0] > 250) & (shown[..., 1] < 5) & (shown[..., 2] < 5)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    across, down = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert across / down == pytest.approx(1.5, abs=0.02)
    assert columns.min() > 40
    assert columns.max() < 555


@pytest.mark.parametrize("size", [(200, 1200), (1200, 200)])
def test_a_tall_or_wide_picture_fits_the_page(result, package, size):
    assert len(document(result, package, picture(*size))) <= 3


def test_markup_in_values_is_text(result, package):
    evil = '<b>&amp;</b> <script>alert("1")</script>'
    changed = result.model_copy(
        update={"slide_id": evil, "call": evil, "reasons": (evil,), "students": {evil: 0.5}}
    )
    shown = words(document(changed, package)).replace(" ", "")
    assert shown.count(evil.replace(" ", "")) >= 4


def test_a_slide_without_result_shows_no_score(result, package):
    changed = result.model_copy(
        update={
            "call": "no result",
            "reasons": ("3 tiles are usable; 10 are needed.",),
            "score": None,
            "probability_msi": None,
            "interval": None,
            "students": {},
            "disagreement": None,
            "mutual_information": None,
            "synthetic": Synthetic(slide=True, model=True),
        }
    )
    shown = words(document(changed, package))
    assert "no result" in shown
    assert "probability of MSI" not in shown
    assert "This slide is synthetic: it was drawn, not scanned." in shown
    assert "its calls mean nothing in a clinic" in shown


def test_its_metadata_name_no_person(result, package):
    found = document(result, package).get_metadata_dict()
    assert found["Title"] == f"{result.slide_id}: {result.call}"
    assert found["Author"] == "medkd"
    assert found["Subject"] == "Research use only"
