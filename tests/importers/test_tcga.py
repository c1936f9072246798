"""TCGA's barcodes, and identifiers made from names."""

from __future__ import annotations

import re

import pytest

from medkd.importers.names import matched, safe_id
from medkd.importers.tcga import find_slide_barcode, tissue_source_site


@pytest.mark.parametrize(
    ("text", "slide", "patient"),
    [
        (
            "blk-AAAAHDQPWYWF-TCGA-AA-3516-01Z-00-DX1.png",
            "TCGA-AA-3516-01Z-00-DX1",
            "TCGA-AA-3516",
        ),
        ("TCGA-3L-AA1B-01A-01-TS1.8923A151.svs", "TCGA-3L-AA1B-01A-01-TS1", "TCGA-3L-AA1B"),
        ("TCGA-A6-2671-01A-01-BSA.tif", "TCGA-A6-2671-01A-01-BSA", "TCGA-A6-2671"),
    ],
)
def test_slide_barcodes(text: str, slide: str, patient: str) -> None:
    assert find_slide_barcode(text) == (slide, patient)


@pytest.mark.parametrize(
    "text", ["", "tile.png", "TCGA-AA-3516", "TCGA-AA-3516-01Z", "tcga-aa-3516-01z-00-dx1"]
)
def test_what_is_no_slide_barcode(text: str) -> None:
    assert find_slide_barcode(text) is None


def test_tissue_source_sites() -> None:
    assert tissue_source_site("TCGA-3L-AA1B") == "3L"
    assert tissue_source_site("TCGA-3L-AA1B-01A") == ""
    assert tissue_source_site("patient 1") == ""


def test_patterns_and_identifiers() -> None:
    assert matched(re.compile("p[0-9]+"), "x-p12-a.png") == "p12"
    assert matched(re.compile("(p[0-9]+)-(a)"), "x-p12-a.png") == "p12"
    assert matched(re.compile("q"), "x-p12-a.png") == ""
    assert safe_id("TCGA-AA-3516.x_1") == "TCGA-AA-3516.x_1"
    assert safe_id("Müller 3/1") == "M_ller_3_1"
    assert safe_id("_hidden") == "s_hidden"
