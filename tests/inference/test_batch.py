"""Many slides: folders, tables, going on where a batch ended."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from medkd.cli_infer import infer
from medkd.errors import SlideError
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import load_package
from medkd.inference.slide_files import SlideFile


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_a_folder_and_a_table_by_the_command_line(
    medkd, package_folder, flat_slide, flat_image, write_flat, tmp_path
):
    """What is no slide and what cannot be used are told; the log says the same for a machine."""
    incoming = tmp_path / "incoming"
    (incoming / "deep").mkdir(parents=True)
    shutil.copy(flat_slide, incoming / "deep" / "a.svs")
    (incoming / "b.svs").write_text("not a slide")
    (incoming / "notes.txt").write_text("x")
    write_flat(tmp_path / "untold.svs", flat_image, mpp=None)
    (tmp_path / "slides.csv").write_text("slide_id,path,mpp\nS-9,untold.svs,1.0\n")
    arguments = (
        "infer", incoming, "--slides", tmp_path / "slides.csv", "--model", package_folder,
        "--out", tmp_path / "out", "--log-json", tmp_path / "log.jsonl",
    )  # fmt: skip
    done = medkd(*arguments)
    assert done.returncode == 1
    warned, *_, failed = done.stderr.splitlines()
    assert warned == (
        "warning: 1 file that is no slide by name or content, left aside: "
        f"{incoming / 'notes.txt'}."
    )
    assert failed.startswith(f"failed: {incoming / 'b.svs'}: is not a slide in a format")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["S-9", "a"]
    result = result_of(tmp_path / "out" / "S-9")
    assert result["mpp"] == {"value": 1.0, "source": "slides.csv"}
    assert result["slide_id"] == "S-9"
    # By hand in test_engine.py.
    assert result["probability_msi"] == pytest.approx(0.66, abs=0.008)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["slide_id"]) for line in log] == [
        ("slide_failed", "b"),
        ("slide_called", "a"),
        ("slide_called", "S-9"),
    ]
    assert log[1]["call"] == "MSI suspected"
    assert log[0]["reason"] == failed.removeprefix("failed: ")


def test_nothing_to_call_is_one_line(package_folder, tmp_path):
    with pytest.raises(SlideError) as caught:
        infer(model=package_folder, out=tmp_path / "out")
    assert caught.value.exit_status == 2
    assert str(caught.value) == (
        "no slide was named. Name slides or folders of slides, or give a table with --slides."
    )
    assert not (tmp_path / "out").exists()


def test_the_command_lines_mpp_is_over_the_tables(package, flat_slide, tmp_path):
    slide = SlideFile("a", flat_slide, mpp=0.9)
    infer_slides([slide], package, tmp_path, mpp=1.0)
    assert result_of(tmp_path / "a")["mpp"] == {"value": 1.0, "source": "--mpp"}
    infer_slides([slide], package, tmp_path)
    assert result_of(tmp_path / "a")["mpp"] == {"value": 0.9, "source": "slides.csv"}


def test_a_batch_goes_on_where_it_ended(package, make_package, flat_slide, tmp_path):
    """A slide is called again where its file, the model or its resolution is another."""
    slide = SlideFile("a", tmp_path / "a.svs")
    shutil.copy(flat_slide, slide.path)
    out = tmp_path / "out"

    def called(slide=slide, package=package, **options) -> bool:
        summary = infer_slides([slide], package, out, resume=True, **options)
        assert summary.failed == ()
        assert summary.there == 1 - len(summary.rows)
        return len(summary.rows) == 1

    assert called()
    assert not called()
    os.utime(slide.path, (1, 1))  # the file is what it was
    assert not called()
    assert called(mpp=0.9)
    assert not called(mpp=0.9)
    assert not called(SlideFile("a", slide.path, mpp=0.9))
    other = load_package(make_package(tmp_path / "model", threshold=0.9))
    assert called(package=other, mpp=0.9)
    with slide.path.open("ab") as file:
        file.write(b"more")
    assert called(package=other, mpp=0.9)
    (out / "a" / "result.json").write_text("{}")
    assert called(package=other, mpp=0.9)


def test_a_slide_that_takes_too_much_memory_costs_a_line(
    package, flat_slide, tmp_path, monkeypatch
):
    def greedy(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("medkd.inference.infer_stage.infer_slide", greedy)
    summary = infer_slides([flat_slide], package, tmp_path)
    assert summary.failed == (
        f"{flat_slide}: takes more memory than this process may have. Check the size that the "
        "slide says it has; if it is true, use a machine with more memory.",
    )
