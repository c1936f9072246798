"""Kvasir-SEG, COCO and YOLO become one table of boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.errors import StageError
from medkd.importers.box_table import BoxOptions, read_boxes
from medkd.importers.coco import import_coco
from medkd.importers.kvasir import import_kvasir
from medkd.importers.problems import LayoutError
from medkd.importers.yolo import import_yolo


def draw(path: Path, width_px: int, height_px: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width_px, height_px)).save(path)


def boxes_of(out: Path) -> dict[str, list[list[float]]]:
    images = read_boxes(out / "boxes.parquet").images
    return dict(zip(images["image"], images["boxes"], strict=True))


def polyp(x0: float, y0: float, x1: float, y1: float) -> dict[str, object]:
    return {"label": "polyp", "xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1}


@pytest.fixture
def kvasir(tmp_path: Path) -> Path:
    """Two images of 622 x 529 px as published; one of them is there as 256 x 256 px."""
    root = tmp_path / "Kvasir-SEG"
    entry = {"height": 529, "width": 622, "bbox": [polyp(38, 5, 430, 338)]}
    two = {**entry, "bbox": [polyp(0, 0, 311, 529), polyp(600, 500, 622, 529)]}
    root.mkdir()
    (root / "kavsir_bboxes.json").write_text(json.dumps({"full": entry, "small": two}))
    draw(root / "images" / "full.jpg", 622, 529)
    draw(root / "masks" / "full.jpg", 622, 529)
    draw(root / "images" / "small.jpg", 256, 256)
    return root


def test_kvasir_boxes_are_scaled_to_the_file(kvasir: Path, tmp_path: Path) -> None:
    draw(tmp_path / "normal" / "1.jpg", 256, 256)
    summary = import_kvasir(kvasir, tmp_path / "out", negatives=tmp_path / "normal")
    assert (summary.images, summary.without_boxes, summary.boxes) == (3, 1, {"polyp": 3})
    assert (summary.patients, summary.problems) == (None, ())
    table = read_boxes(tmp_path / "out" / "boxes.parquet")
    assert (table.root, table.classes) == (kvasir, ("polyp",))
    full, small, normal = table.images.to_dict("records")
    assert full["boxes"] == [[38, 5, 430, 338]]
    assert (full["width_px"], full["height_px"], full["mask"]) == (622, 529, "masks/full.jpg")
    assert np.allclose(
        small["boxes"],
        [[0, 0, 128, 256], [600 * 256 / 622, 500 * 256 / 529, 256, 256]],
    )
    assert small["mask"] is None
    assert (normal["boxes"], normal["labels"]) == ([], [])
    assert (table.root / normal["image"]).is_file()


def test_kvasir_with_missing_and_unlisted_images(kvasir: Path, tmp_path: Path) -> None:
    (kvasir / "images" / "small.jpg").unlink()
    draw(kvasir / "images" / "other.jpg", 8, 8)
    summary = import_kvasir(kvasir, tmp_path / "out")
    assert [str(problem) for problem in summary.problems] == [
        f"{kvasir}/images/small: has boxes but no image. Fetch it.",
        f"{kvasir}/images/other.jpg: is not in kavsir_bboxes.json. Add its boxes, or remove it; "
        "without them it would teach that nothing is there.",
    ]
    told = (tmp_path / "out" / "import_problems.csv").read_text()
    assert told.count("\n") == 3


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 10, 20), "its box (10, 10, 10, 20) is empty"),
        ((10, 30, 20, 20), "its box (10, 30, 20, 20) is empty"),
        ((10, 10, 700, 20), "its box (10, 10, 700, 20) is not inside the image"),
        ((-9, 10, 20, 20), "its box (-9, 10, 20, 20) is not inside the image"),
    ],
)
def test_an_image_with_a_wrong_box_is_left_out(
    kvasir: Path, tmp_path: Path, box: tuple[float, ...], message: str
) -> None:
    content = json.loads((kvasir / "kavsir_bboxes.json").read_text())
    content["full"]["bbox"].append(polyp(*box))
    (kvasir / "kavsir_bboxes.json").write_text(json.dumps(content))
    summary = import_kvasir(kvasir, tmp_path / "out")
    assert [str(problem) for problem in summary.problems] == [
        f"{kvasir}/images/full.jpg: {message}. Mend it, or drop the image."
    ]
    assert list(boxes_of(tmp_path / "out")) == ["images/small.jpg"]


def test_boxes_a_little_outside_are_cut(kvasir: Path, tmp_path: Path) -> None:
    content = json.loads((kvasir / "kavsir_bboxes.json").read_text())
    content["full"]["bbox"] = [polyp(-1, 0, 622.5, 529)]
    (kvasir / "kavsir_bboxes.json").write_text(json.dumps(content))
    import_kvasir(kvasir, tmp_path / "out")
    assert boxes_of(tmp_path / "out")["images/full.jpg"] == [[0, 0, 622, 529]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "kavsir_bboxes.json: is not JSON"),
        ("[]", "kavsir_bboxes.json: is not a JSON object"),
        ('{"a": {"width": 3}}', "'a' is not an image with width, height and bbox"),
    ],
)
def test_a_wrong_box_file(kvasir: Path, tmp_path: Path, text: str, message: str) -> None:
    (kvasir / "kavsir_bboxes.json").write_text(text)
    with pytest.raises(LayoutError) as caught:
        import_kvasir(kvasir, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_kvasir(tmp_path: Path) -> None:
    with pytest.raises(LayoutError) as caught:
        import_kvasir(tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path}: holds no folder 'images' beside a kavsir_bboxes.json. "
        "Name the folder of Kvasir-SEG as it was unpacked."
    )


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three frames: one polyp, an adenoma in a crowd, and nothing."""
    for name in ("case1/seqA/1.jpg", "case1/seqB/1.jpg", "case2/seqC/1.jpg"):
        draw(tmp_path / "frames" / name, 100, 50)
    content = {
        "images": [
            {"id": 7, "file_name": "case1/seqA/1.jpg", "width": 100, "height": 50},
            {"id": 8, "file_name": "case1/seqB/1.jpg", "width": 100, "height": 50},
            {"id": 9, "file_name": "case2/seqC/1.jpg", "width": 100, "height": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0.5, 0, 99.5, 50]},
        ],
        "categories": [{"id": 3, "name": "polyp"}, {"id": 4, "name": "adenoma"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def changed(path: Path, **content: object) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    return path


def test_coco_with_patients_and_sequences(coco: Path, tmp_path: Path) -> None:
    options = BoxOptions("case[0-9]+", "seq([A-Z])")
    summary = import_coco(coco, tmp_path / "frames", tmp_path / "out", options=options)
    assert (summary.images, summary.without_boxes) == (3, 2)
    assert (summary.patients, summary.sequences) == (2, 3)
    assert summary.boxes == {"adenoma": 1, "polyp": 1}
    first = read_boxes(tmp_path / "out" / "boxes.parquet").images.iloc[0].to_dict()
    assert first == {
        "image": "case1/seqA/1.jpg",
        "width_px": 100,
        "height_px": 50,
        "boxes": [[10, 20, 40, 25], [0.5, 0, 100, 50]],
        "labels": ["polyp", "adenoma"],
        "patient_id": "case1",
        "sequence_id": "A",
        "role": None,
        "mask": None,
    }


def test_coco_images_that_are_left_out(coco: Path, tmp_path: Path) -> None:
    draw(tmp_path / "frames" / "case1/seqA/1.jpg", 200, 100)
    (tmp_path / "frames" / "case2/seqC/1.jpg").unlink()
    crowd = {"id": 3, "image_id": 8, "category_id": 4, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    annotations = json.loads(coco.read_text())["annotations"]
    draw(tmp_path / "frames" / "x.jpg", 10, 10)
    images = [*json.loads(coco.read_text())["images"]]
    images.append({"id": 1, "file_name": "x.jpg", "width": 10, "height": 10})
    changed(coco, annotations=[*annotations, crowd], images=images)
    summary = import_coco(coco, tmp_path / "frames", tmp_path / "out")
    frames = tmp_path / "frames"
    assert [str(problem) for problem in summary.problems] == [
        f"{frames}/case1/seqB/1.jpg: has a box around a crowd. Box its members one by one.",
        f"{frames}/case2/seqC/1.jpg: no such image. Fetch it.",
        f"{frames}/case1/seqA/1.jpg: is 200 x 100 px, and its boxes speak of 100 x 50 px. "
        "Mend it, or drop the image.",
    ]
    assert list(boxes_of(tmp_path / "out")) == ["x.jpg"]


def test_what_is_not_coco(coco: Path, tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(LayoutError) as caught:
            import_coco(coco, tmp_path / "frames", tmp_path / "out")
        return str(caught.value)

    changed(coco, annotations=[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1]}])
    assert "has boxes of image 99, which it does not list" in message()
    changed(coco, annotations=[{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}])
    assert "is not in COCO's format: KeyError(5)" in message()
    coco.write_text('{"images": []}')
    assert "is not in COCO's format: KeyError('categories')" in message()
    coco.unlink()
    assert message() == f"{coco}: no such file. Name the file."


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two folders; the second is written as some exports write it."""
    root = tmp_path / "set"
    for name in ("train/images/p1_a.jpg", "train/images/p1_b.jpg", "valid/images/p2_a.png"):
        draw(root / name, 200, 100)
        label = root / name.replace("images", "labels").rsplit(".", 1)[0]
        label.parent.mkdir(parents=True, exist_ok=True)
    (root / "train/labels/p1_a.txt").write_text("0 0.5 0.5 0.5 0.4\n1 0.9 0.1 0.2 0.2\n")
    (root / "valid/labels/p2_a.txt").write_text("")
    path = root / "data.yaml"
    path.write_text("train: train/images\nval: ../valid/images\nnames: [polyp, adenoma]\n")
    return path


def test_yolo(yolo: Path, tmp_path: Path) -> None:
    summary = import_yolo(yolo, tmp_path / "out", options=BoxOptions(patient="p[0-9]"))
    assert (summary.images, summary.without_boxes, summary.patients) == (3, 2, 2)
    images = read_boxes(tmp_path / "out" / "boxes.parquet").images
    assert images["image"].tolist() == [
        "train/images/p1_a.jpg",
        "train/images/p1_b.jpg",
        "valid/images/p2_a.png",
    ]
    assert np.allclose(images["boxes"][0], [[50, 30, 150, 70], [160, 0, 200, 20]])
    assert images["labels"][0] == ["polyp", "adenoma"]
    assert images["role"].tolist() == ["train", "train", "validation"]
    yolo.write_text(yolo.read_text().replace("[polyp, adenoma]", "{0: polyp, 1: adenoma}"))
    assert import_yolo(yolo, tmp_path / "again").boxes == {"adenoma": 1, "polyp": 1}


@pytest.mark.parametrize("line", ["0 0.5 0.5 0.5", "2 0.5 0.5 0.5 0.5", "0 0 0 1 0 1 1 0 1", "a"])
def test_yolo_lines_that_are_none(yolo: Path, tmp_path: Path, line: str) -> None:
    path = yolo.parent / "train/labels/p1_b.txt"
    path.write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    summary = import_yolo(yolo, tmp_path / "out")
    assert [str(problem) for problem in summary.problems] == [
        f"{path}:2: '{line}' is not class, x, y, width and height. Mend it; the image is left out."
    ]
    assert summary.images == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: train/images\n", "names no classes"),
        ("names: [polyp]\n", "names no folder of images"),
        ("names: [polyp]\ntrain: elsewhere\n", "names 'elsewhere', which is no folder below"),
        ("names: [polyp\n", "is not YAML"),
        ("polyp\n", "is no YAML file of a data set"),
    ],
)
def test_what_is_not_yolo(yolo: Path, tmp_path: Path, text: str, message: str) -> None:
    yolo.write_text(text)
    with pytest.raises(LayoutError) as caught:
        import_yolo(yolo, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no boxes are there yet"):
        read_boxes(tmp_path / "boxes.parquet")
    (tmp_path / "boxes.parquet").write_text("no")
    with pytest.raises(StageError, match="is no table of boxes"):
        read_boxes(tmp_path / "boxes.parquet")


@pytest.mark.real_data
def test_the_real_boxes_lie_around_the_real_masks(real_data: Path, tmp_path: Path) -> None:
    summary = import_kvasir(
        real_data / "kvasir_seg",
        tmp_path / "out",
        negatives=real_data / "colonoscopy_no_polyp",
    )
    assert (summary.images, summary.without_boxes) == (948, 50)
    # The file of boxes speaks of 900 images, 898 of which are at hand.
    assert [problem.reason for problem in summary.problems] == ["no_file", "no_file"]
    table = read_boxes(tmp_path / "out" / "boxes.parquet")
    alone = [row for row in table.images.itertuples() if len(row.boxes) == 1][::5]
    differences = []
    for row in alone:
        ys, xs = np.nonzero(np.asarray(Image.open(table.root / row.mask).convert("L")) > 127)
        around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        differences.append(np.abs(around - row.boxes[0]).max())
    assert len(alone) == 170
    # Specks that the lossy masks gained are beside some.
    assert np.quantile(differences, 0.95) < 2
