"""Items of images with boxes: what they say, their roles, and how they become batches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import partition_dataset

from medkd.datasets.boxes import BoxItems, box_items, clipped_boxes, collate_boxes
from medkd.errors import ConfigError, MedkdError, StageError, TableError
from medkd.importers.box_table import SCHEMA, BoxTable

ROOT = Path("frames")


def boxed(name: str, boxes: list, labels: list[str] | None = None, **others) -> dict:
    row = dict.fromkeys(SCHEMA.names)
    row |= {"image": name, "width_px": 100, "height_px": 50, "boxes": boxes}
    return row | {"labels": ["polyp"] * len(boxes) if labels is None else labels} | others


def table_of(*rows: dict, classes: tuple[str, ...] = ("adenoma", "polyp")) -> BoxTable:
    return BoxTable(pd.DataFrame(list(rows), columns=SCHEMA.names), ROOT, classes)


THREE = (
    boxed("a.png", [[10, 5, 40, 30], [0, 0, 100, 50]], ["polyp", "adenoma"]),
    boxed("b.png", []),
    boxed("c.png", [[1.5, 2, 3, 4]]),
)


def names(items: BoxItems) -> list[str]:
    return [item["name"] for item in items]


def test_an_item_has_the_path_the_boxes_and_the_numbers_of_their_classes() -> None:
    items = box_items(table_of(*THREE))
    assert len(items) == 3
    first = items[0]
    assert first["image"] == str(Path("frames/a.png"))
    assert first["boxes"].tolist() == [[10, 5, 40, 30], [0, 0, 100, 50]]
    assert first["labels"].tolist() == [1, 0]
    assert first["size_px"].tolist() == [100, 50]
    assert (first["boxes"].dtype, first["labels"].dtype) == (np.float32, np.int64)
    assert items[2]["boxes"].tolist() == [[1.5, 2, 3, 4]]
    assert items.classes == ("adenoma", "polyp")


def test_an_image_without_boxes_has_none_of_four_numbers() -> None:
    item = box_items(table_of(*THREE))[1]
    assert (item["boxes"].shape, item["boxes"].dtype) == ((0, 4), np.float32)
    assert (item["labels"].shape, item["labels"].dtype) == ((0,), np.int64)
    nothing = box_items(table_of(THREE[1]))
    assert nothing[0]["boxes"].shape == (0, 4)


def test_items_are_a_sequence_that_can_be_cut_and_sent() -> None:
    items = box_items(table_of(*THREE))
    assert items[-1]["name"] == "c.png"
    assert names(items[::-2]) == ["c.png", "a.png"]
    assert items[1:][1]["boxes"].tolist() == [[1.5, 2, 3, 4]]
    assert names(pickle.loads(pickle.dumps(items))) == ["a.png", "b.png", "c.png"]
    parts = partition_dataset(items, num_partitions=2, shuffle=False)
    assert [[item["name"] for item in part] for part in parts] == [["a.png", "c.png"], ["b.png"]]
    with pytest.raises(IndexError):
        items[3]
    items[0]["boxes"][:] = 0
    assert items[0]["boxes"][0].tolist() == [10, 5, 40, 30]


def test_other_classes_number_otherwise() -> None:
    items = box_items(table_of(*THREE), classes=["polyp", "adenoma"])
    assert items[0]["labels"].tolist() == [0, 1]
    with pytest.raises(StageError) as caught:
        box_items(table_of(*THREE), classes=["polyp"])
    assert str(caught.value) == (
        f"{ROOT / 'a.png'}: a box has the label 'adenoma', which is no class. Use polyp, or name "
        "it among the classes."
    )


def test_boxes_are_cut_to_the_image() -> None:
    cut = clipped_boxes([[-3, 5, 40, 51.5], [90, -0.5, 101, 9]], (100, 50), "a.png")
    assert cut.tolist() == [[0, 5, 40, 50], [90, 0, 100, 9]]


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([10, 5, 10, 30], "(10, 5, 10, 30), has no area"),
        ([10, 30, 20, 30], "(10, 30, 20, 30), has no area"),
        ([20, 5, 10, 30], "(20, 5, 10, 30), has no area"),
        ([100, 5, 120, 30], "(100, 5, 120, 30), lies outside the image of 100 x 50 px"),
        ([10, -9, 20, 0], "(10, -9, 20, 0), lies outside the image of 100 x 50 px"),
        ([10, np.nan, 20, 30], "(10, nan, 20, 30), is not finite"),
        ([10, 5, np.inf, 30], "(10, 5, inf, 30), is not finite"),
    ],
)
def test_a_box_that_cannot_be_is_told(box: list[float], what: str) -> None:
    with pytest.raises(StageError) as caught:
        box_items(table_of(boxed("a.png", [[1, 1, 2, 2], box])))
    assert str(caught.value) == (
        f"{ROOT / 'a.png'}: box 2 of 2, {what}. Mend it where it was drawn and import the data set "
        "again, or drop the image."
    )


def test_boxes_of_another_form_are_told() -> None:
    with pytest.raises(StageError) as caught:
        clipped_boxes([[1, 2, 3]], (100, 50), "a.png")
    assert str(caught.value) == (
        "a.png: its boxes have the shape 1 x 3. Give x1, y1, x2 and y2 of each box."
    )
    with pytest.raises(StageError) as labels:
        box_items(table_of(boxed("a.png", [[1, 1, 2, 2]], [])))
    assert str(labels.value) == (
        f"{ROOT / 'a.png'}: has 1 boxes and 0 labels. Import the data set again."
    )


def test_roles_of_the_data_set_itself() -> None:
    roles = ("train", "validation", "train")
    table = table_of(*(row | {"role": role} for row, role in zip(THREE, roles, strict=True)))
    assert names(box_items(table, role="train")) == ["a.png", "c.png"]
    assert box_items(table, role="train")[1]["boxes"].tolist() == [[1.5, 2, 3, 4]]
    assert names(box_items(table, role="validation")) == ["b.png"]
    assert len(box_items(table)) == 3


def test_roles_of_a_table_by_image(tmp_path: Path) -> None:
    roles = tmp_path / "roles.csv"
    roles.write_text("patient_id,role\na.png,test\nb.png,train\nc.png,validation\n")
    for role, name in (("test", "a.png"), ("train", "b.png"), ("validation", "c.png")):
        assert names(box_items(table_of(*THREE), role=role, roles=roles)) == [name]


def test_roles_of_a_split_by_patient_and_fold(tmp_path: Path) -> None:
    patients = ("p1", "p2", "p3", "p1")
    rows = [*THREE, boxed("d.png", [])]
    table = table_of(
        *(row | {"patient_id": p, "role": "train"} for row, p in zip(rows, patients, strict=True))
    )
    roles = ("train", "validation", "test")
    split = [
        {"patient_id": f"p{n + 1}", "label": "x", "fold": fold, "role": roles[(n + fold) % 3]}
        for fold in (0, 1)
        for n in range(3)
    ]
    path = tmp_path / "splits.parquet"
    pd.DataFrame(split).to_parquet(path)
    assert names(box_items(table, role="train", roles=path)) == ["a.png", "d.png"]
    assert names(box_items(table, role="validation", roles=path, fold=1)) == ["a.png", "d.png"]
    assert names(box_items(table, role="train", roles=path, fold=1)) == ["c.png"]
    with pytest.raises(StageError) as caught:
        box_items(table, role="train", roles=path, fold=2)
    assert str(caught.value) == f"{path}: has no fold 2, only 0 to 1. Choose one of these."


def test_roles_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    def told(kind: type[MedkdError], table: BoxTable, **options) -> str:
        with pytest.raises(kind) as caught:
            box_items(table, **options)
        return str(caught.value)

    assert told(ConfigError, table_of(*THREE), role="val") == (
        "role: 'val' is no role. Use train, validation, test."
    )
    some = table_of(THREE[0] | {"role": "train"}, *THREE[1:])
    assert told(StageError, some, role="train") == (
        f"{ROOT}: 2 of 3 images have no role. Give a table of roles with the columns patient_id "
        "and role; where nobody knows the patients, the path of an image below the root stands for "
        "the patient."
    )
    both = table_of(
        THREE[0] | {"role": "train", "patient_id": "p1"},
        THREE[1] | {"role": "test", "patient_id": "p1"},
        THREE[2] | {"role": "test", "patient_id": "p2"},
    )
    assert told(StageError, both, role="train") == (
        f"{ROOT}: 1 patients or sequences have images in two roles, such as 'p1': train and test. "
        "Give a table of roles in which each has one."
    )
    video = table_of(
        THREE[0] | {"role": "train", "patient_id": "p1", "sequence_id": "7"},
        THREE[1] | {"role": "test", "sequence_id": "7"},
        THREE[2] | {"role": "test", "patient_id": "7"},
    )
    assert "1 patients or sequences have images in two roles, such as 'sequence:7'" in told(
        StageError, video, role="train"
    )
    single = table_of(*(row | {"role": "train"} for row in THREE))
    assert told(StageError, single, role="test") == (
        f"{ROOT}: no image has the role test. Give some images this role, or choose another one."
    )
    roles = tmp_path / "roles.csv"
    roles.write_text("patient_id,role\na.png,test\nb.png,train\n")
    assert f"{roles}: patient 'c.png' has no role" in told(
        TableError, table_of(*THREE), role="test", roles=roles
    )


def test_a_table_of_roles_may_name_patients_sequences_and_images(tmp_path: Path) -> None:
    table = table_of(
        THREE[0] | {"patient_id": "7", "sequence_id": "8"},
        THREE[1] | {"sequence_id": "7"},
        THREE[2],
    )
    roles = tmp_path / "roles.csv"
    roles.write_text("patient_id,role\n7,train\nsequence:7,validation\nc.png,test\n")
    for role, name in (("train", "a.png"), ("validation", "b.png"), ("test", "c.png")):
        assert names(box_items(table, role=role, roles=roles)) == [name]


def test_a_batch_stacks_images_and_lists_boxes() -> None:
    items = [
        {
            "image": torch.full((3, 4, 6), number, dtype=torch.uint8),
            "boxes": torch.zeros(number, 4),
            "boxes_transforms": ["a trace"],
            "labels": torch.zeros(number, dtype=torch.int64),
            "name": f"{number}.png",
        }
        for number in range(3)
    ]
    batch = collate_boxes(items)
    assert sorted(batch) == ["boxes", "image", "labels", "name"]
    assert batch["image"].shape == (3, 3, 4, 6)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(0, 4), (1, 4), (2, 4)]
    assert batch["name"] == ["0.png", "1.png", "2.png"]
    with pytest.raises(StageError) as caught:
        collate_boxes([items[0], {**items[1], "image": torch.zeros(3, 4, 8)}])
    assert str(caught.value) == (
        "image: images of a batch are 6 x 4 px and 8 x 4 px. Resize them: give box_transforms a "
        "size_px."
    )
