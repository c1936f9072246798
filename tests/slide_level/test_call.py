"""The four calls, at and around each gate."""

from __future__ import annotations

import math

import pytest

from medkd.config import InferConfig
from medkd.slide_level.call import Call, make_call
from medkd.slide_level.pooling import SlideScore
from medkd.slide_level.slide_quality import SlideQuality

LIMITS = InferConfig(min_tiles=10, min_tissue_mm2=0.5, max_disagreement=0.25)
THRESHOLD = 0.5
BELOW = math.nextafter(THRESHOLD, 0)


def call(
    lower: float = 0.1,
    upper: float = 0.2,
    *,
    disagreement: float = 0.0,
    tissue: float = 2.0,
    tiles: int = 100,
    quality: SlideQuality | None = None,
    trained_mpp: tuple[float, float] | None = None,
    distance_limits: dict[str, float] | None = None,
) -> Call:
    score = SlideScore((lower + upper) / 2, lower, upper, {}, disagreement, tiles)
    measured = quality or SlideQuality(tissue, tiles)
    return make_call(
        score,
        THRESHOLD,
        LIMITS,
        measured,
        trained_mpp=trained_mpp,
        distance_limits=distance_limits,
    )


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (0.1, 0.2, "MSS"),
        (0.1, BELOW, "MSS"),
        (0.1, THRESHOLD, "indeterminate"),
        (0.4, 0.6, "indeterminate"),
        (BELOW, 0.9, "indeterminate"),
        (THRESHOLD, 0.9, "MSI suspected"),
        (THRESHOLD, THRESHOLD, "MSI suspected"),
        (0.8, 0.9, "MSI suspected"),
    ],
)
def test_the_interval_decides(lower: float, upper: float, expected: str) -> None:
    assert call(lower, upper).call == expected


@pytest.mark.parametrize(
    ("lower", "upper", "agreed"), [(0.1, 0.2, "MSS"), (0.8, 0.9, "MSI suspected")]
)
def test_students_may_differ_by_the_limit_and_no_more(
    lower: float, upper: float, agreed: str
) -> None:
    assert call(lower, upper, disagreement=0.25).call == agreed
    assert call(lower, upper, disagreement=math.nextafter(0.25, 1)).call == "indeterminate"


@pytest.mark.parametrize(
    ("tissue", "expected"), [(0.5, "MSS"), (math.nextafter(0.5, 0), "no result"), (0, "no result")]
)
def test_tissue_area_may_be_the_limit_and_no_less(tissue: float, expected: str) -> None:
    assert call(tissue=tissue).call == expected


@pytest.mark.parametrize(("tiles", "expected"), [(10, "MSS"), (9, "no result"), (0, "no result")])
def test_tiles_may_be_as_many_as_the_limit_and_no_fewer(tiles: int, expected: str) -> None:
    assert call(tiles=tiles).call == expected


def test_a_slide_without_a_score_has_no_result() -> None:
    made = make_call(None, THRESHOLD, LIMITS, SlideQuality(0, 0))
    assert made.call == "no result"
    assert made.reasons == (
        "The slide shows 0.00 mm² of tissue; 0.5 mm² are needed.",
        "0 tiles are usable; 10 are needed.",
    )


def test_too_little_tissue_comes_before_any_score() -> None:
    made = call(0.9, 0.95, disagreement=0.9, tissue=0.1)
    assert made.call == "no result"
    assert made.reasons == ("The slide shows 0.10 mm² of tissue; 0.5 mm² are needed.",)


def test_too_few_tiles_are_told() -> None:
    assert call(tiles=3).reasons == ("3 tiles are usable; 10 are needed.",)


@pytest.mark.parametrize("what", ["stain", "embedding"])
def test_a_distance_may_be_the_limit_and_no_more(what: str) -> None:
    limits = {"stain": 4.0, "embedding": 9.0}
    at = SlideQuality(2.0, 100, distances=limits)
    assert call(quality=at, distance_limits=limits).call == "MSS"
    farther = {**limits, what: limits[what] + 0.0002}
    made = call(quality=SlideQuality(2.0, 100, distances=farther), distance_limits=limits)
    assert made.call == "indeterminate"
    assert [gate.name for gate in made.gates if not gate.passed] == [f"out of distribution: {what}"]
    assert made.reasons == (
        f"The {what} is out of distribution: {limits[what]:.0f}.0002 from that of the training "
        f"slides (Mahalanobis distance); up to {limits[what]:.0f}.0000 is taken for their kind.",
        "Use the standard test.",
    )
    # What has no limit is no gate.
    assert call(quality=SlideQuality(2.0, 100, distances=farther)).call == "MSS"


@pytest.mark.parametrize(
    ("made", "reasons"),
    [
        (
            call(0.1, 0.2),
            ("The interval of the score, 0.10 to 0.20, lies below the operating point of 0.50.",),
        ),
        (
            call(0.8, 0.9),
            (
                "The interval of the score, 0.80 to 0.90, lies at or above the operating point "
                "of 0.50.",
                "Confirm by immunohistochemistry or PCR.",
            ),
        ),
        (
            call(0.4, 0.6),
            (
                "The interval of the score, 0.40 to 0.60, holds the operating point of 0.50.",
                "Use the standard test.",
            ),
        ),
        (
            call(0.1, 0.2, disagreement=0.4),
            (
                "The students' scores differ by 0.40; up to 0.25 is taken as agreement.",
                "Use the standard test.",
            ),
        ),
    ],
    ids=["negative", "positive", "undecided", "disagreement"],
)
def test_reasons(made: Call, reasons: tuple[str, ...]) -> None:
    assert made.reasons == reasons


def test_gates_tell_what_was_measured_and_passed() -> None:
    gates = {
        gate.name: (gate.value, gate.limit, gate.passed) for gate in call(disagreement=0.3).gates
    }
    assert gates == {
        "tissue area, mm²": (2.0, 0.5, True),
        "usable tiles": (100, 10, True),
        "disagreement of students": (0.3, 0.25, False),
        "share of tissue out of focus": (0.0, 0.5, True),
        "share of tissue unreadable": (0.0, 0.1, True),
    }


def test_a_slide_without_a_result_was_not_asked_for_agreement() -> None:
    gates = {gate.name: gate.passed for gate in call(tiles=9).gates}
    assert gates == {"tissue area, mm²": True, "usable tiles": False}


def test_calls_carry_the_names_of_the_classes() -> None:
    names = {"negative": "benign", "positive": "tumour"}
    for lower, upper, expected in ((0.1, 0.2, "benign"), (0.8, 0.9, "tumour suspected")):
        score = SlideScore(0.5, lower, upper, {}, 0.0, 50)
        made = make_call(score, 0.5, LIMITS, SlideQuality(2, 50), **names)
        assert made.call == expected


@pytest.mark.parametrize("kind", ["out_of_focus", "unreadable"])
def test_a_larger_share_of_poor_tissue_leaves_the_score_in_doubt(kind: str) -> None:
    """Of out of focus a half is allowed, of unreadable a tenth: 100 of 200, and 11 of 110."""
    allowed = {"out_of_focus": (100, 100), "unreadable": (99, 11)}[kind]
    used, poor = allowed
    assert call(quality=SlideQuality(2.0, used, **{kind: poor})).call == "MSS"
    made = call(quality=SlideQuality(2.0, used, **{kind: poor + 1}))
    assert made.call == "indeterminate"
    words, limit = kind.replace("_", " "), {"out_of_focus": "50%", "unreadable": "10%"}[kind]
    share = (poor + 1) / (used + poor + 1)
    assert made.reasons == (
        f"{100 * share:.3g}% of the tissue is {words}; up to {limit} is allowed.",
        "Use the standard test.",
    )
    (gate,) = [gate for gate in made.gates if not gate.passed]
    assert (gate.name, gate.value) == (f"share of tissue {words}", share)


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(0.2, "MSS"), (0.6, "MSS"), (0.199, "indeterminate"), (0.61, "indeterminate")],
)
def test_a_resolution_far_from_that_of_training_leaves_it_in_doubt(
    mpp: float, expected: str
) -> None:
    """Trained on 0.25 to 0.5 um/px; a fifth more or less is allowed."""
    quality = SlideQuality(2.0, 100, mpp=(0.4, mpp))
    made = call(quality=quality, trained_mpp=(0.25, 0.5))
    assert made.call == expected
    assert call(quality=quality).call == "MSS"
    if expected == "indeterminate":
        assert made.reasons[0] == (
            f"The slide has {mpp:.3g} µm/px; the model is for 0.2 to 0.6 µm/px, after the slides "
            "that it was trained on."
        )


def test_every_doubt_is_told() -> None:
    made = call(disagreement=0.3, quality=SlideQuality(2.0, 10, 11, 5))
    assert [gate.passed for gate in made.gates] == [True, True, False, True, False]
    assert len(made.reasons) == 3


def test_slides_of_a_patient_are_measured_together() -> None:
    whole = SlideQuality(1.0, 10, 5, 1, (0.25,)) + SlideQuality(0.5, 6, 0, 2, (0.5,))
    assert whole == SlideQuality(1.5, 16, 5, 3, (0.25, 0.5))
    assert whole.share_out_of_focus == 5 / 24
    assert whole.share_unreadable == 3 / 24
    assert SlideQuality(0, 0).share_unreadable == 0


def test_what_the_tile_stage_recorded_is_read() -> None:
    record = {
        "tissue_area_mm2": 3.5,
        "slide": {"mpp": 0.25},
        "tiles": {"used": 7, "unreadable": 2, "rejected": {"out_of_focus": 3, "pen": 9}},
    }
    assert SlideQuality.of_record(record) == SlideQuality(3.5, 7, 3, 2, (0.25,))
    imported = {"tissue_area_mm2": 3.5, "slide": {"synthetic": False}}
    assert SlideQuality.of_record(imported) == SlideQuality(3.5, 0)
