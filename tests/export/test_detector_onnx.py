"""A detector as one ONNX file: what another program finds with nothing but the exported folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from medkd.cli_export import export
from medkd.errors import ConfigError, ModelPackageError, OutputError
from medkd.export.kinds import ExportKind
from medkd.inference.detect_stage import detect_in_images
from medkd.inference.detector_package import load_detector_package, write_package_of_detector
from medkd.inference.image_files import find_images
from medkd.networks.anchor_grid import AnchorGrid
from medkd.networks.detector import build_detector
from medkd.networks.zoo import build_network, count_parameters
from medkd.tasks.detection import Detection
from medkd.training.detector_package import detector_onnx
from medkd.training.export import export_safetensors
from tests.inference.square_finders import IMAGE_PX, finder_onnx, image_with_square, write_finders

FUSED = {"kind": "boxes", "fusion_iou": 0.55, "validation_ap50": {"dense": 0.5, "boxes": 0.75}}
CLASSES = ("polyp", "adenoma")
GRID = AnchorGrid(IMAGE_PX, (16, 32), ((32.0,), (64.0,)), (1.0,))


def network(seed: int) -> nn.Module:
    """Not trained, but sure of some anchors and not of others."""
    torch.manual_seed(seed)
    backbone = build_network("resnet10", classes=2, width=0.0625)
    detector = build_detector(backbone, GRID, len(CLASSES), channels=16)
    last = detector.classifier.classification.cls_logits
    nn.init.normal_(last.weight, std=0.3)
    nn.init.zeros_(last.bias)
    return detector.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two real networks, for boxes of two classes."""
    folder = tmp_path_factory.mktemp("detector")
    by_hand = load_detector_package(write_finders(folder / "by_hand"))
    content = by_hand.manifest.model_dump(mode="json", exclude={"files"})
    content |= {"classes": list(CLASSES), "threshold": 0.55}
    content["selection"] |= {"least_score": 0.3, "nms_iou": 0.305}
    content["anchors"] |= {"strides": [16, 32], "sizes": [2.0], "ratios": [1.0]}
    files = {}
    for number, student in enumerate(content["students"]):
        detector = network(number)
        student |= {"network": "resnet10", "width": 0.0625}
        student["parameters"] = count_parameters(detector)
        files[student["onnx"]] = detector_onnx(detector, Detection(GRID, CLASSES), IMAGE_PX)
        files[student["safetensors"]] = export_safetensors(detector)
    write_package_of_detector(folder / "model", content, files)
    return folder / "model"


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    export(model, to=ExportKind.ONNX, out=out)
    return out


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def record_of(folder: Path) -> dict:
    return json.loads((folder / "export.json").read_text())


def noise(count: int, height: int = IMAGE_PX, width: int = IMAGE_PX) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3), np.uint8)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    wide, high = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = max(wide, 0) * max(high, 0)
    area = [np.prod(box[2:] - box[:2]) for box in (one, other)]
    return float(shared / (sum(area) - shared))


def boxes_by_another_program(folder: Path, pixels: np.ndarray) -> list[tuple]:
    """Score, class, called and box, from what the exported folder says and nothing of medkd's."""
    record = record_of(folder)
    manifest, square = record["manifest"], record["square"]
    side, selection = manifest["image_px"], manifest["selection"]
    assert square == {"resampling": "bilinear, antialiased", "place": "upper left", "fill": 0}
    assert manifest["keep_aspect"] is True
    height, width = pixels.shape[:2]
    high, wide = (max(1, round(one * side / max(height, width))) for one in (height, width))
    image = np.full((1, side, side, 3), square["fill"], np.uint8)
    image[0, :high, :wide] = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR)
    assert record["boxes_from"] == ["predictions"]
    predictions = run(folder / "model.onnx", image)["predictions"][0].astype(np.float64)
    candidates = sorted(
        (
            (-score, number, name, anchor[-4:])
            for number, anchor in enumerate(predictions)
            for name, score in zip(manifest["classes"], anchor[:-4], strict=True)
            if score >= selection["least_score"]
        ),
        key=lambda one: one[:3],
    )[: record["candidates"]]
    kept: list[tuple] = []
    for minus_score, _, name, box in candidates:
        of_class = [other for _, of, other in kept if of == name]
        if all(iou(box, other) <= selection["nms_iou"] for other in of_class):
            kept.append((-minus_score, name, box))
    back = np.array([width / wide, height / high] * 2)
    found = []
    for score, name, box in kept[: selection["most"]]:
        x1, y1, x2, y2 = np.clip(box * back, 0, [width, height, width, height])
        if x2 > x1 and y2 > y1:
            found.append((score, name, score >= manifest["threshold"], (x1, y1, x2, y2)))
    return found


def test_each_student_gives_what_its_own_file_gives_and_the_mean_is_theirs(model, exported) -> None:
    images = noise(3)
    found = run(exported / "model.onnx", images)
    assert list(found) == ["predictions", "student_0_predictions", "student_1_predictions"]
    own = [run(model / "students" / f"student_{n}.onnx", images)["predictions"] for n in (0, 1)]
    # 4 x 4 and 2 x 2 cells, two classes and a box.
    assert found["predictions"].shape == (3, 20, 6)
    assert np.abs(own[0] - own[1])[..., :2].max() > 0.1  # of one network the mean would be itself
    for number, values in enumerate(own):
        np.testing.assert_allclose(found[f"student_{number}_predictions"], values, atol=1e-4)
    np.testing.assert_allclose(found["predictions"], (own[0] + own[1]) / 2, atol=1e-4)


def test_students_give_torch_s_boxes(exported) -> None:
    images = noise(2)
    found = run(exported / "model.onnx", images)["student_1_predictions"]
    with torch.no_grad():
        logits = network(1)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(found[..., :2], torch.sigmoid(logits[..., :2]), atol=1e-4)


def test_the_file_says_what_it_is(model, exported) -> None:
    read = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(read, full_check=True)
    assert [(one.domain, one.version) for one in read.opset_import] == [("", 18)]
    [images] = read.graph.input
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    free, *fixed = images.type.tensor_type.shape.dim
    assert (free.HasField("dim_value"), [one.dim_value for one in fixed]) == (False, [64, 64, 3])
    assert {one.key: one.value for one in read.metadata_props} == {
        "model": "by-hand 1",
        "model_sha256": load_detector_package(model).sha256,
        "classes": "polyp, adenoma",
        "image": "64 px",
        "ensemble": "dense",
        "research_use_only": "true",
    }


def test_the_record_says_how_well_it_agreed_and_how_predictions_become_boxes(
    model, exported
) -> None:
    record = record_of(exported)
    package = load_detector_package(model)
    assert (record["kind"], record["opset"]) == ("onnx", 18)
    assert record["model_sha256"] == package.sha256
    assert (record["boxes_from"], record["candidates"]) == (["predictions"], 1000)
    assert record["manifest"]["ensemble"]["kind"] == "dense"
    assert record["manifest"]["selection"] == {"least_score": 0.3, "nms_iou": 0.305, "most": 100}
    agreement = record["agreement"]
    assert (agreement["of"], agreement["images"]) == ("the ONNX students of the package", 20)
    assert 0 <= agreement["largest_difference"] < agreement["tolerance"] == 1e-4
    assert 0 <= agreement["largest_difference_px"] < agreement["tolerance_px"] == 0.01
    assert sorted(path.name for path in exported.iterdir()) == ["export.json", "model.onnx"]


def infer_s_boxes(model: Path, pixels: np.ndarray, folder: Path) -> list[tuple]:
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "image.png")
    files = find_images([folder / "image.png"]).files
    detect_in_images(files, load_detector_package(model), folder / "found")
    (image,) = json.loads((folder / "found" / "detections.json").read_text())["images"]
    return [(one["score"], one["class"], one["called"], one["box"]) for one in image["boxes"]]


def test_another_program_finds_the_boxes_that_infer_finds(model, exported, tmp_path) -> None:
    # As high as the square, so that the pixels are the same whoever resizes them.
    (pixels,) = noise(1, height=IMAGE_PX, width=48)
    expected = infer_s_boxes(model, pixels, tmp_path / "infer")
    found = boxes_by_another_program(exported, pixels)
    assert [one[1:3] for one in found] == [one[1:3] for one in expected]
    # 20 anchors of two classes: enough stay, and enough are left out.
    assert 8 < len(found) < 25
    assert {one[1] for one in found} == set(CLASSES)
    assert {one[2] for one in found} == {True, False}
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0] == pytest.approx(theirs[0], abs=1e-4)
        assert mine[3] == pytest.approx(theirs[3], abs=0.02)


def test_another_program_finds_the_way_back_to_a_large_image(tmp_path) -> None:
    # An eighth, black below.
    pixels = image_with_square((512, 256), (128, 64, 256, 192))
    by_hand = write_finders(tmp_path / "model")
    export(by_hand, to=ExportKind.ONNX, out=tmp_path / "onnx")
    found = boxes_by_another_program(tmp_path / "onnx", pixels)
    assert found == [(pytest.approx(0.7), "polyp", True, (128, 64, 256, 192))]
    ((score, *rest),) = infer_s_boxes(by_hand, pixels, tmp_path / "infer")
    assert (score, *rest) == (pytest.approx(0.7), "polyp", True, [128, 64, 256, 192])


def test_what_is_told(tmp_path, capsys) -> None:
    export(write_finders(tmp_path / "model"), to=ExportKind.ONNX, out=tmp_path / "out")
    told = capsys.readouterr().out
    assert "ONNX opset 18, IR version 10.\n" in told
    assert (
        "Boxes are selected from 'predictions', the mean of the students' predictions; export.json "
        "says how.\n"
    ) in told
    assert (
        "Held against the ONNX students of the package on 20 drawn images: no probability differs "
        "by more than 0.0e+00 (0.0001 is allowed), no box by more than 0.0e+00 px (0.01 px is "
        "allowed).\n"
    ) in told
    assert told.endswith(f"Export: {tmp_path / 'out'}\n")


def test_without_a_dense_mean_that_ships_there_is_none(tmp_path, capsys) -> None:
    students = {"student_0": (0.9, 0.0), "student_1": (0.5, 10.0)}
    folder = write_finders(tmp_path / "model", students, ensemble=FUSED)
    export(folder, to=ExportKind.ONNX, out=tmp_path / "out")
    pixels = image_with_square((64, 64), (10, 8, 26, 24))
    found = run(tmp_path / "out" / "model.onnx", pixels[None])
    assert found.keys() == {"student_0_predictions", "student_1_predictions"}
    assert found["student_0_predictions"][0, 0] == pytest.approx([0.9, 10, 8, 26, 24])
    assert found["student_1_predictions"][0, 0] == pytest.approx([0.5, 20, 8, 36, 24])
    record = record_of(tmp_path / "out")
    assert record["boxes_from"] == ["student_0_predictions", "student_1_predictions"]
    assert record["manifest"]["ensemble"]["fusion_iou"] == 0.55
    assert (
        "There is no 'predictions' of all students: boxes are selected from each one's and then "
        "fused, where they overlap by more than 0.55; export.json says how.\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", [kind for kind in ExportKind if kind is not ExportKind.ONNX], ids=str
)
def test_other_kinds_are_for_models_that_call_slides(kind, tmp_path) -> None:
    folder = write_finders(tmp_path / "model")
    with pytest.raises(ConfigError) as error:
        export(folder, to=kind, out=tmp_path / "out")
    assert str(error.value) == (
        f"{folder}: finds boxes in images, and is exported to onnx alone, not to {kind.value}. "
        "Give --to onnx; docs/export.md says what comes out."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_int8_is_for_models_that_call_slides(tmp_path) -> None:
    folder = write_finders(tmp_path / "model")
    with pytest.raises(ConfigError) as error:
        export(folder, to=ExportKind.ONNX, out=tmp_path / "out", int8=True, calibrate=tmp_path)
    assert str(error.value) == (
        f"{folder}: finds boxes in images, and 8-bit integers are for models that call slides. "
        "Leave out --int8 and --calibrate."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def refusal(model: Path, out: Path) -> str:
    with pytest.raises(ModelPackageError) as error:
        export(model, to=ExportKind.ONNX, out=out)
    assert "\n" not in str(error.value)
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    return str(error.value)


def test_a_damaged_package(tmp_path) -> None:
    folder = write_finders(tmp_path / "model")
    (folder / "students" / "student_1.onnx").write_bytes(finder_onnx(0.4))
    assert refusal(folder, tmp_path / "out") == (
        f"{folder}: 'students/student_1.onnx' is not the file that was packaged (its SHA-256 "
        "differs). Get the package anew from where it was made."
    )


def test_a_broken_student(tmp_path) -> None:
    folder = write_finders(tmp_path / "model", {"student_0": (0.9, 0.0), "student_1": (1.5, 0.0)})
    assert "student_1 gave a probability that is not a number between 0 and 1" in refusal(
        folder, tmp_path / "out"
    )


def test_a_file_that_finds_something_else_is_not_left_behind(tmp_path, monkeypatch) -> None:
    """The square's box 1 px further right, and its score higher, in the file alone."""
    folder, other = write_finders(tmp_path / "model"), tmp_path / "other"
    students = {"student_0": (0.9, 0.0), "student_1": (0.75, 1.0)}
    shifted = load_detector_package(write_finders(other, students))
    from medkd.export import detector_onnx as writer

    model = writer.detector_onnx(shifted)
    shutil.rmtree(other)
    monkeypatch.setattr(writer, "detector_onnx", lambda _: model)
    assert refusal(folder, tmp_path / "out") == (
        f"{folder}: as one ONNX model its probabilities differ from the ONNX students of the "
        "package by up to 0.25, and its boxes by up to 1 px; 0.0001 and 0.01 px are allowed. "
        "Nothing was written. Please report it, with the names of the networks."
    )


def test_nothing_is_written_over(tmp_path) -> None:
    folder = write_finders(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is there already") as error:
        export(folder, to=ExportKind.ONNX, out=tmp_path / "out")
    assert str(error.value).startswith(f"{tmp_path / 'out'}: ")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(OutputError, match="lies in the model package"):
        export(folder, to=ExportKind.ONNX, out=folder / "out")
