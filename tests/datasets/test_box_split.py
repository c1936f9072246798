"""Roles of images with boxes: what shows the same stays together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.config import Config, load_config
from medkd.datasets.box_split import check_box_leakage, image_groups
from medkd.datasets.split import read_split, run_split_stage
from medkd.errors import StageError
from medkd.importers.box_table import BoxedImage, BoxOptions, BoxTable, read_boxes, write_boxes
from medkd.training.box_set import load_box_set
from tests.training.box_cohort import box_cohort


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Images of which number 7 is number 3 again, mirrored and encoded as JPEG in between."""
    config = box_cohort(tmp_path / "experiment", images=24, split=False)
    folder = config.output / "images"
    with Image.open(folder / "003.png") as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(tmp_path / "copy.jpg", quality=80)
    with Image.open(tmp_path / "copy.jpg") as image:
        image.save(folder / "007.png")
    return config


def roles(config: Config) -> dict[str, str]:
    split = read_split(config.splits_file)
    return dict(zip(split["patient_id"], split["role"], strict=True))


def test_near_duplicates_are_one_group(config: Config) -> None:
    groups = image_groups(read_boxes(config.detection.boxes))
    assert groups.near_duplicates == (("images/003.png", "images/007.png"),)
    assert groups.group_of["images/007.png"] == "images/003.png"
    assert len(groups.patients()) == 23
    assert groups.classes["images/003.png"] == "polyp"
    assert groups.classes["images/000.png"] == "nothing"


def test_images_of_one_patient_are_one_group(config: Config) -> None:
    table = read_boxes(config.detection.boxes)
    table.images["patient_id"] = [f"p{number // 4}" for number in range(24)]
    groups = image_groups(table)
    # Images 3 and 7 make their patients one.
    assert set(groups.group_of.values()) == {"p0", "p2", "p3", "p4", "p5"}
    assert groups.group_of["p1"] == "p0"


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_groups_together(config: Config, seed: int) -> None:
    config = load_config(config.output / "medkd.yaml", [f"seed={seed}"])
    summary = run_split_stage((), config)
    of = roles(config)
    assert len(of) == 24
    assert of["images/003.png"] == of["images/007.png"]
    # Of the 6 images that show nothing half train, and both other roles have some.
    nothing = {role: counts["nothing"] for role, counts in summary.counts[0].items()}
    assert nothing["train"] == 3
    assert sorted(nothing.values()) == [1, 2, 3]
    assert run_split_stage((), config).kept


def test_a_sequence_joins_the_patients_whose_images_its_frames_show_again(config: Config) -> None:
    folder = config.output / "images"
    (folder / "015.png").write_bytes((folder / "011.png").read_bytes())
    table = read_boxes(config.detection.boxes)
    # Images 7 and 15, frames of a sequence, are images 3 and 11 again; one patient is called alike.
    who = {3: "p1", 11: "p2", 5: "1", 6: "p1"}
    table.images["patient_id"] = [who.get(number) for number in range(24)]
    table.images["sequence_id"] = [{7: "1", 15: "1"}.get(number) for number in range(24)]
    groups = image_groups(table)
    of_group = {name for name, group in groups.group_of.items() if group == "p1"}
    assert of_group == {"p1", "p2", "sequence:1"}
    assert groups.group_of["1"] == "1"
    # Images 3, 6, 7, 11 and 15 are one group, and each of the other 19 is one.
    assert len(groups.patients()) == 20


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_a_sequence_have_one_role(config: Config, seed: int) -> None:
    """24 images in 10 sequences by the last digit of their number; 3 and 7 share an image."""
    table = read_boxes(config.detection.boxes)
    frames = [
        BoxedImage(row.image, row.boxes, row.labels, (row.width_px, row.height_px))
        for row in table.images.itertuples()
    ]
    options = BoxOptions(sequence=r"(\d)\.png$")
    write_boxes(frames, (), table.root, config.output, table.classes, options)
    config = load_config(config.output / "medkd.yaml", [f"seed={seed}"])
    run_split_stage((), config)
    of = roles(config)
    assert sorted(of) == [f"sequence:{digit}" for digit in range(10)]
    assert of["sequence:3"] == of["sequence:7"]
    # Nine groups, of which 4.5 train and 2.25 each validate and test.
    groups = [role for name, role in of.items() if name != "sequence:7"]
    assert sorted(groups.count(role) for role in ("train", "validation", "test")) == [2, 2, 5]
    data = load_box_set(config)
    digits = {
        role: {name[-5] for name in items.names.to_pylist()} for role, items in data.items.items()
    }
    assert sum(map(len, digits.values())) == 10
    assert digits["train"] == {name[-1] for name, role in of.items() if role == "train"}


def video(config: Config) -> BoxTable:
    """Images 1 and 2 are frames of one sequence; of the first alone the patient is known."""
    table = read_boxes(config.detection.boxes)
    table.images["patient_id"] = [{1: "p1", 5: "p2"}.get(number) for number in range(24)]
    table.images["sequence_id"] = [{1: "A", 2: "A", 5: "B"}.get(number) for number in range(24)]
    return table


def test_a_sequence_pulls_its_patient_into_its_group(config: Config) -> None:
    groups = image_groups(video(config))
    assert groups.group_of["sequence:A"] == groups.group_of["p1"] == "p1"
    assert groups.group_of["p2"] == "p2"


def test_patients_who_number_their_sequences_alike_stay_apart(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    table = video(config)
    table.images["patient_id"] = [f"p{number // 8}" for number in range(24)]
    table.images["sequence_id"] = "1"
    groups = image_groups(table)
    assert sorted(set(groups.group_of.values())) == ["p0", "p1", "p2"]
    assert (
        "1 sequences have a name that several patients have, such as '1': each patient's is taken "
        "for another one."
    ) in capsys.readouterr().err


def test_roles_that_share_a_sequence_are_refused(config: Config) -> None:
    table = video(config)
    given = dict.fromkeys(table.images["image"], "train")
    given |= {"p1": "train", "p2": "validation", "sequence:A": "test"}
    with pytest.raises(StageError) as caught:
        check_box_leakage(config, table, given)
    path = config.run_folder / "leakage.json"
    assert str(caught.value) == (
        f"{path}: train and test share sequences (1), such as 'sequence:A': images/001.png and "
        "images/002.png. Let 'medkd split' draw the roles, which keeps what is alike together; to "
        "train on it on purpose, set data.allow_leakage=[shared_patients]."
    )
    check_box_leakage(config, table, given | {"sequence:A": "train"})
    given["images/007.png"] = "validation"
    with pytest.raises(
        StageError, match=r"allow_leakage=\[shared_patients, near_duplicate_tiles\]"
    ):
        check_box_leakage(config, table, given)
    allowed = load_config(
        config.output / "medkd.yaml",
        ["data.allow_leakage=[shared_patients,near_duplicate_tiles]"],
    )
    check_box_leakage(allowed, table, given)
    found = json.loads(path.read_text())["findings"]
    assert [(one["kind"], one["count"], one["allowed"]) for one in found] == [
        ("shared_patients", 1, True),
        ("near_duplicate_tiles", 1, True),
    ]


def test_an_image_that_gained_a_turn_is_refused(config: Config) -> None:
    path = config.output / "images" / "004.png"
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(path) as image:
        image.save(path, exif=exif)
    with pytest.raises(StageError) as caught:
        run_split_stage((), config)
    assert str(caught.value) == (
        f"{path}: turned by EXIF (orientation 8): whether its boxes mean the stored or the upright "
        "image is not known. Save it as they mean it, without the tag, and import again."
    )


def test_roles_that_share_an_image_are_refused(config: Config, tmp_path: Path) -> None:
    names = read_boxes(config.detection.boxes).images["image"]
    role = np.array(["train", "validation", "test"])[np.arange(24) % 3]
    own = tmp_path / "roles.csv"
    pd.DataFrame({"patient_id": names, "role": role}).to_csv(own, index=False)
    assignments = ["split.scheme=file", f"split.file={own}"]
    config = load_config(config.output / "medkd.yaml", assignments)
    run_split_stage((), config)
    table = read_boxes(config.detection.boxes)
    with pytest.raises(
        StageError,
        match=r"train and validation: nearly the same image 1 time, such as images/003\.png and "
        r"images/007\.png",
    ) as caught:
        check_box_leakage(config, table, roles(config))
    assert "data.allow_leakage=[near_duplicate_tiles]" in str(caught.value)
    allowed = load_config(
        config.output / "medkd.yaml",
        [*assignments, "data.allow_leakage=[near_duplicate_tiles]"],
    )
    check_box_leakage(allowed, table, roles(config))
    written = json.loads((allowed.run_folder / "leakage.json").read_text())
    assert [finding["count"] for finding in written["findings"]] == [1]
    assert written["findings"][0]["allowed"] is True


def test_a_split_by_sites_is_refused(config: Config) -> None:
    config = load_config(config.output / "medkd.yaml", ["split.scheme=leave_one_site_out"])
    with pytest.raises(StageError, match="images with boxes have no sites"):
        run_split_stage((), config)


def test_three_frames_of_kvasir_are_there_twice(real_data: Path, tmp_path: Path) -> None:
    from medkd.importers.box_table import BoxOptions, write_boxes
    from medkd.importers.kvasir import find_kvasir

    root = real_data / "kvasir_seg"
    found, problems = find_kvasir(root, None)
    write_boxes(found, problems, root, tmp_path, ("polyp",), BoxOptions())
    groups = image_groups(read_boxes(tmp_path / "boxes.parquet"))
    assert len(groups.near_duplicates) == 3
    assert len(groups.patients()) == len(groups.group_of) - 3
