"""TCGA barcodes (GDC encyclopedia, "TCGA Barcode"): project, tissue source site, participant ..."""

from __future__ import annotations

import re

_PATIENT = r"TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4}"

# Sample with vial, portion, slide: TCGA-AA-3516-01Z-00-DX1.
_SLIDE = re.compile(rf"(?P<patient>{_PATIENT})-[0-9]{{2}}[A-Z]-[0-9]{{2}}-[A-Z]{{2}}[A-Z0-9]+")
_WHOLE_PATIENT = re.compile(_PATIENT)


def find_slide_barcode(text: str) -> tuple[str, str] | None:
    """The first slide barcode in ``text`` and its patient, or None.

    ``blk-AAAAHDQPWYWF-TCGA-AA-3516-01Z-00-DX1`` gives
    ``("TCGA-AA-3516-01Z-00-DX1", "TCGA-AA-3516")``.
    """
    match = _SLIDE.search(text)
    return (match[0], match["patient"]) if match else None


def tissue_source_site(patient_id: str) -> str:
    """The code of the hospital, such as ``AA``; empty where ``patient_id`` is none of TCGA's."""
    match = _WHOLE_PATIENT.fullmatch(patient_id)
    return match["site"] if match else ""
