"""Figures of subgroups are those of the subgroups' own cohorts, and too few are told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from medkd.errors import StageError
from medkd.slide_level.resampling import bootstrap
from medkd.slide_level.scored import scored_patients
from medkd.slide_level.statistics import AUROC, sensitivity_at
from medkd.slide_level.subgroups import NOT_GIVEN, subgroup_table

OPTIONS = {"resamples": 200, "confidence": 0.95}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Sites A (40 patients), B (30) and one not given (6); two slides a patient at B."""
    random = np.random.default_rng(0)
    site = ["A"] * 40 + ["B"] * 60 + [None] * 6
    patients = [*range(40), *np.repeat(np.arange(40, 70), 2), *range(70, 76)]
    table = pd.DataFrame({"site": site, "patient": patients})
    table["label"] = table["patient"] % 2 == 0
    table["score"] = random.normal(table["label"])
    return table


def table_of(rows: pd.DataFrame, **options: object) -> pd.DataFrame:
    return subgroup_table(
        rows["label"].to_numpy(),
        rows["score"].to_numpy(),
        rows["site"],
        [AUROC, sensitivity_at(0.5)],
        patients=rows["patient"].to_numpy(),
        **{**OPTIONS, **options},
    )


def test_each_subgroup_is_a_cohort_of_its_own(rows: pd.DataFrame) -> None:
    found = table_of(rows).set_index(["group", "figure"])
    counts = found[["rows", "patients", "positives", "negatives"]]
    assert counts.loc[("A", "auroc")].tolist() == [40, 40, 20, 20]
    assert counts.loc[("B", "auroc")].tolist() == [60, 30, 15, 15]
    for site in "AB":
        part = rows[rows["site"] == site]
        row = found.loc[(site, "auroc")]
        assert row["value"] == pytest.approx(roc_auc_score(part["label"], part["score"]))
        cohort = scored_patients(part["label"], part["score"], part["patient"])
        alone = bootstrap(cohort, [AUROC], **OPTIONS)["auroc"]
        assert (row["lower"], row["upper"]) == (alone.lower, alone.upper)
        assert row["reason"] == ""


def test_too_few_is_a_reason_and_not_a_number(rows: pd.DataFrame) -> None:
    found = table_of(rows)
    few = found[found["group"] == NOT_GIVEN]
    assert few["patients"].tolist() == [6, 6]
    assert few["value"].isna().all()
    assert few["reason"].unique().tolist() == ["too few: fewer than 10 patients of a class"]
    enough = table_of(rows, min_patients=3)
    assert enough["value"].notna().all()


def test_a_figure_of_positives_needs_positives_alone(rows: pd.DataFrame) -> None:
    only = rows[(rows["site"] == "A") & rows["label"]]
    found = table_of(only).set_index("figure")
    assert np.isnan(found.loc["auroc", "value"])
    assert found.loc["sensitivity", "value"] == (only["score"] >= 0.5).mean()


def test_groups_are_in_order_and_those_without_one_come_last(rows: pd.DataFrame) -> None:
    assert table_of(rows.iloc[::-1])["group"].unique().tolist() == ["A", "B", NOT_GIVEN]


def test_a_column_of_another_length_is_refused(rows: pd.DataFrame) -> None:
    with pytest.raises(StageError) as caught:
        subgroup_table(
            rows["label"], rows["score"], rows["site"][:5], [AUROC], where="by site", **OPTIONS
        )
    assert str(caught.value) == (
        "by site: 106 labels, 106 scores and 5 groups. Give one group for each row."
    )
