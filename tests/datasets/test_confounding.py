"""Cramér's V against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medkd.datasets.confounding import confounding
from medkd.datasets.tables import SlideRow


def cohort(counts: dict[tuple[str, str], int]) -> tuple[list[SlideRow], pd.DataFrame]:
    """(site, label) to number of patients; two slides each."""
    rows = [
        SlideRow(f"{site}{label}{n}_{k}", Path("x"), f"{site}{label}{n}", label, site=site)
        for (site, label), number in counts.items()
        for n in range(number)
        for k in range(2)
    ]
    return rows, pd.DataFrame({"patient_id": sorted({row.patient_id for row in rows})})


def test_by_hand() -> None:
    """30 10 / 10 30: chi-squared 80 * (900 - 100)^2 / 40^4 = 20, V = sqrt(20 / 80) = 0.5."""
    rows, split = cohort({("A", "MSI"): 30, ("A", "MSS"): 10, ("B", "MSI"): 10, ("B", "MSS"): 30})
    found = confounding(rows, split, "site")
    assert found is not None
    assert found.cramers_v == pytest.approx(0.5)
    # Survival function of chi-squared with one degree of freedom at 20: erfc(sqrt(10)).
    assert found.p_value == pytest.approx(7.744e-06, rel=1e-3)
    assert found.patients == {"A": {"MSI": 30, "MSS": 10}, "B": {"MSI": 10, "MSS": 30}}


def test_a_site_of_one_class_tells_it_and_even_sites_tell_nothing() -> None:
    apart = confounding(*cohort({("A", "MSI"): 5, ("B", "MSS"): 5}), "site")
    even = confounding(*cohort({(s, c): 4 for s in "AB" for c in ("MSI", "MSS")}), "site")
    assert apart is not None
    assert apart.cramers_v == pytest.approx(1)
    assert even is not None
    assert even.cramers_v == pytest.approx(0)
    assert even.p_value == pytest.approx(1)


def test_there_is_nothing_to_compare() -> None:
    rows, split = cohort({("A", "MSI"): 3, ("A", "MSS"): 3})
    assert confounding(rows, split, "site") is None
    assert confounding(rows, split, "scanner") is None
    assert confounding(rows, split.iloc[:0], "site") is None
