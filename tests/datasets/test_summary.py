"""The summary of a dataset: figures counted by hand, gaps, and a page that loads nothing."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config, load_config
from medkd.datasets.summary import NOT_SAID, DatasetSummary, Gap, Group, summarise
from medkd.datasets.summary_page import write_summary_page
from medkd.datasets.tables import SlideRow, read_slides
from medkd.errors import StageError
from tests.conftest import Cohort

TABLE = """\
slide_id,path,patient_id,label,site,scanner,mpp
s1,s1.svs,p1,MSS,A,x,0.25
s2,s2.svs,p1,MSS,A,x,0.25
s3,s3.svs,p2,MSI,A,,
s4,s4.svs,p3,MSI,,,0.5
"""


def hand_made(folder: Path) -> tuple[Config, tuple[SlideRow, ...]]:
    (folder / "slides.csv").write_text(TABLE)
    (folder / "s1.svs").write_text("")
    (folder / "medkd.yaml").write_text("output: out\n")
    config = load_config(folder / "medkd.yaml")
    return config, read_slides(config.data.slides, config.data.classes)


def test_a_table_alone_is_counted(tmp_path: Path) -> None:
    summary = summarise(*hand_made(tmp_path))
    assert summary.total == Group("all", 3, 4, None, (1, 2))
    assert summary.groups == {
        "class": (Group("MSS", 1, 2, None, (1, 0)), Group("MSI", 2, 2, None, (0, 2))),
        "site": (Group("A", 2, 3, None, (1, 1)), Group(NOT_SAID, 1, 1, None, (0, 1))),
        "scanner": (Group("x", 1, 2, None, (1, 0)), Group(NOT_SAID, 2, 2, None, (0, 2))),
        "slide resolution": (
            Group("0.25 um/px, from slides.csv", 1, 2, None, (1, 0)),
            Group("0.5 um/px, from slides.csv", 1, 1, None, (0, 1)),
            Group(NOT_SAID, 1, 1, None, (0, 1)),
        ),
    }
    assert summary.gaps == (
        Gap("slides whose file is not there", 3, ("s2", "s3", "s4")),
        Gap("slides without a site", 1, ("s4",)),
        Gap("slides without a scanner", 2, ("s3", "s4")),
    )
    assert summary.to_do == (
        "There are no tiles yet: run 'medkd tile'.",
        "The patients have no roles yet: run 'medkd split'.",
    )
    assert (summary.tiling, summary.synthetic, summary.sheet) == ("", 0, ())


def test_a_class_without_slides_is_missing(tmp_path: Path) -> None:
    config, rows = hand_made(tmp_path)
    gaps = summarise(config, rows[:2]).gaps
    assert Gap("classes without a slide", 1, ("MSI",)) in gaps


def test_a_tiled_and_split_cohort_is_counted(cohort: Cohort) -> None:
    summary = summarise(cohort.config, cohort.rows, tiles_of_class=3)
    index = pd.read_parquet(cohort.folder / "tiles" / "index.parquet")
    split = pd.read_parquet(cohort.folder / "splits.parquet")
    table = pd.read_csv(cohort.folder / "slides" / "slides.csv")
    assert summary.total.patients == 16
    assert summary.total.slides == len(table) == summary.synthetic
    assert summary.total.tiles == len(index)
    assert [group.name for group in summary.groups["role"]] == ["train", "validation", "test"]
    for group in summary.groups["role"]:
        of_role = split[split["role"] == group.name]
        assert group.patients == len(of_role) == sum(group.patients_of_class)
        assert group.patients_of_class[1] == (of_role["label"] == "MSI").sum()
        slides = table[table["patient_id"].isin(of_role["patient_id"])]
        assert group.slides == len(slides)
        assert group.tiles == index["slide_id"].isin(slides["slide_id"]).sum()
    assert [group.name for group in summary.groups["slide resolution"]] == [
        "0.5 um/px, from metadata"
    ]
    assert summary.tiling == "64 px at 1 um/px (64 um)"
    assert summary.to_do == summary.gaps == ()
    # The sheet: three tiles of each class, of training patients, from slides in turn.
    assert [tile.label for tile in summary.sheet] == ["MSS"] * 3 + ["MSI"] * 3
    train = set(split.loc[split["role"] == "train", "patient_id"])
    patient = dict(zip(table["slide_id"], table["patient_id"], strict=True))
    assert {patient[tile.name] for tile in summary.sheet} <= train
    assert Image.open(io.BytesIO(summary.sheet[0].jpeg)).size == (64, 64)


def test_what_is_missing_is_named(cohort: Cohort) -> None:
    split = pd.read_parquet(cohort.config.splits_file)
    gone = split["patient_id"].iloc[0]
    split[split["patient_id"] != gone].to_parquet(cohort.config.splits_file)
    index_path = cohort.folder / "tiles" / "index.parquet"
    index = pd.read_parquet(index_path)
    empty, stranger = cohort.rows[1].slide_id, cohort.rows[2].slide_id
    index[index["slide_id"] != empty].to_parquet(index_path)
    report = cohort.folder / "tiles" / "report.csv"
    rows = pd.read_csv(report, dtype=str, keep_default_na=False)
    rows.loc[rows["slide_id"] == empty, ["status", "reason"]] = ["failed", "missing_mpp"]
    rows.to_csv(report, index=False)
    kept = [row for row in cohort.rows if row.slide_id != stranger]
    gaps = summarise(cohort.config, kept).gaps
    assert Gap("slides without tiles", 1, (f"{empty}: missing mpp",)) in gaps
    assert Gap("tiled slides that are not in slides.csv", 1, (stranger,)) in gaps
    assert Gap("patients without a role", 1, (gone,)) in gaps


def test_a_gap_names_the_first_five() -> None:
    names = ("a", "b", "c", "d", "e")
    assert str(Gap("slides without a site", 1200, names)) == (
        "slides without a site: 1,200 (a, b, c, d, e, ...)"
    )
    assert str(Gap("slides without a site", 5, names)).endswith("5 (a, b, c, d, e)")


def page(folder: Path, summary: DatasetSummary, digest: str = "") -> str:
    write_summary_page(folder / "s.html", summary, table=folder / "slides.csv", digest=digest)
    return (folder / "s.html").read_text()


def test_the_page_loads_nothing_and_shows_its_tiles(cohort: Cohort) -> None:
    summary = summarise(cohort.config, cohort.rows, tiles_of_class=2)
    html = page(cohort.folder, summary, "abc123")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 4
    for source, tile in zip(sources, summary.sheet, strict=True):
        kind, _, content = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(content) == tile.jpeg
    assert "url(" not in html
    assert "<script" not in html
    assert "abc123" in html
    assert f"<b>{summary.total.tiles:,}</b><span>tiles</span>" in html
    assert "Synthetic slides." in html
    assert "Tiles of training patients" in re.sub(r"\s+", " ", html)


def test_the_page_of_a_table_alone_says_what_is_to_do_and_escapes(tmp_path: Path) -> None:
    config, rows = hand_made(tmp_path)
    evil = [SlideRow(**{**vars(row), "site": "<script>alert(1)</script>"}) for row in rows]
    html = page(tmp_path, summarise(config, evil))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "There are no tiles yet: run &#39;medkd tile&#39;." in html
    assert "slides without a scanner: 2 (s3, s4)" in html
    assert "Digest" not in html


def test_the_command_tells_a_table_alone(tmp_path: Path) -> None:
    hand_made(tmp_path)
    done = CliRunner().invoke(app, ["summary", "--config", str(tmp_path / "medkd.yaml")])
    assert done.exit_code == 0
    assert "There are no tiles yet: run 'medkd tile'." in done.output
    assert "missing: slides without a site: 1 (s4)" in done.output
    assert f"Page: {tmp_path / 'out' / 'summary.html'}" in done.output
    assert (tmp_path / "out" / "summary.html").exists()


def test_tiles_that_cannot_be_read_are_told(cohort: Cohort) -> None:
    (cohort.config.tiles_folder / "index.parquet").write_text("no table")
    with pytest.raises(
        StageError, match=r"index\.parquet: cannot be read: .*Run 'medkd tile' first"
    ):
        summarise(cohort.config, cohort.rows)


def test_the_digest_is_that_of_the_training(cohort: Cohort) -> None:
    from medkd.training.data import load_tile_table

    done = CliRunner().invoke(app, ["summary", "--config", str(cohort.folder / "medkd.yaml")])
    assert done.exit_code == 0
    digest = load_tile_table(cohort.config, cohort.rows).digest
    assert f"Digest of tiles, labels and roles: {digest}" in done.output
    assert digest in (cohort.folder / "summary.html").read_text()
    assert "MLflow" not in done.output
    assert not (cohort.folder / "mlflow.db").exists()


def test_a_cohort_that_cannot_be_trained_on_has_no_digest(cohort: Cohort) -> None:
    other = CliRunner().invoke(
        app, ["summary", "--config", str(cohort.folder / "medkd.yaml"), "-s", "tile.min_tissue=0.6"]
    )
    assert other.exit_code == 0
    assert "No training could begin with this: " in other.output
    assert "was tiled with other parameters" in other.output
    assert "Digest" not in other.output
