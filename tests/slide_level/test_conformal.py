"""Sets worked out by hand, and their coverage over drawn cohorts."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit
from scipy.stats import beta, kstest, norm

from medkd.errors import StageError
from medkd.slide_level.calibration_fit import fit_calibration
from medkd.slide_level.conformal import ConformalSets, fit_conformal

COHORTS = 1000


def fitted(positives: list[float], negatives: list[float], error_rate: float) -> ConformalSets:
    labels = np.array([True] * len(positives) + [False] * len(negatives))
    return fit_conformal(labels, [*positives, *negatives], error_rate, date="2030-01-02")


def test_sets_worked_out_by_hand() -> None:
    """Of 9 positives ceil(10 * 0.8) = 8 are inside, of 4 negatives ceil(5 * 0.8) = 4."""
    sets = fitted([i / 10 for i in range(1, 10)], [0.05, 0.1, 0.3, 0.35], 0.2)
    assert sets.positive_from == 0.2
    assert sets.negative_up_to == 0.35
    assert (sets.positives, sets.negatives) == (9, 4)
    np.testing.assert_array_equal(
        sets.possible([0.0, 0.19, 0.2, 0.35, 0.36, 1.0]),
        [[True, False], [True, False], [True, True], [True, True], [False, True], [False, True]],
    )
    assert [sets.call(p) for p in (0.1, 0.3, 0.4)] == ["MSS", "indeterminate", "MSI suspected"]
    assert sets.call(0.1, negative="benign", positive="tumour") == "benign"
    assert sets.call(0.9, negative="benign", positive="tumour") == "tumour suspected"


def test_a_probability_that_fits_neither_class_is_indeterminate() -> None:
    sets = fitted([0.9, 0.8, 0.7, 0.1], [0.2, 0.15, 0.1, 0.6], 0.4)
    assert (sets.negative_up_to, sets.positive_from) == (0.2, 0.7)
    assert not sets.possible(0.5).any()
    assert sets.call(0.5) == "indeterminate"


@pytest.mark.parametrize(
    ("count", "error_rate", "inside"),
    [(19, 0.05, 19), (20, 0.05, 20), (39, 0.05, 38), (9, 0.1, 9), (99, 0.1, 90), (29, 0.3, 21),
     (6, 1 / 7, 6), (100, 0.1, 91)],
)  # fmt: skip
def test_how_many_patients_are_inside(count: int, error_rate: float, inside: int) -> None:
    """ceil((n + 1) (1 - rate)), also where that is a whole number."""
    scores = [i / 200 for i in range(count, 0, -1)]
    sets = fitted(scores, [i / 200 for i in range(150)], error_rate)
    assert sets.positive_from == scores[inside - 1]


@pytest.mark.parametrize(
    ("positives", "negatives", "error_rate"), [(19, 39, 0.05), (30, 100, 0.1), (12, 25, 0.2)]
)
def test_each_class_is_covered_in_its_bounds(
    positives: int, negatives: int, error_rate: float
) -> None:
    """Over 1,000 cohorts. The true coverage of each one is known: scores are logistic normals.

    Theory (Vovk 2012): with k of n inside, the coverage of a cohort is Beta(k, n + 1 - k).
    """
    random = np.random.default_rng(positives)
    labels = np.arange(positives + negatives) < positives
    drawn = random.normal(np.where(labels, 1.0, -1.0), size=(COHORTS, len(labels)))
    sets = [fit_conformal(labels, row, error_rate, date="") for row in expit(drawn)]
    covered = {
        positives: norm.sf(logit([one.positive_from for one in sets]), loc=1),
        negatives: norm.cdf(logit([one.negative_up_to for one in sets]), loc=-1),
    }
    for count, coverage in covered.items():
        chance = 3 * coverage.std() / np.sqrt(COHORTS)
        assert 1 - error_rate - chance < coverage.mean()
        assert coverage.mean() < 1 - error_rate + 1 / (count + 1) + chance
        inside = int(np.ceil((count + 1) * (1 - error_rate) - 1e-9))
        assert kstest(coverage, beta(inside, count + 1 - inside).cdf).pvalue > 0.001


def test_ties_make_sets_larger_never_smaller() -> None:
    """Scores of one decimal: the share that is covered is at least the one that was asked for."""
    random = np.random.default_rng(0)
    labels = np.arange(60) < 30
    drawn = expit(random.normal(np.where(labels, 1.0, -1.0), size=(COHORTS, 2, 60))).round(1)
    sets = [fit_conformal(labels, row, 0.1, date="") for row in drawn[:, 0]]
    possible = np.stack([one.possible(row) for one, row in zip(sets, drawn[:, 1], strict=True)])
    for side, inside in ((0, possible[:, ~labels, 0]), (1, possible[:, labels, 1])):
        assert inside.mean() > 0.9 - 3 * inside.mean(1).std() / np.sqrt(COHORTS), side


def test_a_calibration_map_of_the_same_patients_changes_no_set() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(80) < 30
    scores = expit(random.normal(np.where(labels, 1.0, -1.0)))
    calibration = fit_calibration("platt", labels, scores)
    new = random.random(500)
    plain = fit_conformal(labels, scores, 0.1, date="")
    calibrated = fit_conformal(labels, calibration(scores), 0.1, date="")
    np.testing.assert_array_equal(plain.possible(new), calibrated.possible(calibration(new)))


def test_equal_scores_leave_both_classes_possible() -> None:
    sets = fitted([0.4] * 20, [0.4] * 20, 0.1)
    assert sets.possible(0.4).all()
    assert sets.call(0.4) == "indeterminate"


@pytest.mark.parametrize(
    ("positives", "negatives", "error_rate", "what", "remedy"),
    [
        (18, 50, 0.05, "18 positive patients are too few for an error rate of 0.05: it takes 19",
         "Ask for an error rate of 0.0527 or more, or add patients."),
        (50, 3, 0.1, "3 negative patients are too few for an error rate of 0.1: it takes 9",
         "Ask for an error rate of 0.25 or more, or add patients."),
        (0, 5, 0.1, "there is no positive patient to fit prediction sets to",
         "Give validation a larger share, or add patients."),
        (1, 1, 0.5, "2 patients are too few to fit prediction sets to: it takes 3 at the least, "
         "and tens to mean anything", "Give validation a larger share, or add patients."),
        (5, 5, 0.0, "the error rate is 0, and must lie between 0 and 1",
         "Change it; 0.1 is usual."),
        (5, 5, float("nan"), "the error rate is nan, and must lie between 0 and 1",
         "Change it; 0.1 is usual."),
    ],
)  # fmt: skip
def test_messages(
    positives: int, negatives: int, error_rate: float, what: str, remedy: str
) -> None:
    with pytest.raises(StageError) as caught:
        fitted([0.9] * positives, [0.1] * negatives, error_rate)
    assert str(caught.value) == f"validation patients: {what}. {remedy}"


@pytest.mark.parametrize("count", range(1, 60))
def test_the_rate_that_a_message_names_is_possible(count: int) -> None:
    positives, negatives = [0.9] * count, [0.1] * 70
    with pytest.raises(StageError) as caught:
        fitted(positives, negatives, 0.99 / (count + 1))
    named = float(caught.value.remedy.split(" or more")[0].rsplit(" ", 1)[1])
    assert fitted(positives, negatives, named).positives == count
    needed = int(str(caught.value).split("it takes ")[1].split(".")[0])
    rate = 0.99 / (count + 1)
    assert fitted([0.9] * needed, [0.1] * needed, rate).positives == needed
    assert needed == count + 1


def test_they_survive_json_and_are_strict() -> None:
    sets = fitted([0.9, 0.8, 0.7, 0.1], [0.2, 0.15, 0.1, 0.6], 0.4)
    content = json.loads(json.dumps(sets.model_dump(mode="json")))
    assert ConformalSets.model_validate(content) == sets
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ConformalSets.model_validate({**content, "positive_from": 1.5})
    with pytest.raises(ValidationError, match="not permitted"):
        ConformalSets.model_validate({**content, "more": 1})


@pytest.mark.parametrize("probability", [float("nan"), -0.1, 1.1])
def test_what_is_no_probability(probability: float) -> None:
    sets = fitted([0.9, 0.8], [0.2, 0.1], 0.4)
    with pytest.raises(ValueError, match="not a number between 0 and 1"):
        sets.call(probability)


def test_calling_takes_numpy_alone() -> None:
    code = (
        "import sys; from medkd.slide_level.conformal import fit_conformal;"
        "fit_conformal([1, 1, 0], [0.9, 0.8, 0.1], 0.5, date='').call(0.3);"
        "print(sorted({'scipy', 'sklearn', 'pandas', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
