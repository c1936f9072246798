from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medkd.config import InferConfig
from medkd.errors import ModelPackageError
from medkd.inference.early_stop import LOOK_FACTOR, confidence_sequence, settled_interval
from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.slide_level.call import make_call
from medkd.slide_level.pooling import pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.slide_quality import SlideQuality
from medkd.slides.tiling import open_slide_for_tiling


def by_hand(values, error):
    """The formula of the paper, value by value."""
    lower, upper = 0.0, 1.0
    mean, variance = 1 / 2, 1 / 4
    squares = total = 0.0
    bets = won = lost = 0.0
    for t, x in enumerate(values, start=1):
        bet = min(math.sqrt(2 * math.log(2 / error) / (variance * t * math.log(1 + t))), 1 / 2)
        bets += bet
        won += bet * x
        lost += 4 * (x - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        total += x
        mean = (1 / 2 + total) / (t + 1)
        squares += (x - mean) ** 2
        variance = (1 / 4 + squares) / (t + 1)
        margin = (math.log(2 / error) + lost) / bets
        lower, upper = max(lower, won / bets - margin), min(upper, won / bets + margin)
    return lower, upper


@pytest.mark.parametrize("error", [0.01, 0.2])
def test_the_sequence_is_that_of_the_paper(error):
    values = np.random.default_rng(0).beta(2, 5, 300)
    for count in (1, 2, 50, 300):
        found = confidence_sequence(values[:count], error=error)
        assert found == pytest.approx(by_hand(values[:count], error), abs=1e-12)


def test_no_look_at_it_is_wrong_more_often_than_stated():
    """What all looks have in common leaves the mean out if any look does."""
    random = np.random.default_rng(1)
    for mean in (0.1, 0.5):
        ends = np.array(
            [confidence_sequence(random.random(800) < mean, error=0.2) for _ in range(600)]
        )
        wrong = (ends[:, 0] > mean) | (ends[:, 1] < mean)
        assert wrong.mean() <= 0.2
        # Four times the half width of a single look at the normal interval, at the most.
        single = 1.2816 * math.sqrt(mean * (1 - mean) / 800)
        assert np.median(ends[:, 1] - ends[:, 0]) < 2 * 4 * single


@pytest.fixture(scope="module")
def stopping(make_package, tmp_path_factory):
    """``stopping(threshold=0.5, ...)``: a package that stops early; gates and the rest as told."""

    def make(*, gates=None, **changes):
        folder = tmp_path_factory.mktemp("package")
        gates = {"early_stop": True, "early_stop_error": 0.05, **(gates or {})}
        return load_package(make_package(folder, gates=gates, **changes))

    return make


def drawn_slide(random):
    """Tile probabilities of two students: 300 to 1,500 tiles in regions that differ."""
    regions = random.beta(2, 2, size=5) * 0.6 + random.uniform(0, 0.4)
    tiles = random.integers(60, 300, size=5)
    truth = np.concatenate(
        [random.beta(8 * p, 8 * (1 - p), count) for p, count in zip(regions, tiles, strict=True)]
    )
    noise = random.normal(0, 0.03, (2, len(truth)))
    return np.clip(truth + noise, 0, 1)


def test_calls_differ_from_a_whole_pass_as_rarely_as_stated(stopping):
    """Slides on both sides of the operating point and on it, each called in both ways."""
    manifest = stopping(threshold=0.5).manifest
    random = np.random.default_rng(2)
    slides, differing, early, shares = 120, 0, 0, []
    for _ in range(slides):
        tiles = drawn_slide(random)
        count = tiles.shape[1]

        def called(score, used=count):
            return make_call(score, 0.5, manifest.gates, SlideQuality(1.0, used)).call

        def pooled(some):
            seen = dict(zip(("student1", "student2"), some, strict=True))
            return pool_slide(seen, resamples=150, interval=Interval(0.95, "tiles"))

        whole = called(pooled(tiles))
        drawn = tiles[:, random.permutation(count)]
        look = manifest.gates.min_tiles
        while look < count:
            seen = dict(zip(("student1", "student2"), drawn[:, :look], strict=True))
            settled = settled_interval(seen, ["used"] * look, manifest)
            if settled is not None:
                early += 1
                shares.append(look / count)
                score = replace(pooled(drawn[:, :look]), lower=settled[0], upper=settled[1])
                differing += called(score) != whole
                break
            look = math.ceil(LOOK_FACTOR * look)
    assert manifest.gates.early_stop_error == 0.05
    assert differing <= 0.05 * slides
    # Neither is it that none stopped early, nor that all did.
    assert 0.5 * slides < early < slides
    assert np.median(shares) < 0.5


def used(count):
    return ["background"] * 7 + ["used"] * count


def said(probability, count, other=None):
    values = np.full(count, probability, np.float32)
    return {"student1": values, "student2": values if other is None else np.full(count, other)}


def test_what_keeps_a_slide_from_being_left(stopping):
    manifest = stopping(threshold=0.5).manifest
    found = settled_interval(said(0.9, 200), used(200), manifest)
    assert found == confidence_sequence(np.full(200, np.float32(0.9)), error=0.05 / 5)
    assert 0.5 < found[0] < 0.9 < found[1]
    low = settled_interval(said(0.1, 200), used(200), manifest)
    assert low[0] < 0.1 < low[1] < 0.5
    # The operating point lies in the interval.
    assert settled_interval(said(0.9, 10), used(10), manifest) is None
    assert settled_interval(said(0.52, 200), used(200), manifest) is None
    # The students may disagree by more than 0.25.
    assert settled_interval(said(1.0, 200, other=0.75), used(200), manifest) is None
    # More than a tenth may be unreadable, or more than half out of focus.
    for fate, none, many in (("unreadable", 0, 10), ("out_of_focus", 20, 190)):
        fates = (["used", fate] * many) + ["used"] * (200 - many)
        assert settled_interval(said(0.9, 200), fates, manifest) is None
        fewer = (["used", fate] * none) + ["used"] * (200 - none)
        assert settled_interval(said(0.9, 200), fewer, manifest) == found


def test_never_before_min_tiles(stopping):
    manifest = stopping(threshold=0.2, gates={"min_tiles": 201}).manifest
    assert settled_interval(said(0.9, 200), used(200), manifest) is None
    assert settled_interval(said(0.9, 201), used(201), manifest) is not None


def test_the_calibrated_interval_is_held_against_the_operating_point(stopping):
    """Platt's map takes 0.9 to 0.1 / (0.1 + 0.9 e^5), less than 0.001, far below 0.5."""
    calibration = {"kind": "platt", "slope": 1.0, "intercept": -5.0}
    far = stopping(threshold=0.5, calibration=calibration).manifest
    found = settled_interval(said(0.9, 200), used(200), far)
    assert found is not None
    assert found[0] > 0.5
    near = stopping(threshold=0.06, calibration=calibration).manifest
    assert settled_interval(said(0.9, 200), used(200), near) is None


def test_conformal_sets_have_two_thresholds(stopping):
    sets = {
        "error_rate": 0.1,
        "negative_up_to": 0.4,
        "positive_from": 0.6,
        "negatives": 30,
        "positives": 20,
        "cohort": "validation patients",
        "date": "2026-01-02",
    }
    manifest = stopping(threshold=0.99, conformal=sets).manifest
    for probability, settles in ((0.9, True), (0.1, True), (0.5, True), (0.6, False), (0.4, False)):
        found = settled_interval(said(probability, 900), used(900), manifest)
        assert (found is not None) == settles


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"slide_head": {"pooling": {"kind": "mean_logit"}}}, "pools tiles by mean logit"),
        (
            {"slide_level": {"interval": "tiles_and_students"}},
            "has intervals for tiles and students",
        ),
    ],
)
def test_what_it_cannot_be_done_with_is_refused_at_load(stopping, changes, what):
    package = stopping(**changes)
    with pytest.raises(ModelPackageError) as caught:
        Students(package)
    assert str(caught.value) == (
        f"{package.folder}: stops early and {what}; that takes the mean probability and intervals "
        "for tiles. Train or aggregate again with infer.early_stop: false."
    )
    Students(stopping(gates={"early_stop": False}, **changes))


SMALL_TILES = {"tile": {"mpp": 1.0, "size_px": 16, "min_focus": 0.0}}


def test_a_slide_is_left_early(stopping, synthetic_slide):
    package = stopping(threshold=0.1, preprocessing=SMALL_TILES)
    found = [
        infer_slide(synthetic_slide, package, Students(package), threads=threads)
        for threads in (1, 2)
    ]
    # However many threads had read ahead.
    assert found[0].tiles == found[1].tiles
    assert (found[0].score, found[0].counts) == (found[1].score, found[1].counts)
    one = found[0]
    assert one.call.call == "MSI suspected"
    assert len(one.tiles) == one.counts.used == one.score.tiles
    assert one.counts.candidate < 32 * 24
    assert one.score.lower > 0.1
    assert sorted(one.tiles, key=lambda t: (t.y, t.x)) == list(one.tiles)
    rows = {tile.y for tile in one.tiles}
    assert len(rows) > 12

    gates = {"early_stop": False}
    whole_package = stopping(threshold=0.1, preprocessing=SMALL_TILES, gates=gates)
    whole = infer_slide(synthetic_slide, whole_package, Students(whole_package))
    assert whole.counts.candidate == 32 * 24
    assert set(one.tiles) < set(whole.tiles)
    assert one.score.lower < whole.score.score < one.score.upper
    (warning,) = set(one.warnings) - set(whole.warnings)
    with open_slide_for_tiling(synthetic_slide, package.manifest.preprocessing.tile) as slide:
        of = slide.to_read
    assert whole.counts.used <= of < 32 * 24
    read = of - (whole.counts.candidate - one.counts.candidate)
    assert warning == (
        f"reading stopped early: {read} of {of} tiles, in random order, settle the call"
    )


def test_read_to_the_end_the_answer_is_that_of_a_whole_pass(stopping, synthetic_slide):
    """The operating point is the score itself: nothing but the end can settle the call."""
    plain = {"preprocessing": SMALL_TILES, "gates": {"early_stop": False}}
    package = stopping(**plain)
    whole = infer_slide(synthetic_slide, package, Students(package))
    package = stopping(preprocessing=SMALL_TILES, threshold=whole.score.score)
    found = infer_slide(synthetic_slide, package, Students(package))
    assert found.tiles == whole.tiles
    assert (found.score, found.counts) == (whole.score, whole.counts)
    assert found.warnings == whole.warnings


def test_it_is_off_by_default():
    assert not InferConfig().early_stop
