"""What 'medkd infer' writes of images and videos: detections.json, coco.json, drawn pictures."""

from __future__ import annotations

import contextlib
import io
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.errors import ModelPackageError, OutputError
from medkd.inference.detect_stage import DetectSummary, detect_in_images
from medkd.inference.detection_result import FoundInImages, detections_schema
from medkd.inference.detector_package import load_detector_package
from medkd.inference.drawing import Draw
from medkd.inference.image_files import find_images
from medkd.inference.video import Frames
from tests.inference.square_finders import image_with_square, write_finders

BOXES = {"a.png": (128, 64, 256, 192), "sub/b.jpg": (64, 0, 128, 64), "c.tif": None}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory):
    return load_detector_package(write_finders(tmp_path_factory.mktemp("by_hand") / "model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of 512 x 256 px: two with a square, one with nothing; and a damaged one."""
    for name, box in BOXES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_with_square((512, 256), box)).save(path)
    (tmp_path / "images" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return tmp_path / "images"


def looked_at(images: Path, package, out: Path, **options) -> DetectSummary:
    return detect_in_images(find_images([images]).files, package, out, **options)


def test_boxes_in_pixels_of_the_images_and_a_line_for_what_is_damaged(
    images: Path, package, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    summary = looked_at(images, package, out)
    assert len(summary.failed) == 1
    assert summary.failed[0].startswith(f"{images / 'damaged.png'}: cannot be decoded: Trunc")
    content = json.loads((out / "detections.json").read_text())
    assert content["model"] == {"name": "by-hand", "version": "1", "sha256": package.sha256}
    assert content["research_use_only"] is True
    assert (content["classes"], content["threshold"]) == (["polyp"], 0.6)
    assert [(image["file"], image["drawn"]) for image in content["images"]] == [
        ("a.png", "drawn/a.png"),
        ("c.tif", "drawn/c.tif.png"),
        ("sub/b.jpg", "drawn/sub/b.jpg"),
    ]
    for image in content["images"]:
        box = BOXES[image["file"]]
        assert (image["width"], image["height"]) == (512, 256)
        assert (image["frame"], image["time_s"]) == (None, None)
        assert [found["box"] for found in image["boxes"]] == ([] if box is None else [list(box)])
        for found in image["boxes"]:
            assert (found["class"], found["called"]) == ("polyp", True)
            assert found["score"] == pytest.approx(0.7)
    assert content["failed"] == [
        {"file": "damaged.png", "reason": "cannot be decoded: Truncated File Read"}
    ]
    assert str(tmp_path) not in (out / "detections.json").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["coco.json", "detections.json", "drawn"]


def test_the_coco_file_is_read_by_pycocotools(images: Path, package, tmp_path: Path) -> None:
    coco_tools = pytest.importorskip("pycocotools.coco")
    looked_at(images, package, tmp_path / "found")
    path = tmp_path / "found" / "coco.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_tools.COCO(str(path))
        as_results = coco.loadRes(json.loads(path.read_text())["annotations"])
    assert [coco.imgs[number]["file_name"] for number in coco.getImgIds()] == [
        "a.png", "c.tif", "sub/b.jpg",
    ]  # fmt: skip
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "polyp"}]
    for found in (coco, as_results):
        annotations = found.loadAnns(found.getAnnIds())
        assert [(one["image_id"], one["bbox"], one["area"]) for one in annotations] == [
            (1, [128, 64, 128, 128], 16384),
            (3, [64, 0, 64, 64], 4096),
        ]
        assert [one["score"] for one in annotations] == pytest.approx([0.7, 0.7])


def test_a_box_below_the_threshold_is_kept_and_not_called(images: Path, tmp_path: Path) -> None:
    package = load_detector_package(write_finders(tmp_path / "model", threshold=0.75))
    summary = looked_at(images, package, tmp_path / "found", draw=Draw.CALLED)
    (box,) = summary.result.images[0].boxes
    assert (box.called, box.score) == (False, pytest.approx(0.7))
    assert [image.drawn for image in summary.result.images] == [None] * 3
    assert not (tmp_path / "found" / "drawn").exists()


def test_drawn_boxes_lie_where_they_were_found(images: Path, package, tmp_path: Path) -> None:
    looked_at(images, package, tmp_path / "found")
    with Image.open(tmp_path / "found" / "drawn" / "a.png") as image:
        drawn = np.asarray(image).astype(int)
    assert drawn.shape[1] == 512
    assert drawn.shape[0] > 256  # the note is below
    coloured = np.ptp(drawn, axis=2) > 60  # neither black nor white nor grey
    rows, columns = np.nonzero(coloured[64:256])
    assert (columns.min(), columns.max()) == (128, 255)
    assert rows.max() == 191 - 64
    with Image.open(tmp_path / "found" / "drawn" / "c.tif.png") as image:
        nothing = np.asarray(image)[:256]
    assert not nothing.any()


def test_an_earlier_result_stays_until_the_new_one_is_whole(
    images: Path, package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"
    looked_at(images, package, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("medkd.inference.detect_stage._result", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            looked_at(images, package, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert len(list(out.iterdir())) == 3  # nothing else is left behind
    (images / "sub" / "b.jpg").unlink()
    looked_at(images, package, out)
    # No picture of an earlier result is left among the new ones.
    assert sorted(path.name for path in (out / "drawn").rglob("*")) == ["a.png", "c.tif.png"]


def test_a_folder_of_something_else_is_left_alone(images: Path, package, tmp_path: Path) -> None:
    (tmp_path / "found" / "drawn").mkdir(parents=True)
    with pytest.raises(OutputError) as caught:
        looked_at(images, package, tmp_path / "found")
    assert str(caught.value) == (
        f"{tmp_path / 'found' / 'drawn'}: is there, and is of no result. Remove it, or choose "
        "another output folder."
    )


def test_a_broken_student_ends_all_and_leaves_nothing(images: Path, tmp_path: Path) -> None:
    package = load_detector_package(write_finders(tmp_path / "model", {"student_0": (1.5, 0.0)}))
    with pytest.raises(ModelPackageError, match="student_0 gave a probability"):
        looked_at(images, package, tmp_path / "found")
    assert not list((tmp_path / "found").iterdir())


def test_any_number_of_threads_gives_the_same(images: Path, package, tmp_path: Path) -> None:
    one, four = (
        looked_at(images, package, tmp_path / str(threads), threads=threads) for threads in (1, 4)
    )
    assert one.result.images == four.result.images
    assert one.failed == four.failed


def test_frames_of_a_video(package, tmp_path: Path, capsys) -> None:
    pytest.importorskip("av")
    from tests.inference.test_video import write_video

    (tmp_path / "videos").mkdir()
    moving = [image_with_square((128, 128), (8 * n, 16, 8 * n + 32, 64)) for n in range(8)]
    pictures = [*moving, image_with_square((128, 128), None)]
    write_video(tmp_path / "videos" / "clip.mkv", pictures)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video" * 99)
    summary = looked_at(tmp_path / "videos", package, tmp_path / "found", wanted=Frames(every=4))
    assert [(image.frame, image.time_s) for image in summary.result.images] == [
        (0, 0), (4, 0.4), (8, 0.8),
    ]  # fmt: skip
    assert [[list(one.box) for one in image.boxes] for image in summary.result.images] == [
        [[0, 16, 32, 64]], [[32, 16, 64, 64]], [],
    ]  # fmt: skip
    # Of videos the frames with a called box are drawn.
    drawn = ["drawn/clip.mkv/frame_000000.jpg", "drawn/clip.mkv/frame_000004.jpg"]
    assert [image.drawn for image in summary.result.images] == [*drawn, None]
    assert all((tmp_path / "found" / name).is_file() for name in drawn)
    assert [failed.file for failed in summary.result.failed] == ["broken.mp4"]
    assert "looking   4/4  took" in capsys.readouterr().err
    coco = json.loads((tmp_path / "found" / "coco.json").read_text())
    assert [(image["frame"], image["time_s"]) for image in coco["images"]] == [
        (0, 0), (4, 0.4), (8, 0.8),
    ]  # fmt: skip


def test_the_published_schema_is_up_to_date(images: Path, package, tmp_path: Path) -> None:
    published = files("medkd.inference").joinpath("detections.schema.json").read_text("utf-8")
    assert published == json.dumps(detections_schema(), indent=2) + "\n"
    jsonschema = pytest.importorskip("jsonschema")
    looked_at(images, package, tmp_path / "found", draw=Draw.NONE)
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    jsonschema.Draft202012Validator.check_schema(detections_schema())
    jsonschema.validate(content, detections_schema())
    assert FoundInImages.model_validate(content).images[0].called == 1
