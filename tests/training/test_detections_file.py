"""The file of what an ensemble found in the test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.errors import StageError
from medkd.files import sha256_of_file
from medkd.tasks.detections import Detections
from medkd.training.detections_file import (
    SavedDetections,
    check_weights,
    read_detections,
    write_detections,
)
from tests.training.test_box_evaluation import TEST

CLASSES = ("polyp", "forceps")


def saved(**changes: object) -> SavedDetections:
    two = Detections(
        np.array([[1.5, 2, 3, 4], [5, 6, 7, 8.25]], np.float32),
        np.array([0.1, 0.05], np.float32),
        np.array([1, 0]),
    )
    given = replace(TEST, found={"good": [two, *TEST.found["good"][1:]]})
    return replace(
        SavedDetections("run", "good", float(np.float32(0.1)), CLASSES, {}, given), **changes
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.parquet", saved())
    back = read_detections(tmp_path / "d.parquet")
    assert (back.run, back.model, back.threshold) == ("run", "good", np.float32(0.1))
    assert back.classes == CLASSES
    assert back.images.images == TEST.images
    np.testing.assert_array_equal(back.images.truth, TEST.truth)
    np.testing.assert_array_equal(back.images.sizes_px, TEST.sizes_px)
    assert list(back.images.sources) == list(TEST.sources)
    for one, other in zip(back.images.found["good"], saved().images.found["good"], strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.classes, other.classes)


def test_others_read_it_with_pandas(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.parquet", saved())
    table = pd.read_parquet(tmp_path / "d.parquet").set_index("image")
    assert list(table.loc["0.png", "labels"]) == ["forceps", "polyp"]
    assert [list(box) for box in table.loc["0.png", "boxes"]] == [[1.5, 2, 3, 4], [5, 6, 7, 8.25]]
    assert [list(box) for box in table.loc["1.png", "true_boxes"]] == [[10, 10, 50, 50]]
    assert list(table.loc["2.png", "true_labels"]) == []


@pytest.mark.parametrize("content", [b"", b"no parquet"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.parquet"
    with pytest.raises(StageError, match=r"no evaluation of a detector is there\. Run"):
        read_detections(path)
    path.write_bytes(content)
    with pytest.raises(StageError, match="cannot be read"):
        read_detections(path)
    pd.DataFrame({"image": ["a"]}).to_parquet(path)
    with pytest.raises(StageError, match="cannot be read"):
        read_detections(path)


def test_weights_that_were_trained_again_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "networks" / "student_0.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    given = saved(weights={"student_0": sha256_of_file(path)})
    check_weights(tmp_path, given)
    path.write_bytes(b"others")
    with pytest.raises(StageError, match="other weights of student_0 than it has now"):
        check_weights(tmp_path, given)
