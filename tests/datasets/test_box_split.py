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
from medkd.importers.box_table import read_boxes
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
