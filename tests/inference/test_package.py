from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from medkd.errors import ModelPackageError
from medkd.inference.engine import Students
from medkd.inference.manifest import manifest_schema
from medkd.inference.package import freeze_decisions, load_package
from medkd.inference.result import result_schema
from medkd.slide_level.calibration import Uncalibrated
from medkd.slide_level.out_of_distribution import nothing_checked
from medkd.slide_level.pooling_kinds import TopK
from medkd.slide_level.slide_head import LearnedPooling, PackagedSlideHead


@pytest.fixture
def package(package_folder, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(package_folder, tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelPackageError) as caught:
        load_package(folder)
    error = caught.value
    assert "\n" not in str(error)
    assert error.remedy.endswith(".")
    assert error.exit_status == 2
    return str(error)


def change_manifest(folder: Path, **changes) -> None:
    """Set keys of model.json; None takes one out."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    path.write_text(json.dumps(content, indent=2))


def test_what_was_written_is_read(package):
    loaded = load_package(package)
    manifest = loaded.manifest
    assert [student.name for student in manifest.students] == ["student1", "student2"]
    assert manifest.operating_point.threshold == 0.5
    assert manifest.gates.min_tissue_mm2 == 0.01
    assert loaded.negative == "MSS"
    assert set(manifest.files) == {
        "model_card.md",
        *(f"students/student{n}.{kind}" for n in (1, 2) for kind in ("onnx", "safetensors")),
    }
    card = (package / "model_card.md").read_text()
    assert "Research use only" in card
    assert "A score of at least 0.5000 counts as MSI" in card


def test_the_hash_names_the_content_not_its_layout(package, make_package, tmp_path):
    before = load_package(package).sha256
    path = package / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert load_package(package).sha256 == before
    assert load_package(make_package(tmp_path / "same")).sha256 == before
    other = make_package(tmp_path / "other", students={"student1": (1.0, 0.01)})
    assert load_package(other).sha256 != before


def test_nothing_in_it_is_pickled(package):
    suffixes = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".md", ".onnx", ".safetensors"}


@pytest.mark.parametrize("name", ["students/student2.onnx", "students/student1.safetensors"])
def test_one_changed_byte(package, name):
    path = package / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refusal(package) == (
        f"{package}: '{name}' is not the file that was packaged (its SHA-256 differs). "
        "Get the package anew from where it was made."
    )


def test_a_changed_model_card(package):
    (package / "model_card.md").write_text("For clinical use.")
    assert "'model_card.md' is not the file that was packaged" in refusal(package)


def test_a_missing_file(package):
    (package / "students" / "student1.onnx").unlink()
    assert refusal(package).startswith(f"{package}: lacks the file 'students/student1.onnx'. Get")


def test_a_file_that_is_not_listed(package):
    (package / "students" / "more.pkl").write_bytes(b"")
    message = refusal(package)
    assert message.startswith(f"{package}: holds the file 'students/more.pkl', which it does not")
    assert "Remove it" in message


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/outside.onnx", "students/a.pkl"])
def test_a_listed_file_that_a_package_cannot_hold(package, name):
    listed = json.loads((package / "model.json").read_text())["files"]
    change_manifest(package, files={**listed, name: "0" * 64})
    assert f"lists the file '{name}', which a package cannot hold" in refusal(package)


def test_a_link_that_leads_out_of_the_package(package, tmp_path):
    path = package / "students" / "student1.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    assert "lacks the file 'students/student1.onnx'" in refusal(package)


def test_a_student_without_hash(package):
    listed = json.loads((package / "model.json").read_text())["files"]
    del listed["students/student2.onnx"]
    change_manifest(package, files=listed)
    assert "'students/student2.onnx' of student2 has no SHA-256" in refusal(package)


def test_an_unknown_key(package):
    change_manifest(package, treshold=0.4)
    line = next(
        number
        for number, text in enumerate((package / "model.json").read_text().splitlines(), start=1)
        if "treshold" in text
    )
    assert refusal(package) == (
        f"{package / 'model.json'}:{line}: unknown key 'treshold'. The file was changed by hand; "
        "get the package anew."
    )


def test_a_missing_key(package):
    change_manifest(package, gates=None)
    assert f"{package / 'model.json'}: the key 'gates' is missing. The file" in refusal(package)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"research_use_only": False}, "'research_use_only' (it is False)"),
        ({"positive": "MSI-H"}, "'positive' must be one of the classes ['MSS', 'MSI']"),
        ({"students": []}, "'students'"),
        ({"gates": {"min_tiles": "10"}}, "'gates.min_tiles' (it is '10')"),
    ],
)
def test_a_wrong_value(package, changes, what):
    change_manifest(package, **changes)
    assert what in refusal(package)


def test_a_newer_schema(package):
    change_manifest(package, schema_version=2, something_new=1)
    assert refusal(package) == (
        f"{package / 'model.json'}: has the schema version 2, and this medkd reads 1. Use the "
        "medkd that wrote it, or train again with this one."
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"schema_version": 1,}', b"schema_version: 1", b"\xff\xfe{}"],
    ids=["empty", "cut", "comma", "yaml", "binary"],
)
def test_a_manifest_that_is_not_json(package, content):
    (package / "model.json").write_bytes(content)
    message = refusal(package)
    assert message.startswith(f"{package / 'model.json'}: is not valid JSON: ")
    assert message.endswith(" Get the package anew from where it was made.")


def test_json_that_is_no_manifest(package):
    (package / "model.json").write_text("[1]")
    assert "has the schema version None" in refusal(package)
    (package / "model.json").write_text('{"schema_version": 1, "schema_version": 1}')
    assert "'schema_version' stands twice" in refusal(package)


def test_no_package(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "file"):
        message = refusal(folder)
        assert message.startswith(f"{folder}: is not a model package (it has no model.json). ")
        assert "medkd train" in message


def test_without_an_operating_point(make_package, tmp_path):
    folder = make_package(tmp_path / "model", operating_point=None)
    assert refusal(folder) == (
        f"{folder}: has no operating point. Run 'medkd predict' and 'medkd aggregate' on the run "
        "first."
    )
    package = load_package(folder, needs_operating_point=False)
    assert package.manifest.operating_point is None
    assert "None yet" in (folder / "model_card.md").read_text()


def freeze(folder, point, performance, calibration=None):
    return freeze_decisions(
        folder,
        slide_head=load_package(folder, needs_operating_point=False).manifest.slide_head,
        out_of_distribution=nothing_checked("it is not tested here"),
        files={},
        trained_mpp=(0.25, 0.5),
        calibration=calibration or Uncalibrated(),
        operating_point=point,
        conformal=None,
        test_performance=performance,
    )


def test_an_operating_point_of_another_rule(make_package, tmp_path):
    """A point that fixed no sensitivity names none, in the package and in its card."""
    other = make_package(tmp_path / "model")
    point = load_package(other).manifest.operating_point.model_dump(mode="json")
    assert point["rule"] == "fixed sensitivity"
    assert point["prevalence"] is None  # the package is as an older medkd wrote it
    changes = {"rule": "Youden", "method": "largest index", "target_sensitivity": None}
    frozen = freeze(
        other,
        {**point, **changes},
        {"patients": 1, "positives": 0, "patient_auroc": {"value": None}},
    )
    assert frozen.manifest.operating_point.target_sensitivity is None
    assert "counts as MSI: largest index, chosen on" in (other / "model_card.md").read_text()


def test_the_operating_point_is_frozen_and_the_students_are_left(package_folder, make_package):
    folder = package_folder
    source = load_package(folder)
    other = make_package(folder.parent / "to_freeze", operating_point=None)
    before = (other / "students" / "student1.onnx").stat().st_mtime_ns
    point = source.manifest.operating_point.model_dump(mode="json")
    performance = {
        "patients": 9,
        "positives": 4,
        "patient_auroc": {"value": 0.875, "lower": 0.5, "upper": 1.0},
    }
    frozen = freeze(other, point, performance)
    assert frozen.manifest.operating_point.threshold == point["threshold"]
    assert load_package(other).sha256 == frozen.sha256 != source.sha256
    assert (other / "students" / "student1.onnx").stat().st_mtime_ns == before
    card = (other / "model_card.md").read_text()
    assert "On 9 test patients (4 MSI): AUROC 0.875 (0.500 to 1.000)." in card
    alike = {"value": 0.5, "lower": None, "upper": None, "reason": "no resample differs"}
    freeze(other, point, {**performance, "patient_auroc": alike})
    assert "(4 MSI): AUROC 0.500." in (other / "model_card.md").read_text()


def test_an_operating_point_of_another_model_is_refused(package, make_package, tmp_path):
    """Copied from a model whose student differs, whether by hash or without one."""
    other = make_package(tmp_path / "other", students={"student1": (1.5, 0.0), "student2": (1, 0)})
    theirs = json.loads((other / "model.json").read_text())["operating_point"]
    own = json.loads((package / "model.json").read_text())["operating_point"]
    assert theirs["fitted_to_sha256"] != own["fitted_to_sha256"]
    change_manifest(package, operating_point=theirs)
    assert refusal(package) == (
        f"{package / 'model.json'}: has the operating point of another model or calibration "
        f"({theirs['fitted_to_sha256'][:12]}; this one is {own['fitted_to_sha256'][:12]}). Run "
        "'medkd aggregate' on this model's run, or 'medkd recalibrate'."
    )
    change_manifest(package, operating_point={**own, "fitted_to_sha256": None})
    assert "another model or calibration (unknown; this" in refusal(package)
    change_manifest(package, operating_point=own)
    assert load_package(package).manifest.operating_point.threshold == own["threshold"]
    # A threshold of another map is none of this one.
    change_manifest(package, calibration={"kind": "platt", "slope": 2.0, "intercept": 0.0})
    assert "another model or calibration" in refusal(package)


def test_a_head_that_is_frozen_and_one_that_replaces_it(make_package, tmp_path):
    folder = make_package(tmp_path / "model")
    package = load_package(folder)
    students = [student.name for student in package.manifest.students]
    paths = {name: f"slide_head/{name}.onnx" for name in students}
    options = {
        "out_of_distribution": nothing_checked("it is not tested here"),
        "trained_mpp": None,
        "calibration": Uncalibrated(),
        "operating_point": package.manifest.operating_point.model_dump(mode="json"),
        "conformal": None,
        "test_performance": {"patients": 1, "positives": 0, "patient_auroc": {"value": None}},
    }
    learned = PackagedSlideHead(pooling=LearnedPooling(kind="attention", onnx=paths))
    files = {path: path.encode() for path in paths.values()}
    frozen = freeze_decisions(folder, slide_head=learned, files=files, **options)
    assert frozen.manifest.slide_head == learned
    before, after = package.manifest.operating_point, frozen.manifest.operating_point
    assert before.fitted_to_sha256 != after.fitted_to_sha256
    assert "students' attention heads say of its tiles'" in (folder / "model_card.md").read_text()

    (folder / paths[students[0]]).write_bytes(b"another")
    assert f"'{paths[students[0]]}' is not the file that was packaged" in refusal(folder)
    (folder / paths[students[0]]).write_bytes(files[paths[students[0]]])

    top = PackagedSlideHead(pooling=TopK(), ensembling="slides_first", patient="max_of_slides")
    again = freeze_decisions(folder, slide_head=top, files={}, **options)
    assert again.manifest.slide_head == load_package(folder).manifest.slide_head == top
    assert not any(path.is_file() for path in (folder / "slide_head").glob("*"))
    assert (
        "the top k of each student's tile probabilities (share 0.1, min_tiles 10); a patient's"
        in (folder / "model_card.md").read_text()
    )


def test_a_network_that_onnxruntime_cannot_load(make_package, tmp_path):
    import hashlib

    package = make_package(tmp_path / "model", operating_point=None)
    path = package / "students" / "student1.onnx"
    path.write_bytes(b"not a network")
    listed = json.loads((package / "model.json").read_text())["files"]
    listed["students/student1.onnx"] = hashlib.sha256(b"not a network").hexdigest()
    change_manifest(package, files=listed)
    with pytest.raises(ModelPackageError) as caught:
        Students(load_package(package, needs_operating_point=False))
    assert str(caught.value).startswith(f"{path}: onnxruntime ")
    assert "cannot load it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "schema"), [("model", manifest_schema), ("result", result_schema)]
)
def test_the_published_schemas_are_up_to_date(name, schema):
    published = files("medkd.inference").joinpath(f"{name}.schema.json").read_text("utf-8")
    assert published == json.dumps(schema(), indent=2) + "\n"


def test_the_manifest_follows_its_schema(package):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(manifest_schema())
    content = json.loads((package / "model.json").read_text())
    validator.check_schema(manifest_schema())
    validator.validate(content)
    assert not validator.is_valid({**content, "more": 1})
    assert not validator.is_valid({**content, "files": {"a.onnx": "abc"}})
