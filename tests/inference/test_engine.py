from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from scipy.stats import binom

from medkd.errors import ModelPackageError, SlideError
from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.slides.judging import REJECTIONS
from medkd.slides.store import decode_tile, encode_tile
from medkd.slides.tiling import open_slide_for_tiling

# JPEG moves a flat colour by at most two of 255 levels.
JPEG = 2 / 255


@pytest.fixture(scope="module")
def infer(make_package, tmp_path_factory):
    """``infer(slide, mpp=0.5, threshold=0.7, ...)``: changes of the package are its keywords."""

    def run(slide, *, mpp=None, on_tile=None, threads=None, **changes):
        package = load_package(make_package(tmp_path_factory.mktemp("package"), **changes))
        return infer_slide(
            slide, package, Students(package), mpp=mpp, on_tile=on_tile, threads=threads
        )

    return run


@pytest.fixture(scope="module")
def flat(infer, flat_slide):
    return infer(flat_slide)


def test_students_are_what_their_formula_says(package_folder):
    students = Students(load_package(package_folder))
    tiles = np.zeros((3, 64, 64, 3), np.uint8)
    tiles[1, :32, :, 0] = 255
    tiles[2, ..., 0] = 255
    tiles[..., 1:] = 77  # green and blue do not count
    found = students(tiles)
    np.testing.assert_allclose(found.probabilities["student1"], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(found.probabilities["student2"], [0.3, 0.55, 0.8], atol=1e-6)


def test_the_positive_class_is_found_by_its_name(make_package, tmp_path):
    package = load_package(make_package(tmp_path, classes=["MSI", "MSS"]))
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    np.testing.assert_allclose(Students(package)(white).probabilities["student1"], [0], atol=1e-6)


def test_means_over_tiles_and_students(flat):
    """12 tiles of red 0.6 and 8 of 0.8: 0.68 by student1, 0.3 + 0.34 by student2."""
    score = flat.score
    assert score.tiles == 20
    assert score.students["student1"] == pytest.approx(0.68, abs=JPEG)
    assert score.students["student2"] == pytest.approx(0.64, abs=JPEG)
    assert score.score == pytest.approx(0.66, abs=JPEG)
    assert score.disagreement == pytest.approx(0.04, abs=JPEG)


def test_students_see_what_jpeg_leaves(flat):
    def red(colour):
        tile = np.full((64, 64, 3), colour, np.uint8)
        return decode_tile(encode_tile(tile, 90))[..., 0].mean(dtype=np.float64) / 255

    mean = (12 * red((153, 90, 130)) + 8 * red((204, 120, 170))) / 20
    expected = {"student1": mean, "student2": 0.5 * mean + 0.3}
    assert flat.score.students == pytest.approx(expected, abs=1e-6)
    assert flat.score.score == pytest.approx(0.75 * mean + 0.15, abs=1e-6)
    assert flat.score.disagreement == pytest.approx(abs(0.5 * mean - 0.3), abs=1e-6)


def test_the_interval_is_that_of_drawing_tiles(flat):
    """The ensemble says 0.6 on 12 tiles and 0.75 on 8, so a resample's mean is binomial."""
    step = 0.15 / 20
    lower, upper = 0.6 + step * binom.ppf([0.025, 0.975], 20, 8 / 20)
    assert flat.score.lower == pytest.approx(lower, abs=step + JPEG)
    assert flat.score.upper == pytest.approx(upper, abs=step + JPEG)
    assert flat.score.lower < flat.score.score < flat.score.upper


def test_every_tile_has_its_place_and_score(flat):
    # Row by row; the ensemble's formula is 0.75 * red + 0.15.
    expected = [
        (64 * column, 64 * row, 0.6 if column < 6 else 0.75)
        for row in range(2, 6)
        for column in range(3, 8)
    ]
    assert [(tile.x, tile.y) for tile in flat.tiles] == [(x, y) for x, y, _ in expected]
    np.testing.assert_allclose(
        [tile.probability for tile in flat.tiles], [p for _, _, p in expected], atol=JPEG
    )


def test_counts_and_area(flat):
    assert (flat.counts.candidate, flat.counts.used, flat.counts.unreadable) == (80, 20, 0)
    assert flat.counts.rejected == dict.fromkeys(REJECTIONS, 0) | {"background": 60}
    # The edge lies within one pixel of the thumbnail, 8 um.
    assert 0.320 * 0.256 <= flat.tissue_area_mm2 <= 0.336 * 0.272
    assert flat.tile_extent_px == 64
    assert flat.thumbnail.shape == (64, 80, 3)


def test_the_same_slide_gives_the_same_answer(infer, flat, flat_slide):
    again = infer(flat_slide)
    assert (again.score, again.tiles, again.call) == (flat.score, flat.tiles, flat.call)


def test_more_tiles_than_a_batch(infer, synthetic_slide):
    seen = []
    found = infer(
        synthetic_slide,
        preprocessing={"tile": {"mpp": 1.0, "size_px": 32, "min_focus": 0.0}},
        on_tile=lambda done, total: seen.append((done, total)),
    )
    assert found.counts.candidate == 16 * 12
    assert len(found.tiles) == found.counts.used == found.score.tiles > 64
    assert seen == [(number, 192) for number in range(1, 193)]
    assert found.score.score == pytest.approx(np.mean([t.probability for t in found.tiles]))
    assert found.properties.synthetic


def test_the_answer_of_many_threads_is_that_of_one_after_the_other(
    infer, make_package, synthetic_slide, tmp_path
):
    tile = {"mpp": 1.0, "size_px": 32, "min_focus": 0.0}
    package = load_package(make_package(tmp_path, preprocessing={"tile": tile}))
    students = Students(package)
    with open_slide_for_tiling(synthetic_slide, package.manifest.preprocessing.tile) as slide:
        used = [(t.x, t.y, slide.learnt_pixels(t)) for t in slide.tiles() if t.pixels is not None]
    seen = students(np.stack([pixels for _, _, pixels in used]))
    mean = np.mean(list(seen.probabilities.values()), axis=0)
    for threads in (1, 2, 5):
        found = infer(synthetic_slide, preprocessing={"tile": tile}, threads=threads)
        assert [(t.x, t.y) for t in found.tiles] == [(x, y) for x, y, _ in used]
        assert [t.probability for t in found.tiles] == mean.tolist()
        assert found.score == students.score(seen)
        assert found.counts.candidate == 16 * 12
        assert {"open", "read", "model"} == set(found.timing_s)
        assert min(found.timing_s.values()) > 0


def test_what_ends_a_pass_leaves_no_thread(infer, synthetic_slide):
    def interrupted(done, total):
        if done == 100:
            raise KeyboardInterrupt

    tile = {"mpp": 1.0, "size_px": 32, "min_focus": 0.0}
    with pytest.raises(KeyboardInterrupt):
        infer(synthetic_slide, preprocessing={"tile": tile}, on_tile=interrupted, threads=3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


@pytest.mark.parametrize(
    ("changes", "call", "reason"),
    [
        ({"threshold": 0.5}, "MSI suspected", "lies at or above the operating point of 0.50."),
        ({"threshold": 0.9}, "MSS", "lies below the operating point of 0.90."),
        ({"threshold": 0.66}, "indeterminate", "holds the operating point of 0.66."),
        (
            {"gates": {"max_disagreement": 0.03}},
            "indeterminate",
            "The students' scores differ by 0.04; up to 0.03 is taken as agreement.",
        ),
        ({"gates": {"min_tiles": 21}}, "no result", "20 tiles are usable; 21 are needed."),
        (
            {"gates": {"min_tissue_mm2": 0.5}},
            "no result",
            "The slide shows 0.09 mm² of tissue; 0.5 mm² are needed.",
        ),
    ],
)
def test_calls_and_gates(infer, flat_slide, changes, call, reason):
    found = infer(flat_slide, **changes).call
    assert found.call == call
    assert reason in found.reasons[0]
    failed = [gate.name for gate in found.gates if not gate.passed]
    gates = {"max_disagreement": "disagreement of students", "min_tiles": "usable tiles"}
    gates["min_tissue_mm2"] = "tissue area, mm²"
    assert failed == [gates[key] for key in changes.get("gates", {})]


def test_no_tissue_is_no_result(infer, write_flat, tmp_path):
    found = infer(write_flat(tmp_path / "blank.svs", np.full((256, 256, 3), 243, np.uint8)))
    assert (found.call.call, found.score, found.tiles) == ("no result", None, ())
    assert len(found.call.reasons) == 2
    assert found.counts.rejected["background"] == found.counts.candidate == 16


@pytest.mark.parametrize(
    "formula", [(float("nan"), 0.0), (2.0, 0.0), (1.0, -0.9)], ids=["nan", "above 1", "below 0"]
)
def test_a_student_that_gives_no_probability(infer, flat_slide, formula):
    with pytest.raises(ModelPackageError) as caught:
        infer(flat_slide, students={"student1": (1.0, 0.0), "broken": formula})
    assert "broken gave a probability that is not a number between 0 and 1. " in str(caught.value)
    assert "use another model" in str(caught.value)


def test_resolution_from_the_command_line(infer, write_flat, flat_image, tmp_path):
    path = write_flat(tmp_path / "untold.svs", flat_image, mpp=None)
    with pytest.raises(SlideError, match="does not say its resolution"):
        infer(path)
    found = infer(path, mpp=0.5)
    assert (found.properties.mpp, found.properties.mpp_source) == (0.5, "--mpp")
    assert found.tile_extent_px == 128
    assert 0.160 * 0.128 <= found.tissue_area_mm2 <= 0.176 * 0.144


@pytest.mark.real_data
def test_a_real_slide_against_its_own_pixels(infer, real_slides):
    """The mean red of tissue by another path: OpenSlide's level 0, averaged over each tile."""
    import openslide

    path = real_slides / "CMU-1-Small-Region.svs"
    found = infer(path, preprocessing={"tile": {"mpp": 0.499, "size_px": 256}})
    with openslide.OpenSlide(path) as slide:
        red = [
            np.asarray(slide.read_region((t.x, t.y), 0, (256, 256)))[..., 0].mean() / 255
            for t in found.tiles
        ]
    assert found.counts.candidate == 8 * 11
    assert len(red) > 20
    np.testing.assert_allclose(
        [t.probability for t in found.tiles], 0.75 * np.array(red) + 0.15, atol=JPEG
    )
    assert found.score.score == pytest.approx(0.75 * np.mean(red) + 0.15, abs=JPEG / 2)


@pytest.mark.real_data
def test_fluorescence_is_no_result(infer, real_slides):
    found = infer(real_slides / "test3-DAPI-2-387.ndpi")
    assert (found.call.call, found.counts.used) == ("no result", 0)


def test_the_score_is_calibrated_before_it_is_called(infer, flat, flat_slide):
    """logit p = 2 logit s + 0.5, by hand; the students stay as they are."""
    found = infer(
        flat_slide,
        calibration={"kind": "platt", "slope": 2.0, "intercept": 0.5},
        threshold=0.9,
    )
    assert found.raw_score == flat.score.score
    assert found.score.students == flat.score.students

    def calibrated(score):
        return 1 / (1 + np.exp(-(2 * np.log(score / (1 - score)) + 0.5)))

    for name in ("score", "lower", "upper"):
        expected = calibrated(getattr(flat.score, name))
        assert getattr(found.score, name) == pytest.approx(expected, abs=1e-9)
    assert found.score.lower > 0.7
    assert found.call.call == "MSS"
    assert "lies below the operating point of 0.90." in found.call.reasons[0]


@pytest.mark.parametrize(
    ("negative_up_to", "positive_from", "call"),
    [
        (0.5, 0.6, "MSI suspected"),
        (0.9, 0.8, "MSS"),
        (0.9, 0.1, "indeterminate"),
        (0.3, 0.9, "indeterminate"),
    ],
)
def test_conformal_sets_call_instead(infer, flat_slide, negative_up_to, positive_from, call):
    sets = {
        "error_rate": 0.1,
        "negative_up_to": negative_up_to,
        "positive_from": positive_from,
        "negatives": 30,
        "positives": 20,
        "cohort": "validation patients",
        "date": "2026-01-02",
    }
    found = infer(flat_slide, conformal=sets, threshold=0.999).call
    assert found.call == call
    assert "an error rate of 10% in each class" in found.reasons[0]


def test_a_call_needs_no_library_of_training_or_tables():
    code = (
        "import sys, medkd.inference.infer_stage\n"
        "names = {'torch', 'monai', 'mlflow', 'sklearn', 'pandas', 'pyarrow', 'scipy.stats'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
