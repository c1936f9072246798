"""Results and labels of a site: what is read, joined by patient, left aside, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkd.errors import StageError, TableError
from medkd.inference.labelled_results import (
    LabelledPatients,
    check_patients,
    join_patients,
    read_labels,
    read_results,
)
from medkd.inference.package import load_package
from medkd.slide_level.pooling import pool_patient
from tests.inference.site_results import write_labels, write_result

CLASSES = ("MSS", "MSI")
COHORT = "patients of St Mary"


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def joined(folder: Path, package, rows, *, pooling="tiles", patients=False) -> LabelledPatients:
    return join_patients(
        read_results(folder, package),
        read_labels(write_labels(folder / "labels.csv", rows, patients=patients), CLASSES),
        pooling=pooling,
        positive="MSI",
        cohort=COHORT,
    )


def refusal(folder: Path, package) -> str:
    with pytest.raises(StageError) as caught:
        read_results(folder, package)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    """(10 * 0.2 + 30 * 0.8) / 40 = 0.65, as pooling all 40 tiles gives too."""
    write_result(tmp_path, package, "p1_a", 0.2, tiles=10)
    write_result(tmp_path, package, "p1_b", 0.8, tiles=30)
    write_result(tmp_path, package, "p2_a", 0.1)
    rows = [("p1_a", "MSI", "p1"), ("p1_b", "MSI", "p1"), ("p2_a", "MSS", "p2")]
    found = joined(tmp_path, package, rows, pooling=pooling, patients=True)
    assert found.scores == pytest.approx([score, 0.1])
    assert (found.labels.tolist(), found.slides) == ([True, False], 3)
    tiles = {"a": {"student": np.full(10, 0.2)}, "b": {"student": np.full(30, 0.8)}}
    all_tiles = pool_patient(tiles, resamples=10, confidence=0.95, patient=pooling)
    assert found.scores[0] == pytest.approx(all_tiles.score)


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


# Results.


def test_a_key_that_a_later_version_adds_is_passed_over(package, tmp_path):
    write_result(tmp_path, package, "a", 0.5, some_later_key=1)
    assert read_results(tmp_path, package)["a"].score == 0.5


def test_results_of_another_model(package, tmp_path):
    other = {"name": "by-hand", "version": "0.9", "sha256": "ab" * 32}
    path = write_result(tmp_path, package, "a", 0.5, model=other)
    assert refusal(tmp_path, package) == (
        f"{path}: slide 'a' was called by another model: version 0.9, SHA-256 abababababab, and "
        f"{package.folder} is 1, {package.sha256[:12]}. Name the model that called it, or call the "
        "slides with this one."
    )


def test_no_results(package, tmp_path):
    told = "Name the folder that 'medkd infer --out' wrote."
    assert refusal(tmp_path, package) == f"{tmp_path}: holds no <slide>/result.json. {told}"
    gone = tmp_path / "gone"
    assert refusal(gone, package) == f"{gone}: no such folder. {told}"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"score": float("nan")}, "'score' (it is nan): input should be a finite number"),
        ({"score": 1.5}, "'score' (it is 1.5): input should be less than or equal to 1"),
        ({"score": "0.5"}, "'score' (it is '0.5'): input should be a valid number"),
        ({"schema_version": 2}, "'schema_version' (it is 2): input should be 1"),
        ({"slide_id": "b"}, "is of the slide 'b', and lies in the folder of another"),
        ({"score": None},
         "its call 'indeterminate', its score and its 50 tiles do not go together"),
        ({"call": "no result"},
         "its call 'no result', its score and its 50 tiles do not go together"),
        ({"tiles": {"used": 0}},
         "its call 'indeterminate', its score and its 0 tiles do not go together"),
    ],
)  # fmt: skip
def test_a_result_that_says_something_wrong(package, tmp_path, changes, what):
    path = write_result(tmp_path, package, "a", 0.5)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert refusal(tmp_path, package) == f"{path}: {what}. Call the slide again with 'medkd infer'."


def test_a_result_without_a_score(package, tmp_path):
    """An older medkd wrote none."""
    path = write_result(tmp_path, package, "a", 0.5)
    content = json.loads(path.read_text())
    del content["score"]
    path.write_text(json.dumps(content))
    assert f"{path}: the key 'score' is missing. Call the slide again" in refusal(tmp_path, package)


@pytest.mark.parametrize("content", ["", '{"schema_version": 1,', "[]"])
def test_a_result_that_was_cut(package, tmp_path, content):
    path = write_result(tmp_path, package, "a", 0.5)
    path.write_text(content)
    message = refusal(tmp_path, package)
    assert message.startswith(f"{path}: ")
    assert message.endswith(". Call the slide again with 'medkd infer'.")


# Labels.


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("slide,label\na,MSI\n",
         ": the column 'slide_id' is missing. Add it; there are: slide, label."),
        ("slide_id\na\n", ": the column 'label' is missing. Add it; there are: slide_id."),
        ("slide_id,label\na,MSI\nb,\n", ":3: 'label' is empty. Fill it in."),
        ("slide_id,label,patient_id\na,MSI,\n", ":2: 'patient_id' is empty. Fill it in."),
        ("slide_id,label\na,MSI-H\n",
         ":2: label 'MSI-H' is not a class of the model. Use one of MSS, MSI."),
        ("slide_id,label\na,MSI\na,MSI\n",
         ":3: slide 'a' stands twice (first on line 2). Keep one of the two rows."),
        ("slide_id,label,patient_id\na,MSI,p\nb,MSS,p\n",
         ":3: patient 'p' is MSS here and MSI on line 2. Give all slides of a patient the same "
         "label, or leave the patient out."),
        ("slide_id,label\n",
         ": holds no rows. Name a table with a header and rows below it."),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used(tmp_path, text, what):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_labels(path, CLASSES)
    assert str(caught.value) == f"{path}{what}"


def test_no_labels(tmp_path):
    with pytest.raises(TableError) as caught:
        read_labels(tmp_path / "labels.csv", CLASSES)
    assert str(caught.value).startswith(f"{tmp_path / 'labels.csv'}: no such file. ")


def test_a_table_as_a_hospital_keeps_it(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("slide_id;label;Bemerkung\r\na;MSI;schön\r\n".encode("utf-8-sig"))
    (found,) = read_labels(path, CLASSES).values()
    assert (found.label, found.patient_id, found.line) == ("MSI", "a", 2)


# Patients.


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


def test_the_score_of_a_lone_slide_is_kept_to_the_last_digit(package, tmp_path):
    """Otherwise the threshold could lie just above the slide that sets it."""
    assert 43 * 0.1 / 43 != 0.1
    write_result(tmp_path, package, "a", 0.1, tiles=43)
    assert joined(tmp_path, package, [("a", "MSI")]).scores.tolist() == [0.1]
