"""What is frozen: as asked for, of validation patients alone, told where they are few."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from medkd.config import SlideLevelConfig
from medkd.errors import StageError
from medkd.slide_level.calibration import Platt, Uncalibrated
from medkd.slide_level.calibration_fit import choose_calibration, fit_calibration
from medkd.slide_level.conformal import fit_conformal
from medkd.slide_level.decisions import decide
from tests.slide_level.hand_made import CONFIG, LABELS, aggregated, slide_tiles


def drawn(patients: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too extreme and too low: the log odds of the truth, three times less one."""
    random = np.random.default_rng(0)
    log_odds = random.normal(0, 1.5, patients)
    labels = random.random(patients) < 1 / (1 + np.exp(-log_odds))
    return labels, 1 / (1 + np.exp(-(3 * log_odds - 1)))


def test_the_best_calibration_is_chosen_and_the_point_lies_on_its_scale() -> None:
    labels, scores = drawn()
    found = decide(labels, scores, SlideLevelConfig(), seed=3, date="2030-01-02")
    choice = choose_calibration(labels, scores, seed=3)
    assert found.calibration == choice.map != Uncalibrated()
    assert found.calibration_record == choice.to_json()
    json.dumps(found.calibration_record)
    probabilities = found.calibration(scores)
    needed = int(np.ceil(0.95 * labels.sum()))
    assert found.operating_point.threshold == np.sort(probabilities[labels])[::-1][needed - 1]
    assert found.conformal is None


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"operating_point": "specificity", "target_specificity": 0.8}, "fixed specificity"),
        ({"operating_point": "youden"}, "Youden"),
        ({"operating_point": "cost", "cost_ratio": 5, "cost_prevalence": 0.2}, "cost-weighted"),
    ],
)
def test_the_rule_is_the_one_asked_for(asked: dict, rule: str) -> None:
    labels, scores = drawn()
    settings = SlideLevelConfig(calibration="platt", **asked)
    found = decide(labels, scores, settings, seed=0, date="2030-01-02")
    assert isinstance(found.calibration, Platt)
    assert found.calibration == fit_calibration("platt", labels, scores)
    assert found.operating_point.rule == rule


def test_conformal_sets_are_of_calibrated_patients() -> None:
    labels, scores = drawn()
    settings = SlideLevelConfig(calibration="platt", conformal_error=0.1)
    found = decide(labels, scores, settings, seed=0, date="2030-01-02")
    assert found.conformal == fit_conformal(
        labels, found.calibration(scores), 0.1, date="2030-01-02"
    )


def test_two_patients_are_not_calibrated_and_that_is_told() -> None:
    labels, scores = np.array([True, False]), np.array([0.7, 0.2])
    found = decide(labels, scores, SlideLevelConfig(), seed=0, date="2030-01-02")
    assert found.calibration == Uncalibrated()
    assert found.warnings[0] == (
        "2 validation patients are too few to calibrate: scores are as they are"
    )
    with pytest.raises(StageError, match="too few to calibrate on"):
        decide(labels, scores, SlideLevelConfig(calibration="platt"), seed=0, date="2030-01-02")


def many_patients() -> tuple[pd.DataFrame, dict[str, str]]:
    """Sixty validation patients whose scores overlap, and ten of each other role."""
    random = np.random.default_rng(1)
    tables, labels = [], {}
    for role, count in (("train", 10), ("validation", 60), ("test", 10)):
        for number in range(count):
            patient, positive = f"{role}{number}", number % 2 == 0
            labels[patient] = "MSI" if positive else "MSS"
            score = np.clip(random.normal(0.55 if positive else 0.4, 0.12), 0.1, 0.9)
            tables.append(slide_tiles(patient, role, float(score)))
    return pd.concat(tables, ignore_index=True), labels


def test_shuffled_test_labels_change_no_fitted_number() -> None:
    table, labels = many_patients()
    settings = SlideLevelConfig(bootstrap_resamples=200, conformal_error=0.2)
    config = CONFIG.model_copy(update={"slide_level": settings})
    straight = aggregated(table, labels, config=config)
    assert straight.decisions.calibration != Uncalibrated()
    tested = [patient for patient in labels if patient.startswith("test")]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(tested)
        other = {**labels, **{a: labels[b] for a, b in zip(tested, order, strict=True)}}
        shuffled = aggregated(table, other, config=config)
        assert shuffled.decisions == straight.decisions
        columns = ["patient_id", "network", "score", "probability", "call"]
        pd.testing.assert_frame_equal(shuffled.patients[columns], straight.patients[columns])


def test_probabilities_are_calibrated_scores_and_decide_the_calls() -> None:
    table, labels = many_patients()
    settings = SlideLevelConfig(bootstrap_resamples=200, calibration="platt")
    config = CONFIG.model_copy(update={"slide_level": settings})
    found = aggregated(table, labels, config=config)
    patients = found.patients[found.patients["network"] == "ensemble"]
    np.testing.assert_allclose(
        patients["probability"], found.decisions.calibration(patients["score"].to_numpy())
    )
    assert found.patients.loc[found.patients["network"] != "ensemble", "probability"].isna().all()
    # All tiles of a patient are equal, so the interval has no width and the point alone decides.
    above = patients["probability"] >= found.operating_point.threshold
    assert (patients.loc[above, "call"] == "MSI suspected").all()
    assert (patients.loc[~above, "call"] == "MSS").all()
    tested = found.evaluation["calibration"]["test"]
    truth = (patients["label"] == "MSI").to_numpy()[patients["role"] == "test"]
    probability = patients.loc[patients["role"] == "test", "probability"].to_numpy()
    assert tested["brier_score"]["value"] == pytest.approx(np.mean((probability - truth) ** 2))


def test_conformal_sets_call_where_they_are_asked_for() -> None:
    table, labels = many_patients()
    settings = SlideLevelConfig(bootstrap_resamples=200, conformal_error=0.1)
    found = aggregated(table, labels, config=CONFIG.model_copy(update={"slide_level": settings}))
    sets = found.decisions.conformal
    assert sets is not None
    patients = found.patients[found.patients["network"] == "ensemble"]
    expected = [sets.call(probability) for probability in patients["probability"]]
    assert patients["call"].tolist() == expected
    assert set(expected) == {"MSS", "MSI suspected", "indeterminate"}


def test_of_few_patients_scores_stay_as_they_are() -> None:
    found = aggregated()
    assert found.decisions.calibration == Uncalibrated()
    assert any("4 validation patients" in told or "2 positive" in told
               for told in found.decisions.warnings)  # fmt: skip
    assert found.evaluation["warnings"] == list(found.decisions.warnings)
    of = found.patients[found.patients["network"] == "ensemble"]
    assert (of["probability"] == of["score"]).all()
    assert LABELS.keys() == set(of["patient_id"])
    assert dataclasses.is_dataclass(found.decisions)
