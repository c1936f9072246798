"""A slide table and a clinical table become a slides.csv that the stages read."""

from __future__ import annotations

import re
from pathlib import Path

import openpyxl
import pytest

from medkd.datasets.tables import SlideRow, read_slides
from medkd.errors import ConfigError, TableError
from medkd.importers.names import compile_pattern
from medkd.importers.problems import LayoutError
from medkd.importers.slide_tables import SlideTableOptions, SlideTableSummary, import_slide_table

CLASSES = ("MSS", "MSI")
WORDS = {"MSIH": "MSI", "nonMSIH": "MSS"}


@pytest.fixture
def stamp(tmp_path: Path) -> Path:
    """Tables as STAMP has them: a workbook of patients, a CSV of slides with a mark."""
    book = openpyxl.Workbook()
    for row in (["PATIENT", "isMSIH"], ["p1", "MSIH"], ["p2", "nonMSIH"], ["p3", None]):
        book.active.append(row)
    book.save(tmp_path / "clini.xlsx")
    (tmp_path / "slides.csv").write_bytes(
        b"\xef\xbb\xbfFILENAME,PATIENT\r\na1.DX1,p1\r\na2.DX2,p1\r\nb.TS1,p2\r\nc,p3\r\nd,p4\r\n"
    )
    return tmp_path


def run(folder: Path, **options: object) -> SlideTableSummary:
    return import_slide_table(
        folder / "slides.csv",
        folder / "clini.xlsx",
        folder / "out" / "slides.csv",
        SlideTableOptions(label_column="isMSIH", label_of=WORDS, **options),  # type: ignore[arg-type]
    )


def test_the_tables_of_stamp(stamp: Path) -> None:
    summary = run(stamp)
    assert summary.slides == {"MSI": 2, "MSS": 1}
    assert summary.patients == {"MSI": 1, "MSS": 1}
    assert (summary.unlabelled, summary.excluded, summary.problems) == (2, 0, ())
    out = stamp / "out"
    assert read_slides(out / "slides.csv", CLASSES) == (
        SlideRow("a1.DX1", out / "a1.DX1", "p1", "MSI"),
        SlideRow("a2.DX2", out / "a2.DX2", "p1", "MSI"),
        SlideRow("b.TS1", out / "b.TS1", "p2", "MSS"),
    )


def test_files_are_found_below_a_folder_with_what_tcga_adds_to_their_names(stamp: Path) -> None:
    raw = stamp / "raw" / "deep"
    raw.mkdir(parents=True)
    for name in ("a1.DX1.9f2c-uuid.svs", "a2.DX2.svs", "a2.DX2.txt", "other.svs"):
        (raw / name).touch()
    summary = run(stamp, slides_folder=stamp / "raw")
    assert [str(problem) for problem in summary.problems] == [
        "slide b.TS1: no such file in the folder. Fetch it, or drop its row."
    ]
    rows = read_slides(stamp / "out" / "slides.csv", CLASSES)
    assert [(row.slide_id, row.path.resolve().name) for row in rows] == [
        ("a1.DX1", "a1.DX1.9f2c-uuid.svs"),
        ("a2.DX2", "a2.DX2.svs"),
    ]
    assert all(row.path.exists() for row in rows)


def test_a_name_with_two_files_is_left_out(stamp: Path) -> None:
    for name in ("a1.DX1.x.svs", "a1.DX1.y.svs", "a2.DX2.svs", "b.TS1.svs"):
        (stamp / name).touch()
    (problem,) = run(stamp, slides_folder=stamp).problems
    assert str(problem).startswith("slide a1.DX1: may be ")


def test_only_some_slides(stamp: Path) -> None:
    summary = run(stamp, only=re.compile(r"DX\d"))
    assert (summary.slides, summary.excluded) == ({"MSI": 2}, 3)


def test_a_patient_with_two_labels_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "clini.csv").write_text("PATIENT,label\np1,MSI\np2,MSS\np1,MSS\n")
    (tmp_path / "slides.csv").write_text("slide,patient\ns1,p1\ns2,p2\n")
    summary = import_slide_table(
        tmp_path / "slides.csv", tmp_path / "clini.csv", tmp_path / "o.csv", SlideTableOptions()
    )
    assert [str(problem) for problem in summary.problems] == [
        f"{tmp_path / 'clini.csv'}:4: patient p1 is MSS here and MSI above. "
        "Keep the row that is right; the patient is left out."
    ]
    assert (summary.slides, summary.unlabelled) == ({"MSS": 1}, 0)


def test_sites_come_from_a_column_or_from_the_barcode(tmp_path: Path) -> None:
    table = tmp_path / "one.csv"
    table.write_text("PATIENT,slide_id,label,hospital\nTCGA-AA-3516,s1,MSI,\np2,s2,MSS,north\n")
    options = SlideTableOptions(site_column="hospital")
    import_slide_table(table, table, tmp_path / "o.csv", options)
    assert [row.site for row in read_slides(tmp_path / "o.csv", CLASSES)] == ["AA", "north"]


def test_what_is_wrong_is_one_line_and_writes_nothing(stamp: Path) -> None:
    book = openpyxl.load_workbook(stamp / "clini.xlsx")
    book.active.append(["p9", "maybe"])
    book.save(stamp / "clini.xlsx")
    with pytest.raises(TableError) as caught:
        run(stamp)
    assert str(caught.value) == (
        f"{stamp / 'clini.xlsx'}:5: 'maybe' in 'isMSIH' is no label. Say what it is with --map "
        "'maybe=LABEL', or leave it out with --map 'maybe='."
    )
    with pytest.raises(LayoutError, match="no such folder"):
        import_slide_table(
            stamp / "slides.csv",
            stamp / "clini.xlsx",
            stamp / "out" / "slides.csv",
            SlideTableOptions(
                label_column="isMSIH",
                label_of={**WORDS, "maybe": ""},
                slides_folder=stamp / "absent",
            ),
        )
    (stamp / "slides.csv").write_text("FILENAME,PATIENT\nc,p8\n")
    with pytest.raises(LayoutError, match=r"none of 1 slides is left: 1 without a label of their"):
        import_slide_table(
            stamp / "slides.csv",
            stamp / "clini.xlsx",
            stamp / "out" / "slides.csv",
            SlideTableOptions(label_column="isMSIH", label_of={**WORDS, "maybe": ""}),
        )
    assert not (stamp / "out").exists()
    (stamp / "slides.csv").write_text("FILENAME,PATIENT\na,p1\na,p2\n")
    with pytest.raises(TableError, match=r"slides.csv:3: slide 'a' stands twice"):
        import_slide_table(
            stamp / "slides.csv",
            stamp / "clini.xlsx",
            stamp / "out" / "slides.csv",
            SlideTableOptions(label_column="isMSIH", label_of={**WORDS, "maybe": ""}),
        )


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"--only '\(': is not a regular expression"):
        compile_pattern("(", "--only")


@pytest.mark.real_data
def test_the_slides_of_tcga_with_the_labels_of_liu(real_data: Path, tmp_path: Path) -> None:
    labels = real_data / "labels"
    summary = import_slide_table(
        labels / "deephistology_TCGA-CRC-DX_SLIDE.csv",
        labels / "tcga_crc_msi_labels_merged.csv",
        tmp_path / "slides.csv",
        SlideTableOptions(
            label_column="liu2018_MSIStatus",
            label_of={"MSI-H": "MSI", "MSI-L": "MSS", "MSS": "MSS"},
            only=re.compile("DX"),
        ),
    )
    rows = read_slides(tmp_path / "slides.csv", CLASSES)
    assert sum(summary.slides.values()) == len(rows)
    # Slides in the table, less those that are frozen sections, less those without a label.
    assert len(rows) + summary.unlabelled + summary.excluded == 1971
    assert {row.site for row in rows} >= {"AA", "A6"}
    assert all(
        row.patient_id == row.slide_id[:12] and row.site == row.slide_id[5:7] for row in rows
    )
