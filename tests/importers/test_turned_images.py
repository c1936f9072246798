"""Images with boxes that EXIF data turn: left out, as nobody knows what their boxes mean."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from medkd.cli import app
from medkd.importers.box_table import read_boxes
from medkd.importers.images import image_sizes
from medkd.importers.problems import Problem

ORIENTATION = 0x0112


def draw(path: Path, orientation: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.new("RGB", (40, 20)).save(path, exif=exif)


def kvasir(root: Path, names: list[str]) -> list[str]:
    box = {"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 9, "ymax": 8}
    entry = {"width": 40, "height": 20, "bbox": [box]}
    content = {Path(name).stem: entry for name in names}
    (root / "kavsir_bboxes.json").write_text(json.dumps(content))
    return ["kvasir", str(root)]


def coco(root: Path, names: list[str]) -> list[str]:
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 20}
            for number, name in enumerate(names)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 8, 6]}
            for number in range(len(names))
        ],
        "categories": [{"id": 1, "name": "polyp"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return ["coco", str(root / "instances.json"), "--images", str(root / "images")]


def yolo(root: Path, names: list[str]) -> list[str]:
    (root / "labels").mkdir()
    for name in names:
        (root / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images\nnames: [polyp]\n")
    return ["yolo", str(root / "data.yaml")]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("layout", [kvasir, coco, yolo])
def test_turned_images_are_left_out(
    tmp_path: Path, layout: Callable[[Path, list[str]], list[str]], ending: str
) -> None:
    orientations = {"none": None, "upright": 1, "turned": 6}
    names = [f"{stem}.{ending}" for stem in orientations]
    for name, orientation in zip(names, orientations.values(), strict=True):
        draw(tmp_path / "images" / name, orientation)
    out = tmp_path / "out"
    arguments = ["import", *layout(tmp_path, names), "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    told = (
        f"{tmp_path / 'images'}/turned.{ending}: turned by EXIF (orientation 6): whether its boxes "
        "mean the stored or the upright image is not known. Save it as they mean it, without the "
        "tag, and import again."
    )
    assert done.exit_code == 1
    assert done.stderr.count(told) == 1
    kept = read_boxes(out / "boxes.parquet").images["image"]
    assert sorted(Path(name).stem for name in kept) == ["none", "upright"]
    with (out / "import_problems.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["reason"], row["message"]) for row in rows] == [("turned", told)]
    draw(tmp_path / "images" / f"turned.{ending}", 1)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(read_boxes(out / "boxes.parquet").images) == 3


def test_only_numbers_that_turn_an_image_count(tmp_path: Path) -> None:
    names = [f"{orientation}.jpg" for orientation in range(10)]
    for orientation, name in enumerate(names):
        draw(tmp_path / name, orientation)
    found = list(image_sizes(tmp_path, names, decode=False, turned=False))
    left_out = [number for number, one in enumerate(found) if isinstance(one, Problem)]
    assert left_out == [2, 3, 4, 5, 6, 7, 8]
    assert (found[0], found[1], found[9]) == ((40, 20),) * 3
    # Of tiles without boxes nothing is turned.
    assert list(image_sizes(tmp_path, names, decode=False)) == [(40, 20)] * 10


def test_a_tag_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw(path, None)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + body))
    content, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    path.write_bytes(content + chunk + end)
    (found,) = image_sizes(tmp_path, ["a.png"], decode=False, turned=False)
    assert isinstance(found, Problem)
    assert "turned by EXIF (orientation 3)" in found.what


@pytest.mark.parametrize("data", [b"Exif\0\0II", b"Exif\0\0nothing of the kind"])
def test_exif_data_that_cannot_be_read_are_told(tmp_path: Path, data: bytes) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=data, dpi=(72, 72))
    (found,) = image_sizes(tmp_path, ["a.jpg"], decode=False, turned=False)
    assert isinstance(found, Problem)
    assert (found.reason, found.where) == ("unreadable", str(tmp_path / "a.jpg"))
