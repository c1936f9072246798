"""The patients of a cohort, as a split sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medkd.datasets.tables import SlideRow
from medkd.errors import StageError


@dataclass(frozen=True)
class Patient:
    """One patient; ``site`` is empty where it plays no part."""

    patient_id: str
    label: str
    site: str = ""


def patients_of(
    rows: Sequence[SlideRow], *, with_sites: bool, where: object = "slides.csv"
) -> tuple[Patient, ...]:
    """The patients of ``rows``, sorted by id.

    Args:
        rows: of slides.csv.
        with_sites: each patient must have one site.
        where: named in the error.

    Raises:
        StageError: a site is wanted, and a patient has none, or slides of two.
    """
    label: dict[str, str] = {}
    sites: dict[str, set[str]] = {}
    for row in rows:
        label[row.patient_id] = row.label
        sites.setdefault(row.patient_id, set()).add(row.site)
    if not with_sites:
        return tuple(Patient(patient, label[patient]) for patient in sorted(label))
    for patient, of_patient in sorted(sites.items()):
        if "" in of_patient:
            raise StageError(
                f"patient '{patient}' has no site, and the split goes by sites",
                where=where,
                remedy="Fill in the column 'site', or choose another split.scheme.",
            )
        if len(of_patient) > 1:
            raise StageError(
                f"patient '{patient}' has slides of the sites {' and '.join(sorted(of_patient))}",
                where=where,
                remedy="Give all slides of a patient one site.",
            )
    return tuple(Patient(patient, label[patient], *sites[patient]) for patient in sorted(label))
