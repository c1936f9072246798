"""Results and labels of a site: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.errors import StageError, TableError
from medkd.inference.labelled_results import read_labels, read_results
from medkd.inference.package import load_package
from tests.inference.site_results import write_result

CLASSES = ("MSS", "MSI")


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def refusal(folder: Path, package) -> str:
    with pytest.raises(StageError) as caught:
        read_results(folder, package)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
