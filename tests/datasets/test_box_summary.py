"""The summary of images with boxes: figures worked out by hand, gaps, warnings, and the page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageColor
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config, load_config
from medkd.datasets.box_drawing import BOX_COLOURS
from medkd.datasets.box_summary import (
    NO_BOX,
    NO_ROLE,
    BoxedSummary,
    RoleCount,
    range_words,
    summarise_boxes,
    summary_tables,
)
from medkd.datasets.summary import Gap
from medkd.datasets.summary_page import write_box_summary_page
from medkd.errors import StageError
from medkd.importers.box_table import SCHEMA

ROWS = (
    # name, width, height, boxes, labels, patient
    ("a.png", 100, 50, [[10, 5, 40, 30], [0, 0, 100, 50]], ["polyp", "adenoma"], "p1"),
    ("b.png", 40, 80, [], [], "p1"),
    ("c.png", 100, 50, [[1.5, 2, 3, 4]], ["polyp"], "p2"),
    ("d.png", 200, 200, [[0, 0, 200, 200]], ["polyp"], None),
)
ROLES = {"p1": "train", "p2": "validation", "d.png": "test"}
EXPERIMENT = """\
task: detection
output: out
detection: {boxes: boxes.parquet, classes: [adenoma, polyp], image_px: 64, strides: [8, 16, 32]}
train: {augment: {where: loader}}
"""


def hand_made(folder: Path, *assignments: str, roles: dict[str, str] | None = None) -> Config:
    """Four images, of which the last is not there, and 4 boxes."""
    columns = ("image", "width_px", "height_px", "boxes", "labels", "patient_id")
    rows = [dict.fromkeys(SCHEMA.names) | dict(zip(columns, row, strict=True)) for row in ROWS]
    about = json.dumps({"root": folder.as_posix(), "classes": ["adenoma", "polyp"]})
    table = pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata({b"medkd": about.encode()})
    pq.write_table(table, folder / "boxes.parquet")
    for name, width, height, *_ in ROWS[:3]:
        Image.new("RGB", (width, height), (128, 128, 128)).save(folder / name)
    (folder / "medkd.yaml").write_text(EXPERIMENT)
    config = load_config(folder / "medkd.yaml", assignments)
    if roles is not None:
        config.splits_file.parent.mkdir()
        split = pd.DataFrame({"patient_id": list(roles), "role": list(roles.values())})
        split.assign(label="", fold=0).to_parquet(config.splits_file)
    return config


def test_a_table_alone_is_counted(tmp_path: Path) -> None:
    summary = summarise_boxes(hand_made(tmp_path))
    assert summary.total == RoleCount("all", 4, 1, (1, 3), 2, 2, None)
    assert summary.roles == (RoleCount(NO_ROLE, 4, 1, (1, 3), 2, 2, None),)
    assert (summary.widths_px, summary.heights_px) == ((40, 200), (50, 200))
    assert summary.to_do == ("The images have no roles yet: run 'medkd split'.",)
    assert summary.gaps == (
        Gap("images whose file is not there", 1, ("d.png",)),
        Gap("images without a patient", 1, ("d.png",)),
    )
    # All that are there, by class: a shows both, b nothing.
    shown = [(one.label, one.name) for one in summary.sheet]
    assert [shown[0], *sorted(shown[1:3]), *shown[3:]] == [
        ("adenoma", "a.png"), ("polyp", "a.png"), ("polyp", "c.png"), (NO_BOX, "b.png"),
    ]  # fmt: skip


def test_sizes_are_of_the_square_that_training_sees(tmp_path: Path) -> None:
    adenoma, polyp, every = summarise_boxes(hand_made(tmp_path)).sizes
    # a and c: 64 / 100. Of a: 30 x 25 to 19.2 x 16, all of it to 64 x 32. Of c: 1.5 x 2 to
    # 0.96 x 1.28. d: all of it, 64 x 64.
    assert (adenoma.boxes, adenoma.longer_px, adenoma.narrow) == (1, (64,) * 7, 0)
    assert (polyp.boxes, polyp.narrow) == (3, 1)
    # Linear between 1.28, 19.2 and 64 at 0, 0.5 and 1.
    assert polyp.longer_px == pytest.approx((1.28, 3.072, 10.24, 19.2, 41.6, 59.52, 64), rel=1e-6)
    assert (every.name, every.boxes, every.narrow, every.far_larger) == ("all", 4, 1, 0)


def test_without_their_aspect_each_axis_is_scaled_by_itself(tmp_path: Path) -> None:
    summary = summarise_boxes(hand_made(tmp_path, "detection.keep_aspect=false"))
    # a: 30 x 25 to 19.2 x 32. c: 1.5 x 2 to 0.96 x 2.56.
    assert summary.sizes[1].longer_px[::3] == pytest.approx((2.56, 32, 64), rel=1e-6)
    assert summary.square == "resized to a square of 64 px, each axis by itself"


def test_roles_are_those_of_patients_and_of_images_where_nobody_knows_them(tmp_path: Path) -> None:
    summary = summarise_boxes(hand_made(tmp_path, roles=ROLES))
    assert summary.roles == (
        RoleCount("train", 2, 1, (1, 1), 2, 1, None),
        RoleCount("validation", 1, 0, (0, 1), 1, 1, None),
        RoleCount("test", 1, 0, (0, 1), 1, 0, None),
    )
    assert summary.to_do == ()
    # Of the training role alone.
    assert {one.name for one in summary.sheet} == {"a.png", "b.png"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    roles = {"p1": "test", "p2": "train"}
    config = hand_made(tmp_path, "detection.classes=[adenoma, polyp, cancer]", roles=roles)
    summary = summarise_boxes(config)
    assert summary.gaps[:2] == (
        Gap("classes without a box", 1, ("cancer",)),
        Gap("classes without a training box", 1, ("adenoma",)),
    )
    assert Gap("images without a role", 1, ("d.png",)) in summary.gaps
    assert [row.name for row in summary.roles] == ["train", "test", NO_ROLE]
    assert summary.sizes[2].longer_px == ()
    assert summary_tables(summary)[1].rows[2] == ("cancer", "0", *("",) * 7, "0")


def test_boxes_that_anchors_do_not_suit_are_told(tmp_path: Path) -> None:
    (narrow,) = summarise_boxes(hand_made(tmp_path)).warnings
    assert narrow == (
        "Narrower than 8 px, the finest of detection.strides: 1 of 4 boxes. Where no anchor's "
        "centre lies in such a box, it is background in training. A finer stride or a larger "
        "detection.image_px helps."
    )
    # The largest anchor: 4 px x 2 = 8 px square, 8 x sqrt(2) = 11.3 px long at 1:2; those of 64 px
    # are more than four times as long.
    settings = ("detection.strides=[4]", "detection.anchor_sizes=[2]")
    config = load_config(tmp_path / "medkd.yaml", (*settings, "detection.anchor_ratios=[1.0, 0.5]"))
    assert summarise_boxes(config).warnings[1] == (
        "More than 4 times as long as the largest anchor of 11 px: 2 of 4 boxes. A coarser stride "
        "or larger detection.anchor_sizes help."
    )
    larger = load_config(tmp_path / "medkd.yaml", (*settings, "detection.anchor_ratios=[4.0]"))
    # 8 px x 2 = 16 px: 64 px are no more than four times that.
    assert len(summarise_boxes(larger).warnings) == 1


def test_tables_in_words(tmp_path: Path) -> None:
    by_role, sizes = summary_tables(summarise_boxes(hand_made(tmp_path, roles=ROLES)))
    assert by_role.header == (
        "role", "images", "without boxes", "adenoma boxes", "polyp boxes", "most in an image",
        "patients", "sequences",
    )  # fmt: skip
    assert by_role.rows[0] == ("train", "2", "1", "1", "1", "2", "1", "not known")
    assert by_role.rows[-1] == ("all", "4", "1", "1", "3", "2", "2", "not known")
    assert sizes.title == "Boxes: longer side, px of the square of 64 px"
    assert sizes.header[2:] == (
        "least", "5%", "25%", "median", "75%", "95%", "largest", "narrower than 8 px",
    )  # fmt: skip
    assert sizes.rows[1] == ("polyp", "3", "1.3", "3.1", "10", "19", "42", "60", "64", "1")
    assert [row[0] for row in sizes.rows] == ["adenoma", "polyp", "all"]
    assert (range_words((332, 1920)), range_words((256, 256))) == ("332 to 1,920", "256")


def test_one_class_is_not_told_twice(tmp_path: Path) -> None:
    config = hand_made(tmp_path)
    table = pq.read_table(config.detection.boxes)
    at = table.column_names.index("labels")
    labels = pa.array([["polyp"] * len(row[4]) for row in ROWS], SCHEMA.field("labels").type)
    pq.write_table(table.set_column(at, SCHEMA.field("labels"), labels), config.detection.boxes)
    one = load_config(tmp_path / "medkd.yaml", ("detection.classes=[polyp]",))
    assert [(of.name, of.boxes) for of in summarise_boxes(one).sizes] == [("polyp", 4)]


def page(folder: Path, summary: BoxedSummary, digest: str = "") -> str:
    write_box_summary_page(folder / "s.html", summary, table=folder / "b.parquet", digest=digest)
    return re.sub(r"\s+", " ", (folder / "s.html").read_text())


def test_the_page_loads_nothing_and_shows_boxes_in_the_colours_of_their_classes(
    tmp_path: Path,
) -> None:
    summary = summarise_boxes(hand_made(tmp_path, roles=ROLES))
    html = page(tmp_path, summary, "abc123")
    assert "url(" not in html
    assert "<script" not in html
    assert "Digest of images, boxes and roles: <code>abc123</code>" in html
    assert "Images of the training role, boxes drawn" in html
    for number, name in enumerate(summary.classes):
        assert (
            f'<span class="box" style="border-color: {BOX_COLOURS[number]}"></span>{name}' in html
        )
    assert f"<h3>{NO_BOX}</h3>" in html
    assert "<li><b>40 to 200</b><span>px wide</span></li>" in html
    assert "Narrower than 8 px, the finest of detection.strides: 1 of 4 boxes." in html
    assert "images whose file is not there: 1 (d.png)" in html
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 3
    # a: the polyp's left edge at 224 / 100 x 10 = 22 px, halfway down at 224 / 100 x 17.5 = 39 px;
    # what is not filled is black.
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[1].partition(",")[2]))))
    assert shown.shape == (224, 224, 3)
    wanted = np.array(ImageColor.getrgb(BOX_COLOURS[1]))
    assert np.abs(shown[39, 22].astype(int) - wanted).max() < 60
    assert shown[130:].max() < 20


def test_the_page_escapes_and_says_what_is_to_do(tmp_path: Path) -> None:
    config = hand_made(tmp_path, "detection.classes=[adenoma, polyp, <script>]")
    html = page(tmp_path, summarise_boxes(config))
    assert "<script" not in html
    assert "&lt;script&gt; boxes" in html
    assert "The images have no roles yet: run &#39;medkd split&#39;." in html
    assert "Digest" not in html


def summary_command(folder: Path, *options: str):
    return CliRunner().invoke(app, ["summary", "--config", str(folder / "medkd.yaml"), *options])


def test_the_command_tells_a_table_alone(tmp_path: Path) -> None:
    hand_made(tmp_path)
    done = summary_command(tmp_path)
    assert done.exit_code == 0
    for words in (
        "no role yet",
        "not known",
        "Images are 40 to 200 px wide and 50 to 200 px high, resized to a square of 64 px, the "
        "longer side filling it.",
        "Narrower than 8 px, the finest of detection.strides: 1 of 4 boxes.",
        "The images have no roles yet: run 'medkd split'.",
        "missing: images whose file is not there: 1 (d.png)",
        f"Page: {tmp_path / 'out' / 'summary.html'}",
    ):
        assert words in done.output
    assert "Digest" not in done.output
    assert (tmp_path / "out" / "summary.html").exists()


def test_boxes_that_no_training_could_begin_with_have_no_digest(tmp_path: Path) -> None:
    hand_made(tmp_path, roles={"p1": "train", "p2": "test", "d.png": "test"})
    done = summary_command(tmp_path)
    assert done.exit_code == 0
    assert "No training could begin with this: " in done.output
    assert "fold 0 has no validation patient" in done.output
    assert "Digest" not in done.output


def test_without_a_table_of_boxes_the_line_is_that_of_the_training(tmp_path: Path) -> None:
    config = hand_made(tmp_path)
    config.detection.boxes.unlink()
    done = summary_command(tmp_path)
    assert isinstance(done.exception, StageError)
    assert str(done.exception) == (
        f"{config.detection.boxes}: no boxes are there yet. Import the data set first: medkd "
        "import kvasir, coco or yolo."
    )
    assert not config.output.exists()
