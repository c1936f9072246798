"""A site's patients: results and labels joined, what is left aside, and who is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.errors import StageError
from medkd.inference.labelled_patients import LabelledPatients, check_patients, join_patients
from medkd.inference.labelled_results import read_labels, read_results
from medkd.inference.package import load_package
from tests.inference.site_results import write_labels, write_result

COHORT = "patients of St Mary"


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def joined(folder: Path, package, rows, *, pooling="tiles", patients=False) -> LabelledPatients:
    return join_patients(
        read_results(folder, package),
        read_labels(write_labels(folder / "labels.csv", rows, patients=patients), ("MSS", "MSI")),
        pooling=pooling,
        positive="MSI",
        cohort=COHORT,
    )


def of_patients(labels, scores) -> LabelledPatients:
    return LabelledPatients(np.array(labels, bool), np.array(scores), len(labels), 0, "0" * 64, ())


def check(labels, scores) -> str:
    with pytest.raises(StageError) as caught:
        check_patients(of_patients(labels, scores), positive="MSI", negative="MSS", cohort=COHORT)
    return str(caught.value)


def test_scores_and_labels_by_slide(package, tmp_path):
    for name, score in (("b", 0.25), ("a", 0.75), ("c", 0.5)):
        write_result(tmp_path, package, name, score)
    found = joined(tmp_path, package, [("c", "MSS"), ("b", "MSS"), ("a", "MSI")])
    assert (found.labels.tolist(), found.scores.tolist()) == (
        [True, False, False],
        [0.75, 0.25, 0.5],
    )
    assert (found.slides, found.synthetic_slides, found.warnings) == (3, 0, ())


@pytest.mark.parametrize(
    ("pooling", "score"), [("tiles", 0.65), ("mean_of_slides", 0.5), ("max_of_slides", 0.8)]
)
def test_several_slides_of_a_patient(package, tmp_path, pooling, score):
    """The mean of all 40 tiles is (10 * 0.2 + 30 * 0.8) / 40 = 0.65."""
    write_result(tmp_path, package, "p1_a", 0.2, tiles=10)
    write_result(tmp_path, package, "p1_b", 0.8, tiles=30)
    write_result(tmp_path, package, "p2_a", 0.1)
    rows = [("p1_a", "MSI", "p1"), ("p1_b", "MSI", "p1"), ("p2_a", "MSS", "p2")]
    found = joined(tmp_path, package, rows, pooling=pooling, patients=True)
    assert found.scores == pytest.approx([score, 0.1])
    assert (found.labels.tolist(), found.slides) == ([True, False], 3)


def test_the_score_of_a_lone_slide_is_kept_to_the_last_digit(package, tmp_path):
    """Otherwise the threshold could lie just above the slide that sets it."""
    assert 43 * 0.1 / 43 != 0.1
    write_result(tmp_path, package, "a", 0.1, tiles=43)
    assert joined(tmp_path, package, [("a", "MSI")]).scores.tolist() == [0.1]


def test_what_has_only_one_of_the_two_is_left_aside_and_told(package, tmp_path):
    for name in ("a", "b", "x1", "x2", "x3", "x4"):
        write_result(tmp_path, package, name, 0.5)
    write_result(tmp_path, package, "gated", None, tiles=3)
    write_result(tmp_path, package, "lone", 0.6, tiles=1)
    rows = [("a", "MSI"), ("b", "MSS"), ("lost", "MSS"), ("gated", "MSI"), ("lone", "MSS")]
    found = joined(tmp_path, package, rows)
    assert found.slides == 3
    assert found.warnings == (
        "Labelled slides without a result, left aside: 1 (lost).",
        "Slides with a result and no label, left aside: 4 (x1, x2, x3 and 1 more).",
        "Labelled slides called 'no result', left aside: 1 (gated).",
        "Slides whose score is that of a single tile, which chance may have made: 1 (lone).",
    )


def test_the_data_are_named_by_what_they_say(package, tmp_path):
    def digest(score, label="MSI", tiles=50):
        write_result(tmp_path, package, "a", score, tiles=tiles)
        return joined(tmp_path, package, [("a", label)]).sha256

    first = digest(0.5)
    assert digest(0.5) == first
    assert len({first, digest(0.51), digest(0.5, "MSS"), digest(0.5, tiles=51)}) == 4


def test_drawn_slides_are_counted(package, tmp_path):
    write_result(tmp_path, package, "a", 0.5, synthetic={"slide": True, "model": False})
    write_result(tmp_path, package, "b", 0.5)
    assert joined(tmp_path, package, [("a", "MSI"), ("b", "MSS")]).synthetic_slides == 1


def test_no_slide_in_common(package, tmp_path):
    write_result(tmp_path, package, "a", 0.5)
    with pytest.raises(StageError) as caught:
        joined(tmp_path, package, [("a.svs", "MSI"), ("b.svs", "MSS")])
    assert str(caught.value) == (
        "patients of St Mary: none of the 2 labelled slides is among the 1 that were called: "
        "a.svs, b.svs against a. Write slide_id as the result's folder is named: the slide's file "
        "name without its ending."
    )


@pytest.mark.parametrize(
    ("labels", "scores", "what"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3],
         "there is no MSS among 3 patients with a label and a score. Label and call slides of "
         "MSS too."),
        ([0, 0], [0.1, 0.2],
         "there is no MSI among 2 patients with a label and a score. Label and call slides of "
         "MSI too."),
        ([], [],
         "there is no MSI among 0 patients with a label and a score. Label and call slides of "
         "MSI too."),
        ([1, 0], [0.1, 0.2],
         "2 patients with a label and a score are too few to recalibrate on: it takes 3 at the "
         "least, and tens to mean anything. Label and call more slides."),
        ([1, 0, 0, 1], [0.5, 0.5, 0.5, 0.5],
         "all 4 patients with a label and a score have the same score, 0.5: no threshold tells "
         "them apart. Look at the slides' reports: they may have been read at a wrong resolution, "
         "or the model is not for such slides."),
    ],
)  # fmt: skip
def test_patients_that_nothing_can_be_fitted_to(labels, scores, what):
    assert check(labels, scores) == f"patients of St Mary: {what}"


def test_patients_that_something_can_be_fitted_to():
    check_patients(
        of_patients([1, 0, 0], [0.5, 0.5, 0.4]), positive="MSI", negative="MSS", cohort=COHORT
    )
