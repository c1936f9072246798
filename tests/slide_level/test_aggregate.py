"""From tile predictions to scores, calls, the operating point and figures on test patients."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from medkd.errors import StageError
from medkd.slide_level.aggregate import Aggregation
from medkd.slide_level.slide_quality import SlideQuality
from tests.slide_level.hand_made import (
    LABELS,
    PATIENTS,
    aggregated,
    one_class,
    predictions,
    slide_tiles,
)


@pytest.fixture(scope="module")
def result() -> Aggregation:
    return aggregated()


def of(table: pd.DataFrame, network: str = "ensemble") -> pd.DataFrame:
    key = "slide_id" if "slide_id" in table else "patient_id"
    return table[table["network"] == network].set_index(key)


def with_noise(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same tiles with other probabilities: multiples of 1/32, so that ties are exact."""
    values = np.random.default_rng(seed).integers(0, 33, len(table)) / 32
    return table.assign(probability=values.astype("float32"))


def test_a_patients_score_is_the_mean_of_the_students(result: Aggregation) -> None:
    expected = {patient: score for patient, _, _, score in PATIENTS}
    assert of(result.patients)["score"].to_dict() == expected
    assert of(result.patients, "student_0")["score"].to_dict() == {
        patient: score + 1 / 16 for patient, score in expected.items()
    }
    assert (of(result.patients)["disagreement"] == 1 / 8).all()


def test_the_teacher_has_rows_of_its_own_and_no_part_in_the_ensemble(result: Aggregation) -> None:
    table = predictions()
    other = aggregated(table.assign(probability=table["probability"].where(
        table["network"] != "teacher", 0.5)))  # fmt: skip
    pd.testing.assert_frame_equal(of(other.patients), of(result.patients))
    assert of(result.patients, "teacher").loc["t1", "score"] == 1 - 0.875
    assert (of(other.patients, "teacher")["score"] == 0.5).all()


def test_a_large_slide_weighs_more_than_a_small_one() -> None:
    more = slide_tiles("t1", "test", 0.25, slide="t1_large", tiles=12)
    result = aggregated(pd.concat([predictions(), more], ignore_index=True))
    patient = of(result.patients).loc["t1"]
    assert patient["score"] == (4 * 0.875 + 12 * 0.25) / 16
    assert patient["tiles"] == 16
    assert of(result.slides).loc["t1_s", "score"] == 0.875


def test_the_order_of_rows_does_not_matter() -> None:
    table = with_noise(predictions(), seed=0)
    shuffled = aggregated(table.sample(frac=1, random_state=1))
    straight = aggregated(table)
    pd.testing.assert_frame_equal(shuffled.slides, straight.slides)
    assert shuffled.evaluation == straight.evaluation


def test_only_the_ensemble_is_called(result: Aggregation) -> None:
    for table in (result.slides, result.patients):
        others = table[table["network"] != "ensemble"]
        assert others["call"].isna().all()
        assert others["disagreement"].isna().all()
        assert of(table)["call"].notna().all()


def test_calls_of_test_patients(result: Aggregation) -> None:
    calls = of(result.patients[result.patients["role"] == "test"])["call"].to_dict()
    assert calls == {
        "t1": "MSI suspected",
        "t2": "MSS",
        "t3": "MSI suspected",
        "t4": "MSS",
        "t5": "MSS",
    }
    assert result.evaluation["calls"] == {
        "MSI": {"MSI suspected": 1, "MSS": 1},
        "MSS": {"MSS": 2, "MSI suspected": 1},
    }


def test_tiles_that_scatter_about_the_operating_point_are_indeterminate() -> None:
    table = predictions()
    of_t1 = table["patient_id"] == "t1"
    scattered = np.where(table["x"] == 0, 0.0, 1.0)
    result = aggregated(table.assign(probability=table["probability"].where(~of_t1, scattered)))
    assert of(result.patients).loc["t1", ["score", "call"]].tolist() == [0.75, "indeterminate"]


def test_students_that_disagree_are_indeterminate() -> None:
    table = predictions()
    changed = (table["patient_id"] == "t1") & (table["network"] == "student_1")
    result = aggregated(table.assign(probability=table["probability"].mask(changed, 0.5)))
    patient = of(result.patients).loc["t1"]
    assert patient["disagreement"] == 0.9375 - 0.5
    assert patient["call"] == "indeterminate"


def test_too_little_tissue_on_a_slide_gives_it_no_result() -> None:
    result = aggregated(qualities={"t1_s": SlideQuality(0.49, 4), "t2_s": SlideQuality(0.5, 4)})
    assert of(result.slides).loc["t1_s", "call"] == "no result"
    assert of(result.slides).loc["t2_s", "call"] == "MSS"


def test_tissue_of_a_slide_counts_once_for_its_patient() -> None:
    result = aggregated(qualities={"t1_s": SlideQuality(0.49, 4), "t2_s": SlideQuality(0.5, 4)})
    assert of(result.patients).loc["t1", "call"] == "no result"
    assert of(result.patients).loc["t2", "call"] == "MSS"


def test_two_slides_too_small_alone_are_enough_together() -> None:
    table = predictions()
    parts = [slide_tiles("t1", "test", 0.875, slide=f"t1_{i}", tiles=2) for i in range(2)]
    result = aggregated(
        pd.concat([table[table["patient_id"] != "t1"], *parts], ignore_index=True),
        qualities={"t1_0": SlideQuality(0.25, 4), "t1_1": SlideQuality(0.25, 4)},
    )
    assert of(result.slides).loc[["t1_0", "t1_1"], "call"].tolist() == ["no result", "no result"]
    assert of(result.patients).loc["t1", "call"] == "MSI suspected"


def test_a_slide_beyond_the_limit_of_a_distance_is_indeterminate_and_so_is_its_patient() -> None:
    more = slide_tiles("t1", "test", 0.875, slide="t1_far")
    table = pd.concat([predictions(), more], ignore_index=True)
    near = SlideQuality(2.0, 4, distances={"stain": 1.0, "embedding": 2.0})
    qualities = dict.fromkeys(table["slide_id"], near)
    qualities["t1_far"] = SlideQuality(2.0, 4, distances={"stain": 1.5, "embedding": 3.5})
    limits = {"stain": 1.5, "embedding": 3.0}
    result = aggregated(table, qualities=qualities, distance_limits=limits)
    assert of(result.slides).loc[["t1_s", "t1_far"], "call"].tolist() == [
        "MSI suspected",
        "indeterminate",
    ]
    patient = of(result.patients).loc["t1"]
    # The farthest of the patient's slides counts.
    assert patient[["distance_stain", "distance_embedding", "call"]].tolist() == [
        1.5,
        3.5,
        "indeterminate",
    ]
    assert of(result.patients).loc["t2", "call"] == "MSS"
    others = result.slides[result.slides["network"] != "ensemble"]
    assert others["distance_stain"].isna().all()
    # Nothing is compared with limits that there are none of.
    assert of(aggregated(table, qualities=qualities).patients).loc["t1", "call"] == "MSI suspected"


def test_the_operating_point_is_that_of_the_validation_patients(result: Aggregation) -> None:
    point = result.operating_point
    assert (point.threshold, point.sensitivity, point.specificity) == (0.5, 1, 1 / 2)
    assert (point.patients, point.positives, point.date) == (4, 2, "2030-01-02")


@pytest.mark.parametrize("seed", range(5))
def test_labels_of_test_patients_do_not_move_the_operating_point(
    result: Aggregation, seed: int
) -> None:
    tested = [patient for patient, role, _, _ in PATIENTS if role == "test"]
    shuffled = np.random.default_rng(seed).permutation([LABELS[patient] for patient in tested])
    labels = {**LABELS, **dict(zip(tested, shuffled.tolist(), strict=True))}
    assert aggregated(labels=labels).operating_point == result.operating_point


@pytest.mark.parametrize("role", ["train", "test"])
def test_scores_of_other_patients_do_not_move_the_operating_point(
    result: Aggregation, role: str
) -> None:
    table = predictions()
    table.loc[table["role"] == role, "probability"] = 0.03125
    assert aggregated(table).operating_point == result.operating_point


def test_labels_of_validation_patients_move_the_operating_point() -> None:
    labels = {**LABELS, "v2": "MSS", "v4": "MSI"}
    point = aggregated(labels=labels).operating_point
    assert (point.threshold, point.specificity) == (0.625, 1)


def test_figures_at_the_operating_point(result: Aggregation) -> None:
    known = result.evaluation["at_operating_point"]
    assert known["sensitivity"]["value"] == 1 / 2
    assert known["specificity"]["value"] == pytest.approx(2 / 3)
    assert result.evaluation["operating_point"] == result.operating_point.to_json()


def test_a_test_patient_at_the_operating_point_counts_as_positive() -> None:
    table = predictions()
    table.loc[table["patient_id"] == "t3", "probability"] = 0.5
    known = aggregated(table).evaluation["at_operating_point"]
    assert known["specificity"]["value"] == pytest.approx(2 / 3)


def test_what_the_figures_were_had_on(result: Aggregation) -> None:
    assert result.evaluation["test"] == {
        "patients": 5,
        "positives": 2,
        "prevalence": 0.4,
        "slides": 5,
    }
    assert result.evaluation["intervals"] == (
        "95%, 200 bootstrap resamples of patients within each class"
    )


def test_auroc_worked_out_by_hand(result: Aggregation) -> None:
    areas = {
        name: known["patient_auroc"]["value"]
        for name, known in result.evaluation["networks"].items()
    }
    assert areas == pytest.approx(
        {"ensemble": 5 / 6, "student_0": 5 / 6, "student_1": 5 / 6, "teacher": 1 / 6}
    )


@pytest.mark.parametrize("network", ["ensemble", "student_1", "teacher"])
def test_auroc_of_tiles_slides_and_patients_agrees_with_scikit_learn(network: str) -> None:
    more = slide_tiles("t1", "test", 0.5, slide="t1_more", tiles=9)
    table = with_noise(pd.concat([predictions(), more], ignore_index=True), seed=1)
    known = aggregated(table).evaluation["networks"][network]
    members = ["student_0", "student_1"] if network == "ensemble" else [network]
    tested = table[(table["role"] == "test") & table["network"].isin(members)]
    tested = tested.assign(probability=tested["probability"].astype(float))

    def expected(*keys: str) -> float:
        scores = tested.groupby(["patient_id", *keys])["probability"].mean().reset_index()
        return roc_auc_score(scores["patient_id"].map(LABELS) == "MSI", scores["probability"])

    assert known["tile_auroc"] == pytest.approx(expected("slide_id", "x", "y"))
    assert known["slide_auroc"]["value"] == pytest.approx(expected("slide_id"))
    assert known["patient_auroc"]["value"] == pytest.approx(expected())


def test_intervals_over_slides_resample_patients(result: Aggregation) -> None:
    """Three equal slides of every patient say no more than one."""
    copies = [
        slide_tiles(patient, role, score, slide=f"{patient}_{i}")
        for patient, role, _, score in PATIENTS
        for i in range(3)
    ]
    known = aggregated(pd.concat(copies, ignore_index=True)).evaluation["networks"]["ensemble"]
    assert known["slide_auroc"] == result.evaluation["networks"]["ensemble"]["slide_auroc"]


def test_the_evaluation_survives_json(result: Aggregation) -> None:
    assert json.loads(json.dumps(result.evaluation, allow_nan=False)) == result.evaluation


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_slides_are_told(synthetic: bool) -> None:
    assert aggregated(synthetic=synthetic).evaluation["synthetic"] is synthetic


def test_tables_have_the_documented_columns(result: Aggregation) -> None:
    shared = [
        "patient_id", "role", "label", "network", "tiles", "score", "lower", "upper",
        "disagreement", "mutual_information", "probability", "distance_stain",
        "distance_embedding", "call",
    ]  # fmt: skip
    assert result.slides.columns.tolist() == ["slide_id", *shared]
    assert result.patients.columns.tolist() == shared


@pytest.mark.parametrize("name", ["slides", "patients"])
def test_numbers_have_the_documented_types(result: Aggregation, name: str) -> None:
    numbers = getattr(result, name).select_dtypes("number").dtypes.astype(str).to_dict()
    assert numbers == {
        "tiles": "int32",
        "score": "float64",
        "lower": "float64",
        "upper": "float64",
        "disagreement": "float64",
        "mutual_information": "float64",
        "probability": "float64",
        "distance_stain": "float64",
        "distance_embedding": "float64",
    }


def test_test_patients_of_one_class_have_no_auroc_for_a_reason() -> None:
    evaluation = one_class().evaluation
    assert evaluation["networks"]["ensemble"] == {
        "tile_auroc": None,
        "slide_auroc": {"value": None, "lower": None, "upper": None, "reason": "a class is absent"},
        "patient_auroc": {
            "value": None,
            "lower": None,
            "upper": None,
            "reason": "a class is absent",
        },
    }
    assert evaluation["at_operating_point"]["specificity"]["reason"] == "a class is absent"
    assert evaluation["at_operating_point"]["sensitivity"]["value"] == 1 / 2


def test_validation_patients_of_one_class_are_told() -> None:
    with pytest.raises(
        StageError,
        match=r"^validation patients: there is no negative patient to choose the operating point "
        r"on\. Give validation a larger share, or add patients\.$",
    ):
        aggregated(labels={**LABELS, "v3": "MSI", "v4": "MSI"})


def with_probability(value: float) -> pd.DataFrame:
    table = predictions()
    table.loc[5, "probability"] = value
    return table


def without(column: str, value: str) -> pd.DataFrame:
    table = predictions()
    return table[table[column] != value]


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (without("network", "student_1"), "has no predictions of 'student_1'"),
        (predictions().head(0), "has no rows"),
        (without("role", "validation"), "has no validation patient"),
        (without("role", "test"), "has no test patient"),
        (with_probability(np.nan), "has rows without a value in 'probability'"),
        (with_probability(1.5), "holds a probability that is not a number between 0 and 1"),
    ],
    ids=["a student", "all", "validation", "test", "nan", "above 1"],
)
def test_predictions_that_lack_something_are_told(table: pd.DataFrame, what: str) -> None:
    with pytest.raises(StageError) as caught:
        aggregated(table)
    told = f"predictions.parquet: {what}. Run 'medkd predict' again."
    assert str(caught.value).endswith(told)


def test_a_patient_without_a_label_is_told() -> None:
    labels = {patient: label for patient, label in LABELS.items() if patient != "t4"}
    with pytest.raises(StageError, match=r"patient 't4' has no label\. Add it to slides\.csv\.$"):
        aggregated(labels=labels)
