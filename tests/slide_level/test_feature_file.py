from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkd.errors import StageError
from medkd.slide_level.feature_file import feature_row, read_features
from medkd.slide_level.slide_features import SlideFeatures


def features(value: float, *, tiles: int = 7, width: int = 3) -> SlideFeatures:
    """Of a network ``a`` of this width, and of ``b``."""
    numbers = {
        name: np.full(size, value, np.float32)
        for name, size in {"stain": 6, "a": width, "b": 2}.items()
    }
    return SlideFeatures(tiles, numbers, {name: 2 * own for name, own in numbers.items()})


def write(path: Path, *rows: pa.Table) -> Path:
    pq.write_table(pa.concat_tables(rows), path)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "slide_features.parquet",
        feature_row("s1", "p1", "train", features(0.5)),
        feature_row("s2", "p1", "train", features(1.5, tiles=9)),
    )
    found = read_features(path, ["b", "none"])
    assert found is not None
    assert found.slides.to_dict("list") == {
        "slide_id": ["s1", "s2"],
        "patient_id": ["p1", "p1"],
        "role": ["train", "train"],
        "tiles": [7, 9],
    }
    assert list(found.means) == ["stain", "b"]
    np.testing.assert_array_equal(found.means["b"], [[0.5, 0.5], [1.5, 1.5]])
    np.testing.assert_array_equal(found.variances["b"], [[1, 1], [3, 3]])
    assert found.means["stain"].shape == (2, 6)


def test_no_file_is_no_features(tmp_path: Path) -> None:
    assert read_features(tmp_path / "none.parquet", ["a"]) is None


def refusal(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        read_features(path, ["a"])
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(". Run 'medkd predict' again.")
    return message.removeprefix(f"{path}: ").removesuffix(". Run 'medkd predict' again.")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    path.write_bytes(b"PAR1 and no more")
    assert refusal(path).startswith("cannot be read: ")
    row = feature_row("s1", "p1", "train", features(0.5))
    assert "mean_stain" in refusal(write(path, row.drop(["mean_stain"])))
    write(path, feature_row("s1", "p1", "train", features(float("nan"))))
    assert refusal(path) == "holds features that are not numbers"
    write(path, row, feature_row("s2", "p2", "train", features(0.5, width=4)))
    assert refusal(path).startswith("cannot be read: ")
