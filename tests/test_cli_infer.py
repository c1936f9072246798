"""'medkd infer': what the model is for decides which options there are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from medkd.cli_infer import infer
from medkd.errors import ConfigError
from medkd.inference.drawing import Draw
from tests.inference.conftest import make_package, medkd, package_folder  # noqa: F401  (fixtures)
from tests.inference.square_finders import image_with_square, write_finders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_finders(tmp_path / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = image_with_square((64, 64), (8, 8, 24, 24) if number else None)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def refusal(*inputs: Path, model: Path, out: Path, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        infer(list(inputs), model=model, out=out, **options)
    assert not out.exists()
    return str(caught.value)


def test_boxes_are_found_and_told(model, images, tmp_path, capsys) -> None:
    log = tmp_path / "log.jsonl"
    infer([images], model=model, out=tmp_path / "found", log=log)
    out = capsys.readouterr().out
    assert "Boxes. Research use only." in out
    assert "Boxes that score 0.600 or more: 2, in 2 of 3 images." in out
    row = next(line for line in out.splitlines() if "1.png" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "1.png", "64 x 64", "", "1", "1", "0.700",
    ]  # fmt: skip
    found = tmp_path / "found"
    assert f"Boxes: {found}/detections.json, coco.json; pictures: {found}/drawn" in out
    assert (found / "detections.json").is_file()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["event"], one["file"], one["called"]) for one in events] == [
        ("image_looked_at", f"{number}.png", int(number > 0)) for number in range(3)
    ]


def test_a_damaged_image_costs_a_line(model, images, tmp_path, medkd) -> None:  # noqa: F811
    (images / "1.png").write_bytes(b"damaged")
    done = medkd("infer", images, "--model", model, "--out", tmp_path / "found")
    assert done.returncode == 1
    assert (
        f"failed: {images / '1.png'}: cannot be decoded: it is no image. Save the image again.\n"
        in done.stderr
    )
    assert "Boxes that score 0.600 or more: 1, in 1 of 2 images." in done.stdout


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("--slides", {"table": Path("slides.csv")}),
        ("--mpp", {"mpp": 0.5}),
        ("--map", {"maps": ["tiff"]}),
        ("--resume", {"resume": True}),
    ],
)
def test_options_of_slides_are_refused(model, images, tmp_path, name, option) -> None:
    assert refusal(images, model=model, out=tmp_path / "found", **option) == (
        f"{name}: is for slides, and this model finds boxes in images. Leave it out, or name "
        "another model."
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [("--every", {"every": 2}), ("--fps", {"fps": 1.0}), ("--draw", {"draw": Draw.ALL})],
)
def test_options_of_boxes_are_refused_for_slides(
    package_folder,  # noqa: F811
    tmp_path,
    name,
    option,
) -> None:
    told = refusal(Path("a.svs"), model=package_folder, out=tmp_path / "found", **option)
    assert told == (
        f"{name}: is for a model that finds boxes, and this one calls slides. Leave it out, or "
        "name another model."
    )


def test_frames_are_of_videos(model, images, tmp_path) -> None:
    assert refusal(images, model=model, out=tmp_path / "found", every=2) == (
        "--every: is for videos, and there is none. Leave it out."
    )


def test_a_video_without_the_extra(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    told = refusal(tmp_path / "clip.mp4", model=model, out=tmp_path / "found")
    assert told.endswith("Install it: pip install 'medkd[video]'.")


def test_no_image(model, tmp_path) -> None:
    assert "there is no image to look at" in refusal(model=model, out=tmp_path / "found")
    with pytest.raises(typer.Exit) as ended:
        infer([tmp_path / "absent.png"], model=model, out=tmp_path / "found")
    assert ended.value.exit_code == 1
