"""Maps by their formulas, their bounds, their order, and their way through JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit as scipy_expit
from scipy.special import logit as scipy_logit

from medkd.slide_level.calibration import (
    EPSILON,
    Beta,
    CalibrationMap,
    Isotonic,
    Platt,
    Recalibrated,
    Temperature,
    Uncalibrated,
    calibration_from_json,
    expit,
    least_score,
    logit,
)

STEPS = Isotonic(
    scores=(0.1, 0.3, 0.3001, 0.7, 1 / 3 + 0.5), probabilities=(0.05, 0.05, 0.3, 0.3, 0.9)
)
MAPS: list[CalibrationMap] = [
    Uncalibrated(),
    Temperature(temperature=0.01),
    Temperature(temperature=2.5),
    Platt(slope=0.0, intercept=1.0),
    Platt(slope=1.7, intercept=-0.4),
    Platt(slope=100.0, intercept=50.0),
    Beta(a=0.0, b=2.0, c=0.1),
    Beta(a=0.7, b=1.9, c=-0.8),
    Isotonic(scores=(0.4,), probabilities=(0.2,)),
    STEPS,
    Recalibrated(old=STEPS, slope=0.8, intercept=-1.0),
    Recalibrated(
        old=Recalibrated(old=Beta(a=1.0, b=0.5, c=0.2), slope=1.3, intercept=0.1),
        slope=0.5,
        intercept=2.0,
    ),
]  # fmt: skip
NAMES = [f"{i}-{calibration.kind}" for i, calibration in enumerate(MAPS)]


def test_logit_and_expit_agree_with_scipy() -> None:
    scores = np.linspace(EPSILON, 1 - EPSILON, 1001)
    np.testing.assert_allclose(logit(scores), scipy_logit(scores), rtol=1e-9, atol=1e-12)
    log_odds = np.linspace(-13, 13, 1001)
    np.testing.assert_allclose(expit(log_odds), scipy_expit(log_odds), rtol=1e-12)


def test_formulas_worked_out_by_hand() -> None:
    """Odds of 0.8 are 4; their square root is 2, which is a probability of 2/3."""
    assert Temperature(temperature=2.0)(0.8) == pytest.approx(2 / 3)
    assert Platt(slope=0.5, intercept=math.log(2))(0.8) == pytest.approx(4 / 5)
    # 0.8^2 / 0.2^1 * 3 / 4 are odds of 2.4.
    assert Beta(a=2.0, b=1.0, c=math.log(3 / 4))(0.8) == pytest.approx(2.4 / 3.4)
    moved = Recalibrated(old=Temperature(temperature=2.0), slope=2.0, intercept=-math.log(2))
    assert moved(0.8) == pytest.approx(2 / 3)
    assert Uncalibrated()(0.8) == 0.8


def test_isotonic_is_straight_between_knots_and_level_beyond() -> None:
    calibration = Isotonic(scores=(0.2, 0.6, 0.8), probabilities=(0.1, 0.3, 0.9))
    np.testing.assert_allclose(
        calibration([0.0, 0.2, 0.3, 0.6, 0.7, 0.8, 1.0]), [0.1, 0.1, 0.15, 0.3, 0.6, 0.9, 0.9]
    )


def test_equal_exponents_of_beta_are_platt() -> None:
    scores = np.linspace(0, 1, 101)
    np.testing.assert_allclose(
        Beta(a=1.4, b=1.4, c=0.3)(scores), Platt(slope=1.4, intercept=0.3)(scores), rtol=1e-12
    )


@pytest.mark.parametrize("calibration", MAPS, ids=NAMES)
def test_no_map_ever_falls(calibration: CalibrationMap) -> None:
    random = np.random.default_rng(0)
    scores = np.unique(np.concatenate([
        np.linspace(0, 1, 20_001), random.random(20_000), [1e-9, EPSILON, 1 - 1e-9, 0.3, 0.3001],
    ]))  # fmt: skip
    assert (np.diff(calibration(scores)) >= 0).all()


@pytest.mark.parametrize("calibration", MAPS[1:], ids=NAMES[1:])
def test_calibrated_probabilities_are_never_0_or_1(calibration: CalibrationMap) -> None:
    ends = calibration([0.0, 1.0])
    assert (ends >= EPSILON * 0.999).all()
    assert (ends <= 1 - EPSILON * 0.999).all()


@pytest.mark.parametrize("calibration", MAPS, ids=NAMES)
def test_shapes_are_kept(calibration: CalibrationMap) -> None:
    assert calibration(np.full((2, 3), 0.4)).shape == (2, 3)
    assert calibration(np.zeros(0)).shape == (0,)
    assert calibration(0.4).shape == ()
    assert calibration([0.4]).dtype == np.float64


@pytest.mark.parametrize("calibration", MAPS, ids=NAMES)
def test_maps_survive_json(calibration: CalibrationMap) -> None:
    content = json.loads(json.dumps(calibration.model_dump(mode="json"), allow_nan=False))
    read = calibration_from_json(content)
    assert read == calibration
    assert type(read) is type(calibration)
    np.testing.assert_array_equal(read(np.linspace(0, 1, 99)), calibration(np.linspace(0, 1, 99)))


def test_the_calibration_of_older_packages_is_read() -> None:
    assert calibration_from_json({"kind": "none"}) == Uncalibrated()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"kind": "spline"}, "does not match any of the expected tags"),
        ({"kind": "platt", "slope": 1.0}, "Field required"),
        ({"kind": "platt", "slope": -0.1, "intercept": 0.0}, "greater than or equal to 0"),
        ({"kind": "platt", "slope": 101.0, "intercept": 0.0}, "less than or equal to 100"),
        ({"kind": "platt", "slope": 1.0, "intercept": math.nan}, "finite number"),
        ({"kind": "platt", "slope": "1", "intercept": 0.0}, "valid number"),
        ({"kind": "platt", "slope": 1.0, "intercept": 0.0, "bias": 1.0}, "not permitted"),
        ({"kind": "temperature", "temperature": 0.0}, "greater than or equal to 0.01"),
        ({"kind": "isotonic", "scores": [], "probabilities": []}, "at least 1 item"),
        ({"kind": "isotonic", "scores": [0.1], "probabilities": [0.0]}, "greater than 0"),
        ({"kind": "isotonic", "scores": [0.1, 0.2], "probabilities": [0.5]}, "of one length"),
        ({"kind": "isotonic", "scores": [0.2, 0.2], "probabilities": [0.5, 0.5]}, "must rise"),
        ({"kind": "isotonic", "scores": [0.1, 0.2], "probabilities": [0.5, 0.4]}, "must not fall"),
        ({"kind": "isotonic", "scores": [0.1, 1.2], "probabilities": [0.4, 0.5]}, "0 and 1"),
    ],
)
def test_maps_that_are_refused(content: dict, what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        calibration_from_json(content)


@pytest.mark.parametrize("score", [math.nan, -0.01, 1.01, math.inf])
@pytest.mark.parametrize("calibration", MAPS, ids=NAMES)
def test_scores_that_are_no_probabilities(calibration: CalibrationMap, score: float) -> None:
    with pytest.raises(ValueError, match="not a number between 0 and 1"):
        calibration([0.5, score])


def test_maps_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Platt(slope=1.0, intercept=0.0).slope = 2.0  # type: ignore[misc]


def test_applying_a_map_takes_numpy_alone() -> None:
    code = (
        "import sys; from medkd.slide_level.calibration import calibration_from_json as read;"
        "read({'kind': 'platt', 'slope': 1.0, 'intercept': 0.0})([0.1]);"
        "print(sorted({'scipy', 'sklearn', 'pandas', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "calibration",
    [
        Uncalibrated(),
        Temperature(temperature=0.5),
        Platt(slope=2.0, intercept=-1.0),
        Isotonic(scores=(0.2, 0.6), probabilities=(0.3, 0.7)),
    ],
)
def test_the_least_score_of_a_probability(calibration) -> None:
    """It reaches the probability, and the next lower number does not."""
    score = least_score(calibration, 0.4)
    assert calibration(score) >= 0.4
    assert calibration(np.nextafter(score, 0)) < 0.4


def test_the_least_score_where_all_or_none_reach_it() -> None:
    level = Isotonic(scores=(0.2, 0.6), probabilities=(0.3, 0.7))
    assert least_score(level, 0.3) == 0
    assert least_score(level, 0.71) is None
    assert least_score(Uncalibrated(), 0.25) == 0.25
