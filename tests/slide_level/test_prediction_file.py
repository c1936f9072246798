"""Predictions slide by slide, whatever the order of the file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkd.errors import StageError
from medkd.slide_level import prediction_file
from medkd.slide_level.prediction_file import PredictionFile, SlideTiles


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row group is a part of its own, as in a file of many millions of rows."""
    monkeypatch.setattr(prediction_file, "_PART_ROWS", 1)


COLUMNS = ["slide_id", "patient_id", "role", "x", "y", "network", "probability"]


def table() -> pd.DataFrame:
    """7 slides of 4 patients with 3 to 9 tiles and two networks, one after the other."""
    random = np.random.default_rng(0)
    rows = []
    for network in ("teacher", "student_0"):
        for number in range(7):
            for tile in range(3 + number):
                rows.append(
                    (f"s{number}", f"p{number % 4}", "test", 224 * (tile % 3), 224 * (tile // 3),
                     network, random.random())
                )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).astype(
        {"x": "int32", "y": "int32", "probability": "float32"}
    )


def written(rows: pd.DataFrame, folder: Path, group_rows: int = 1000) -> Path:
    path = folder / "predictions.parquet"
    rows.to_parquet(path, index=False, row_group_size=group_rows)
    return path


ORDERS = {
    "network by network": lambda rows: rows,
    "slide by slide": lambda rows: rows.sort_values(["slide_id", "network"], kind="stable"),
    "tile by tile": lambda rows: rows.sort_values(["slide_id", "y", "x"], kind="stable"),
    "tiles mixed within slides": lambda rows: rows.sample(frac=1, random_state=0).sort_values(
        "slide_id", kind="stable"
    ),
}


@pytest.mark.parametrize("part_rows", [1, 30])
@pytest.mark.parametrize("group_rows", [5, 11, 1000])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_gives_the_same_slides(
    order: str,
    group_rows: int,
    part_rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction_file, "_PART_ROWS", part_rows)
    rows = table()
    file = PredictionFile(written(ORDERS[order](rows), tmp_path, group_rows))
    assert file.networks == ("student_0", "teacher")
    assert file.rows == len(rows)
    assert file.slides_of_patients() == {"p0": 2, "p1": 2, "p2": 2, "p3": 1}
    found = {slide.slide_id: slide for slide in file.slides()}
    assert sorted(found) == [f"s{number}" for number in range(7)]
    for number in range(7):
        slide = found[f"s{number}"]
        assert (slide.patient_id, slide.role) == (f"p{number % 4}", "test")
        for network, values in zip(slide.networks, slide.probabilities, strict=True):
            mine = rows[(rows["slide_id"] == slide.slide_id) & (rows["network"] == network)]
            np.testing.assert_array_equal(values, mine.sort_values(["y", "x"])["probability"])


def test_a_file_of_one_row_group_may_be_in_any_order(tmp_path: Path) -> None:
    shuffled = table().sample(frac=1, random_state=1)
    assert len(list(PredictionFile(written(shuffled, tmp_path)).slides())) == 7


@pytest.mark.parametrize("order", ["network by network", "slide by slide"])
def test_every_part_is_decoded_once(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PredictionFile(written(ORDERS[order](table()), tmp_path, group_rows=9))
    read: list[int] = []
    plain = PredictionFile._read_values

    def keep(self: PredictionFile, group: int) -> np.ndarray:
        read.append(group)
        return plain(self, group)

    monkeypatch.setattr(PredictionFile, "_read_values", keep)
    slides: list[SlideTiles] = list(file.slides())
    assert len(slides) == 7
    groups = -(-len(table()) // 9)
    # A part in which one network ends and another begins is read for both.
    assert sorted(set(read)) == list(range(groups))
    assert len(read) <= groups + 1


def test_identifiers_may_be_numbers_or_categories(tmp_path: Path) -> None:
    rows = table()
    numbers = rows.assign(slide_id=rows["slide_id"].str[1:].astype(int))
    found = [slide.slide_id for slide in PredictionFile(written(numbers, tmp_path)).slides()]
    assert found == [str(number) for number in range(7)]
    categories = rows.assign(slide_id=rows["slide_id"].astype("category"))
    found = [slide.slide_id for slide in PredictionFile(written(categories, tmp_path)).slides()]
    assert found == [f"s{number}" for number in range(7)]


def changed(where: pd.Series, column: str, value: object) -> pd.DataFrame:
    rows = table()
    return rows.assign(**{column: rows[column].mask(where, value)})


def first_tile_of(slide: str, network: str) -> pd.Series:
    rows = table()
    here = (rows["slide_id"] == slide) & (rows["network"] == network)
    return here & (rows["x"] == 0) & (rows["y"] == 0)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (table().drop(columns="network"), "lacks the column 'network'"),
        (table().iloc[:0], "has no rows"),
        (table().assign(patient_id=None), "has rows without a value in 'patient_id'"),
        (changed(first_tile_of("s1", "teacher"), "x", None).astype({"x": "Int32"}),
         "has rows without a value in 'x'"),
        (changed(first_tile_of("s1", "teacher"), "patient_id", "p0"),
         "slide 's1' has more than one patient"),
        (changed(first_tile_of("s1", "teacher"), "role", "train"),
         "slide 's1' has more than one role"),
        (changed(first_tile_of("s1", "teacher"), "probability", 1.5),
         "holds a probability that is not a number between 0 and 1"),
        (changed(first_tile_of("s1", "teacher"), "probability", np.nan),
         "has rows without a value in 'probability'"),
        (table()[lambda rows: (rows["slide_id"] != "s3") | (rows["network"] != "teacher")],
         "slide 's3' has no predictions of 'teacher'"),
        (table()[~first_tile_of("s3", "teacher")],
         "networks 'student_0' and 'teacher' have different tiles of slide 's3'"),
        (pd.concat([table(), table()[first_tile_of("s3", "teacher")]]),
         "networks 'student_0' and 'teacher' have different tiles of slide 's3'"),
        (pd.concat([table(), table()[first_tile_of("s3", "student_0")]]),
         "slide 's3' has a tile twice"),
    ],
)  # fmt: skip
def test_messages(rows: pd.DataFrame, what: str, tmp_path: Path) -> None:
    path = written(rows, tmp_path)
    with pytest.raises(StageError) as caught:
        list(PredictionFile(path).slides())
    assert str(caught.value) == f"{path}: {what}. Run 'medkd predict' again."


def test_a_probability_that_is_not_a_number_is_told(tmp_path: Path) -> None:
    """As another program may write it; pandas writes an empty cell."""
    rows = pa.Table.from_pandas(table(), preserve_index=False)
    values = [float("nan"), *rows["probability"].to_pylist()[1:]]
    column = rows.schema.get_field_index("probability")
    path = tmp_path / "predictions.parquet"
    pq.write_table(rows.set_column(column, "probability", pa.array(values, pa.float32())), path)
    with pytest.raises(StageError, match="holds a probability that is not a number"):
        list(PredictionFile(path).slides())


def torn() -> pd.DataFrame:
    """Sorted by slide, but for one row at the end."""
    rows = table().sort_values(["slide_id", "network"], kind="stable", ignore_index=True)
    return pd.concat([rows.iloc[1:], rows.iloc[:1]])


def slide(name: str) -> pd.DataFrame:
    rows = table().sort_values(["slide_id", "y", "x"], kind="stable")
    return rows[rows["slide_id"] == name]


@pytest.mark.parametrize(
    ("rows", "lies"),
    [
        (torn(), "slide 's0' and network 'student_0' lie scattered over row groups 0 to 4"),
        # Slide s6 fills row groups 0 to 3 but for one row of s5 in group 1.
        (pd.concat([slide("s6").iloc[:7], slide("s5").iloc[:1], slide("s6").iloc[7:],
                    slide("s5").iloc[1:]]),
         "slide 's6' and network 'teacher' lie scattered over row groups 0 to 3"),
    ],
)  # fmt: skip
def test_rows_of_a_slide_that_lie_scattered_are_told(
    rows: pd.DataFrame, lies: str, tmp_path: Path
) -> None:
    path = written(rows, tmp_path, group_rows=20 if len(rows) > 50 else 5)
    with pytest.raises(StageError) as caught:
        PredictionFile(path)
    assert str(caught.value) == (
        f"{path}: the rows of {lies}. Sort the file by slide_id, or run 'medkd predict' again."
    )


def test_a_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    path.write_bytes(b"not a table")
    with pytest.raises(StageError, match=r"cannot be read: .*Run 'medkd predict' again\."):
        PredictionFile(path)


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    path = written(table(), tmp_path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(StageError, match="cannot be read"):
        list(PredictionFile(path).slides())
