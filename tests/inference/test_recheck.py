"""Whether a result is of this slide and model, and comes out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from medkd.cli_recheck import recheck as by_command
from medkd.errors import SlideError, StageError
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.recheck import Check, Verdict, recheck, reproduces, result_folder
from medkd.inference.slide_files import SlideFile


@pytest.fixture(scope="module")
def package(package_folder) -> ModelPackage:
    return load_package(package_folder)


@pytest.fixture(scope="module")
def finished(package, flat_slide, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    infer_slides([flat_slide], package, out)
    return out / "flat"


@pytest.fixture
def changed(finished, tmp_path) -> Callable[..., Path]:
    """A copy of the result with keys that are others: ``changed(score=0.5)``."""

    def change(**keys: Any) -> Path:
        folder = shutil.copytree(finished, tmp_path / "result")
        result = json.loads((folder / "result.json").read_text("utf-8"))
        (folder / "result.json").write_text(json.dumps({**result, **keys}))
        return folder

    return change


def checked(folder: Path, package: ModelPackage, slide: Path | None, tolerance: float = 1e-4):
    return recheck(folder, package, slide, tolerance=tolerance)


def told(checks: tuple[Check, ...], verdict: Verdict) -> list[str]:
    return [check.what for check in checks if check.verdict is verdict]


def test_a_result_that_is_as_it_was_given(finished, package, flat_slide):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    checks = checked(finished, package, flat_slide)
    assert {check.verdict for check in checks} == {Verdict.AGREES}
    assert reproduces(checks)
    by_name = {check.what: check for check in checks}
    assert by_name["call"].now == "MSI suspected"
    # By hand in test_engine.py.
    assert float(by_name["probability"].now) == pytest.approx(0.66, abs=0.008)
    assert float(by_name["score of student1"].now) == pytest.approx(0.68, abs=0.008)
    assert (by_name["tiles on the grid"].now, by_name["tiles used"].now) == ("80", "20")
    assert by_name["mpp, um/px"].now == "1"
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_the_file_may_have_another_name_and_place(finished, package, flat_slide, tmp_path):
    moved = shutil.copy(flat_slide, tmp_path / "other.svs")
    assert reproduces(checked(finished, package, moved))


def test_another_slide(finished, package, flat_image, write_flat, tmp_path):
    """It is not called: what comes of another slide says nothing."""
    image = flat_image.copy()
    image[130, 200] += 1
    checks = checked(finished, package, write_flat(tmp_path / "flat.svs", image))
    assert told(checks, Verdict.DIFFERS) == ["slide"]
    assert told(checks, Verdict.NOT_CHECKED) == ["called again"]
    assert not reproduces(checks)


def test_another_model(finished, make_package, flat_slide, tmp_path):
    other = load_package(make_package(tmp_path / "model", threshold=0.9, name="other"))
    checks = checked(finished, other, flat_slide)
    assert told(checks, Verdict.DIFFERS) == ["model", "model's name", "operating point"]
    assert told(checks, Verdict.NOT_CHECKED) == ["called again"]


def test_without_the_slide_only_the_model_is_compared(finished, package):
    checks = checked(finished, package, None)
    assert told(checks, Verdict.NOT_CHECKED) == ["slide", "called again"]
    assert reproduces(checks)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"call": "MSS"}, "call"),
        ({"score": 0.6}, "score"),
        ({"probability_msi": 0.6}, "probability"),
        ({"probability_msi": None}, "probability"),
        ({"interval": [0.1, 0.9]}, "interval, lower"),
        ({"students": {"student1": 0.68, "student3": 0.64}}, "score of student2"),
        (
            {"tiles": {"candidate": 80, "used": 21, "unreadable": 0, "rejected": {}}},
            "tiles used",
        ),
    ],
)
def test_a_figure_that_was_changed(changed, package, flat_slide, keys, what):
    checks = checked(changed(**keys), package, flat_slide)
    assert what in told(checks, Verdict.DIFFERS)
    assert not reproduces(checks)


def test_an_operating_point_that_was_changed(changed, finished, package, flat_slide):
    point = json.loads((finished / "result.json").read_text("utf-8"))["operating_point"]
    checks = checked(changed(operating_point={**point, "sensitivity": 0.5}), package, flat_slide)
    assert told(checks, Verdict.DIFFERS) == ["operating point"]


def test_the_tolerance_is_what_was_asked_for(changed, finished, package, flat_slide):
    score = json.loads((finished / "result.json").read_text("utf-8"))["score"]
    folder = changed(score=score + 5e-4)
    assert told(checked(folder, package, flat_slide), Verdict.DIFFERS) == ["score"]
    assert reproduces(checked(folder, package, flat_slide, tolerance=6e-4))


def test_other_versions_are_told_and_do_not_count(changed, finished, package, flat_slide):
    reading = json.loads((finished / "result.json").read_text("utf-8"))["reading"]
    folder = changed(
        software={"medkd": "0.0.1", "onnxruntime": "1.0"},
        reading={**reading, "reader": "openslide 3.4.1"},
    )
    checks = checked(folder, package, flat_slide)
    assert told(checks, Verdict.OTHER_VERSION) == ["reader", "medkd", "onnxruntime"]
    assert reproduces(checks)


@pytest.mark.parametrize("source", ["--mpp", "slides.csv"])
def test_a_resolution_that_was_given_by_hand_is_used_again(package, flat_slide, tmp_path, source):
    by_table = SlideFile("flat", flat_slide, mpp=0.9)
    slide, mpp = (by_table, None) if source == "slides.csv" else (flat_slide, 0.9)
    infer_slides([slide], package, tmp_path, mpp=mpp)
    checks = checked(tmp_path / "flat", package, flat_slide)
    assert {check.verdict for check in checks} == {Verdict.AGREES}
    assert {check.what: check.now for check in checks}["mpp is from"] == source


def test_a_slide_without_a_result_reproduces_too(package, flat_image, write_flat, tmp_path):
    blank = write_flat(tmp_path / "blank.svs", flat_image[:128])
    infer_slides([blank], package, tmp_path)
    checks = checked(tmp_path / "blank", package, blank)
    assert {check.what: check.now for check in checks}["call"] == "no result"
    assert reproduces(checks)


def test_a_result_of_an_earlier_medkd_does_not_say_its_slide(changed, package, flat_slide):
    checks = checked(changed(slide_fingerprint=None), package, flat_slide)
    assert told(checks, Verdict.NOT_CHECKED) == ["slide"]
    assert reproduces(checks)


def test_what_cannot_be_read(finished, package, tmp_path):
    with pytest.raises(StageError) as caught:
        checked(tmp_path, package, None)
    assert str(caught.value) == (
        f"{tmp_path / 'result.json'}: no such file. Name the folder of one slide that 'medkd "
        "infer' or 'medkd watch' wrote."
    )
    (tmp_path / "result.json").write_text('{"call": "MSS"}')
    with pytest.raises(StageError, match=r"Call the slide again with 'medkd infer'\.$"):
        checked(tmp_path, package, None)
    with pytest.raises(SlideError) as told_:
        checked(finished, package, tmp_path / "gone.svs")
    assert str(told_.value) == (
        f"{tmp_path / 'gone.svs'}: cannot be read: No such file or directory. Name the file that "
        "was called with --slide."
    )


def test_the_report_names_its_folder_too(finished):
    assert result_folder(finished / "report.html") == finished
    assert result_folder(finished) == finished


def test_by_the_command_line(medkd, finished, package_folder, flat_slide):
    done = medkd(
        "recheck", finished / "report.html", "--slide", flat_slide, "--model", package_folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith(
        "The result is of this slide and model, and reproduces within 0.0001."
    )
    assert "MSI suspected" in done.stdout


def test_what_differs_is_named_and_the_exit_status_is_1(
    changed, package_folder, flat_slide, capsys
):
    with pytest.raises(typer.Exit) as caught:
        by_command(changed(call="MSS", score=0.1), model=package_folder, slide=flat_slide)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out.rstrip().endswith("Differs: call, score.")
