"""Tables as cBioPortal, STAMP and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest

from medkd.errors import TableError
from medkd.importers.foreign_tables import (
    PATIENT_COLUMNS,
    ForeignTable,
    find_column,
    read_foreign_table,
)


def text_table(folder: Path, content: bytes, name: str = "table.csv") -> ForeignTable:
    (folder / name).write_bytes(content)
    return read_foreign_table(folder / name)


def workbook(folder: Path, **sheets: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    path = folder / "clini.xlsx"
    book.save(path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"PATIENT,isMSIH\np1,MSIH\n",
        b"\xef\xbb\xbfPATIENT,isMSIH\r\np1,MSIH\r\n",
        b"PATIENT;isMSIH\np1;MSIH\n",
        b"PATIENT\tisMSIH\np1\tMSIH\n\n\t\n",
        "PATIENT\tisMSIH\r\np1\tMSIH\r\n".encode("utf-16"),
        b'"PATIENT", isMSIH,,\n p1,"MSIH",,\n',
    ],
)
def test_marks_separators_and_empty_lines(tmp_path: Path, content: bytes) -> None:
    table = text_table(tmp_path, content)
    assert table.columns == ("PATIENT", "isMSIH")
    assert [row.cells for row in table.rows] == [{"PATIENT": "p1", "isMSIH": "MSIH"}]
    assert table.where(table.rows[0]) == f"{tmp_path / 'table.csv'}:2"


def test_the_comments_of_cbioportal_are_passed_over_and_lines_still_count(tmp_path: Path) -> None:
    table = text_table(
        tmp_path,
        b"#Patient Identifier\tMSI MANTIS Score\n#STRING\tNUMBER\n#1\t1\n"
        b"PATIENT_ID\tMSI_SCORE_MANTIS\nTCGA-AA-3516\t0.31\nTCGA-AA-3518\t[Not Available]\n",
    )
    assert [(row.line, row.cells["MSI_SCORE_MANTIS"]) for row in table.rows] == [
        (5, "0.31"),
        (6, ""),
    ]


@pytest.mark.parametrize("nothing", ["", "NA", "n/a", "NaN", "--", "[Not Available]", "#N/A"])
def test_what_is_not_known_is_empty(tmp_path: Path, nothing: str) -> None:
    table = text_table(tmp_path, f"patient,stage\np1,{nothing}\n".encode())
    assert table.rows[0].cells == {"patient": "p1", "stage": ""}


def test_a_workbook_with_numbers_gaps_and_empty_sheets(tmp_path: Path) -> None:
    path = workbook(
        tmp_path,
        empty=[],
        cohort=[
            ["PATIENT", None, "score", "n"],
            ["p1", None, 0.4012, 3],
            [None],
            ["p2", None, "x"],
        ],
    )
    table = read_foreign_table(path)
    assert table.columns == ("PATIENT", "score", "n")
    assert [(row.line, *row.cells.values()) for row in table.rows] == [
        (2, "p1", "0.4012", "3"),
        (4, "p2", "x", ""),
    ]


def test_of_several_sheets_one_is_chosen(tmp_path: Path) -> None:
    path = workbook(tmp_path, a=[["PATIENT"], ["p1"]], b=[["PATIENT"], ["p2"]])
    with pytest.raises(TableError) as caught:
        read_foreign_table(path)
    assert str(caught.value) == f"{path}: has 2 sheets. Choose one with --sheet: a, b."
    assert read_foreign_table(path, sheet="b").rows[0].cells == {"PATIENT": "p2"}
    with pytest.raises(TableError, match=r"has no sheet 'c'\. Its sheets are: a, b\."):
        read_foreign_table(path, sheet="c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b"PATIENT,label\n", "holds no rows"),
        ("t.csv", b"PATIENT,label,label\np,a,b\n", "the column 'label' stands twice"),
        ("t.csv", b"PATIENT,label\np,MSI,x\n", "t.csv:2: the cell 'x' stands under no column"),
        ("t.csv", b"PATIENT,label\np,\xff\xe9\n", "is not UTF-8 text"),
        ("t.csv", b'PATIENT,label\n"p,MSI\n', "cannot be read as CSV"),
        ("t.xls", b"\xd0\xcf\x11\xe0", "is a workbook of the old binary format"),
        ("t.xlsx", b"PK nothing", "is not a workbook"),
    ],
)
def test_what_is_no_table_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(TableError) as caught:
        text_table(tmp_path, content, name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        read_foreign_table(tmp_path / "absent.csv")


def test_columns_are_found_by_usual_names_or_the_one_given(tmp_path: Path) -> None:
    table = text_table(tmp_path, b"Patient ID,Msi Status\np1,MSS\n")
    options = {"what": "patients", "option": "--patient-column"}
    assert find_column(table, None, PATIENT_COLUMNS, **options) == "Patient ID"
    assert find_column(table, "msi_status", (), **options) == "Msi Status"
    with pytest.raises(TableError, match=r"has no column 'MSIStatu'. Did you mean 'Msi Status'\?"):
        find_column(table, "MSIStatu", (), **options)
    with pytest.raises(TableError) as caught:
        find_column(table, None, ("case_id",), **options)
    assert str(caught.value).endswith(
        "no column of patients is known in it. Name it with --patient-column; there are: "
        "Patient ID, Msi Status."
    )


@pytest.mark.real_data
def test_the_real_tables(real_data: Path) -> None:
    slides = read_foreign_table(real_data / "labels" / "deephistology_TCGA-CRC-DX_SLIDE.csv")
    assert (slides.columns, len(slides.rows)) == (("FILENAME", "PATIENT"), 1971)
    clinical = read_foreign_table(real_data / "tcga_crc_tiles" / "data_CLINI.xlsx")
    assert [row.cells for row in clinical.rows] == [
        {"PATIENT": "Patient_1", "Diagnosis": "a"},
        {"PATIENT": "Patient_3", "Diagnosis": "b"},
    ]
