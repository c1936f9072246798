"""Whether a patient's class can be told from where or on what the slide was scanned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from medkd.datasets.tables import SlideRow


@dataclass(frozen=True)
class Confounding:
    """How strongly a property of slides and the class go together.

    Attributes:
        cramers_v: from 0 (not at all) to 1 (either tells the other). Small cohorts with many sites
            give large values by chance; the p value says whether that is enough to explain it.
        p_value: of the chi-squared test of independence.
        patients: property's value to class to number of patients.
    """

    cramers_v: float
    p_value: float
    patients: dict[str, dict[str, int]]


def confounding(rows: Sequence[SlideRow], split: pd.DataFrame, name: str) -> Confounding | None:
    """Cramér's V (1946) of class and ``name`` over the patients of a split.

    Args:
        rows: of slides.csv. A patient with slides of two sites counts at both.
        split: patient_id.
        name: column of the table of slides.

    Returns:
        None where fewer than two values or two classes are there.
    """
    known = set(split["patient_id"])
    seen = {
        (row.patient_id, getattr(row, name), row.label)
        for row in rows
        if row.patient_id in known and getattr(row, name)
    }
    table = pd.DataFrame(sorted(seen), columns=["patient_id", name, "label"])
    counts = pd.crosstab(table[name], table["label"])
    if min(counts.shape) < 2:
        return None
    return Confounding(
        float(association(counts.to_numpy(), method="cramer")),
        float(chi2_contingency(counts.to_numpy(), correction=False).pvalue),
        {
            str(value): {str(label): int(number) for label, number in of_value.items()}
            for value, of_value in counts.to_dict("index").items()
        },
    )
