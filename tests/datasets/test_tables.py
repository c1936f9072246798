"""What slides.csv may hold, and what a user reads when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.datasets.tables import SlideRow, read_slides
from medkd.errors import TableError

CLASSES = ("MSS", "MSI")
HEADER = "slide_id,path,patient_id,label\n"
ROW = "s1,s1.svs,p1,MSS\n"


def read(folder: Path, content: str | bytes) -> tuple[SlideRow, ...]:
    path = folder / "slides.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_slides(path, CLASSES)


def message(folder: Path, content: str | bytes) -> str:
    with pytest.raises(TableError) as caught:
        read(folder, content)
    return str(caught.value)


def test_every_column_arrives_in_its_field(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        "slide_id,path,patient_id,label,site,scanner,mpp,stage,sex\n"
        "s1,raw/s1.svs,p1,MSS,north,GT450,0.2525,III,female\n"
        "s2,raw/s2.svs,p2,MSI,,,,,\n",
    )
    assert rows == (
        SlideRow(
            "s1", tmp_path / "raw/s1.svs", "p1", "MSS", "north", "GT450", 0.2525, "III", "female"
        ),
        SlideRow("s2", tmp_path / "raw/s2.svs", "p2", "MSI", "", "", None),
    )


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "label,patient_id,slide_id,path\nMSI,p,s,s.svs\n")
    assert row == SlideRow("s", tmp_path / "s.svs", "p", "MSI")


def test_an_absolute_path_stays_as_it_is(tmp_path: Path) -> None:
    (row,) = read(tmp_path, HEADER + "s1,/archive/s1.svs,p1,MSS\n")
    assert row.path == Path("/archive/s1.svs")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + ROW).encode(),
        (HEADER + ROW).replace("\n", "\r\n").encode(),
        b"slide_id , path,patient_id,label\n s1 ,s1.svs , p1,MSS \n",
        (HEADER + "\n" + ROW + ",,,\n").encode(),
        b'slide_id,path,patient_id,label\n"s1","s1.svs","p1","MSS"',
    ],
    ids=["byte-order mark", "Windows line ends", "spaces", "empty rows", "quotes"],
)
def test_what_spreadsheets_write_is_read_alike(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == (SlideRow("s1", tmp_path / "s1.svs", "p1", "MSS"),)


def test_a_patient_may_have_several_slides(tmp_path: Path) -> None:
    rows = read(tmp_path, HEADER + ROW + "s2,s2.svs,p1,MSS\n")
    assert [row.patient_id for row in rows] == ["p1", "p1"]


@pytest.mark.parametrize(
    ("content", "line", "what", "remedy"),
    [
        (
            "slide_id,path,patient_id,lable\n",
            ":1",
            "unknown column 'lable'",
            "Did you mean 'label'?",
        ),
        (
            "slide_id,path,patient_id,label,zodiac\n",
            ":1",
            "unknown column 'zodiac'",
            "Known: slide_id, path, patient_id, label, site, scanner, stage, sex, mpp.",
        ),
        (
            "slide_id,path,patient_id,label,label\n",
            ":1",
            "the column 'label' stands twice",
            "Keep one of the two.",
        ),
        ("slide_id,path,label\n", ":1", "the column 'patient_id' is missing", "Add it."),
        ("", ":1", "the column 'slide_id' is missing", "Add it."),
        (HEADER, "", "has no slides", "Add a row for each slide."),
        (HEADER + ",,,\n", "", "has no slides", "Add a row for each slide."),
        (
            HEADER + "s1,s1.svs,p1\n",
            ":2",
            "has fewer cells than the header",
            "Give every row a cell for each column.",
        ),
        (
            HEADER + "s1,s1.svs,p1,MSS,0.25\n",
            ":2",
            "has more cells than the header",
            "Give every row a cell for each column.",
        ),
        (HEADER + ROW + "s2,s2.svs,,MSS\n", ":3", "'patient_id' is empty", "Fill it in."),
        (
            HEADER + ROW + "s1,other.svs,p2,MSS\n",
            ":3",
            "slide 's1' stands twice (first on line 2)",
            "Give each slide one row and its own slide_id.",
        ),
        (
            HEADER + "s1,s1.svs,p1,MSI-H\n",
            ":2",
            "label 'MSI-H' is not a class",
            "Use one of MSS, MSI, or change data.classes.",
        ),
        (
            HEADER + "s1,s1.svs,p1,msi\n",
            ":2",
            "label 'msi' is not a class",
            "Use one of MSS, MSI, or change data.classes.",
        ),
        (
            HEADER + ROW + "\ns2,s2.svs,p1,MSI\n",
            ":4",
            "patient 'p1' is MSI here and MSS on line 2",
            "Give all slides of a patient the same label, or leave the patient out.",
        ),
        (HEADER + 's1,"s1.svs,p1,MSS\n', "", "cannot be read as CSV", "Save it as CSV again."),
        (
            (HEADER + "s1,s1.svs,Müller,MSS\n").encode("latin-1"),
            "",
            "is not UTF-8 text",
            "Save the table as CSV in UTF-8.",
        ),
        (
            (HEADER + ROW).encode("utf-16"),
            "",
            "is not UTF-8 text",
            "Save the table as CSV in UTF-8.",
        ),
    ],
)
def test_messages_say_what_where_and_how_to_mend(
    tmp_path: Path, content: str | bytes, line: str, what: str, remedy: str
) -> None:
    text = message(tmp_path, content)
    assert text.startswith(f"{tmp_path / 'slides.csv'}{line}: {what}")
    assert text.endswith(f". {remedy}")


@pytest.mark.parametrize("slide_id", ["../s1", "a/b", "a\\b", ".hidden", "-s", "s 1", "ß", "s:1"])
def test_a_slide_id_that_cannot_name_a_file_is_refused(tmp_path: Path, slide_id: str) -> None:
    text = message(tmp_path, HEADER + f"{slide_id},s.svs,p,MSS\n")
    assert f"slides.csv:2: slide_id '{slide_id}' cannot name a file. Use letters, digits" in text


@pytest.mark.parametrize("mpp", ["0,25", "zero", "0", "-0.5", "nan", "inf"])
def test_an_mpp_that_is_not_a_positive_number_is_refused(tmp_path: Path, mpp: str) -> None:
    header = "slide_id,path,patient_id,label,mpp\n"
    text = message(tmp_path, header + f's1,s1.svs,p1,MSS,"{mpp}"\n')
    assert f"slides.csv:2: mpp '{mpp}' is not a positive number. Write micrometres" in text


def test_a_table_that_is_absent_is_told_with_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.csv: no such file\. Set data\.slides to a table"):
        read_slides(tmp_path / "none.csv", CLASSES)


def test_a_folder_in_place_of_a_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"is a folder, not a table\. Set data\.slides"):
        read_slides(tmp_path, CLASSES)
