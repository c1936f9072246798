"""The package of a detector: what was written is read, and nothing else is."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from medkd.errors import ModelPackageError
from medkd.files import sha256_of_file
from medkd.inference.detector_package import (
    detector_manifest_schema,
    load_detector_package,
)
from medkd.inference.detector_students import DetectorStudents
from medkd.inference.package_files import task_of
from tests.inference.square_finders import write_finders


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_finders(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelPackageError) as caught:
        load_detector_package(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy.endswith(".")
    assert caught.value.exit_status == 2
    return str(caught.value)


def changed(folder: Path, **changes) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))
    return path


def test_what_was_written_is_read(package: Path) -> None:
    loaded = load_detector_package(package)
    manifest = loaded.manifest
    assert task_of(package) == "detection"
    assert [student.name for student in manifest.students] == ["student_0", "student_1"]
    assert (manifest.image_px, manifest.threshold) == (64, 0.6)
    assert manifest.ensemble.validation_ap50.dense == 0.75
    assert manifest.files == {
        name: sha256_of_file(package / name)
        for name in (
            "model_card.md",
            *(f"students/student_{n}.{kind}" for n in (0, 1) for kind in ("onnx", "safetensors")),
        )
    }
    card = (package / "model_card.md").read_text()
    assert "Research use only" in card
    assert "A box counts from a score of 0.6000 on" in card


def test_the_hash_names_the_content(package: Path, tmp_path: Path) -> None:
    before = load_detector_package(package).sha256
    path = package / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert load_detector_package(package).sha256 == before
    other = write_finders(tmp_path / "other", {"student_0": (0.8, 0.0)})
    assert load_detector_package(other).sha256 != before


@pytest.mark.parametrize(
    "name", ["students/student_1.onnx", "students/student_0.safetensors", "model_card.md"]
)
def test_one_changed_byte(package: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    assert refusal(package) == (
        f"{package}: '{name}' is not the file that was packaged (its SHA-256 differs). Get the "
        "package anew from where it was made."
    )


def test_files_that_are_missing_or_added(package: Path) -> None:
    added = package / "students" / "note.md"
    added.write_text("x")
    assert f"holds the file '{Path('students/note.md')}', which it does not list" in refusal(
        package
    )
    added.unlink()
    (package / "students" / "student_1.onnx").unlink()
    assert "lacks the file 'students/student_1.onnx'" in refusal(package)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/model.onnx", "students/code.pkl"])
def test_paths_that_a_package_cannot_hold(package: Path, name: str) -> None:
    listed = json.loads((package / "model.json").read_text())["files"]
    (package / "students" / "code.pkl").write_bytes(b"x")
    (package.parent / "model.onnx").write_bytes(b"x")
    changed(package, files={name: "0" * 64, **listed})
    assert refusal(package).startswith(
        f"{package}: lists the file '{name}', which a package cannot hold"
    )


def test_a_link_out_of_the_package(package: Path, tmp_path: Path) -> None:
    inside, outside = package / "students" / "student_0.onnx", tmp_path / "outside.onnx"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert "lacks the file 'students/student_0.onnx'" in refusal(package)


def test_a_student_without_a_hash(package: Path) -> None:
    content = json.loads((package / "model.json").read_text())
    del content["files"]["students/student_1.onnx"]
    changed(package, files=content["files"])
    (package / "students" / "student_1.onnx").unlink()
    assert "'students/student_1.onnx' of student_1 has no SHA-256" in refusal(package)


def test_a_manifest_of_another_kind(package: Path, tmp_path: Path) -> None:
    path = changed(package, threshold=1.5)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "threshold" in text)
    told = refusal(package)
    assert told.startswith(f"{path}:{line}: 'threshold' (it is 1.5): input should be less than")
    changed(package, threshold=0.5, thresold=0.4)
    assert "unknown key 'thresold'" in refusal(package)
    changed(package, schema_version=2)
    assert "has the schema version 2, and this medkd reads 1" in refusal(package)
    path.write_text("{")
    assert "is not valid JSON" in refusal(package)
    assert task_of(package) is None
    assert "is not a model package" in refusal(tmp_path / "nothing")


def test_each_task_has_packages_of_its_own(package: Path) -> None:
    from medkd.inference.package import load_package

    with pytest.raises(
        ModelPackageError,
        match="is a package for detection, and one for classification is needed here",
    ):
        load_package(package)
    changed(package, task="classification")
    assert "is a package for classification, and one for detection" in refusal(package)


def test_names_that_stand_there_twice(package: Path) -> None:
    changed(package, classes=["polyp", "polyp"])
    assert "a class stands there twice" in refusal(package)


def test_a_student_that_cannot_be_loaded(package: Path) -> None:
    loaded = load_detector_package(package)
    (package / "students" / "student_1.onnx").write_bytes(b"no model")
    with pytest.raises(ModelPackageError, match="cannot load student_1") as caught:
        DetectorStudents.of(loaded)
    assert "\n" not in str(caught.value)


def test_the_published_schema_is_up_to_date(package: Path) -> None:
    published = files("medkd.inference").joinpath("detector.schema.json").read_text("utf-8")
    assert published == json.dumps(detector_manifest_schema(), indent=2) + "\n"
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(detector_manifest_schema())
    jsonschema.validate(
        json.loads((package / "model.json").read_text()), detector_manifest_schema()
    )
