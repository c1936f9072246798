"""What resembles among the images of an evaluation: what its intervals draw together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.importers.box_table import BoxTable
from medkd.training.box_predictions import images_of
from medkd.training.box_set import BoxSet, load_box_set
from tests.training.box_cohort import box_cohort


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> BoxSet:
    return load_box_set(box_cohort(tmp_path_factory.mktemp("boxes") / "experiment", images=16))


def sources(data: BoxSet, patient: list[str | None], sequence: list[str | None]) -> list[str]:
    """Of the test images, where image number k of the table has these."""
    images = data.table.images.assign(patient_id=patient, sequence_id=sequence)
    table = BoxTable(images, Path(data.table.root), data.table.classes)
    return images_of(replace(data, table=table), "test").sources.tolist()


def numbers(data: BoxSet) -> np.ndarray:
    """Of the test images, from their names."""
    return np.array([int(Path(name).stem) for name in images_of(data, "test").images])


def test_each_image_is_a_source_where_nobody_knows_more(data: BoxSet) -> None:
    assert sources(data, [None] * 16, [None] * 16) == list(images_of(data, "test").images)


def test_images_of_a_patient_are_one_source(data: BoxSet) -> None:
    patient: list[str | None] = [f"p{number % 2}" for number in range(16)]
    sequence: list[str | None] = [f"s{number}" for number in range(16)]
    found = sources(data, patient, sequence)
    assert found == [f"p{number % 2}" for number in numbers(data)]


def test_frames_of_a_sequence_are_one_source_where_nobody_knows_the_patient(data: BoxSet) -> None:
    test = numbers(data)
    # The first test image has a patient who is called as the sequence of the others is.
    patient = [None if number != test[0] else "1" for number in range(16)]
    found = sources(data, patient, ["1"] * 16)
    assert found == ["1", *["sequence:1"] * (len(test) - 1)]
