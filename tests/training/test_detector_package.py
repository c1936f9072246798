"""What a finished training for detection ships, and how it chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from medkd.config import Config, load_config
from medkd.datasets.boxes import box_items
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.importers.box_table import SCHEMA, BoxTable
from medkd.inference.detect import Detector
from medkd.inference.detector_package import DetectorPackage, load_detector_package
from medkd.training import detector_package
from medkd.training.box_set import BoxSet
from medkd.training.cohorts import build_cohort, configured_task
from medkd.training.detector_package import detector_onnx, write_detector_package
from medkd.training.training_set import Shipped
from tests.inference.square_finders import finder_onnx, image_with_square

SETTINGS = (
    "task=detection",
    "detection.image_px=64",
    "detection.strides=[8, 16, 32]",
    "detection.channels=16",
    "train.method=dml",
    "train.students=[{network: resnet10, width: 0.125}, {network: resnet10, width: 0.125}]",
    "train.augment.where=loader",
    "train.batch_size=4",
    "train.device=cpu",
    "train.loader_workers=0",
    "mlflow.registered_model=",
)
# Of the validation images: two with a square, one with nothing.
SQUARES = ((8, 8, 24, 24), (16, 8, 40, 32), None)


def experiment(folder: Path, *assignments: str) -> Config:
    return load_config(None, (*SETTINGS, f"output={folder}", "train.name=run", *assignments))


def box_set(config: Config, folder: Path) -> BoxSet:
    rows = []
    for role in ("train", "validation", "test"):
        for number, box in enumerate(SQUARES):
            name = f"{role}_{number}.png"
            Image.fromarray(image_with_square((64, 64), box)).save(folder / name)
            row = dict.fromkeys(SCHEMA.names)
            row |= {"image": name, "width_px": 64, "height_px": 64, "role": role}
            rows.append(row | {"boxes": [box] if box else [], "labels": ["polyp"] if box else []})
    table = BoxTable(pd.DataFrame(rows, columns=SCHEMA.names), folder, ("polyp",))
    items = {
        role: box_items(table, role=role, classes=("polyp",))
        for role in ("train", "validation", "test")
    }
    return BoxSet(config, table, {row["image"]: row["role"] for row in rows}, items)


def shipped(config: Config, folder: Path) -> DetectorPackage:
    graph = expand(load_method("dml"), 2)
    cohort = build_cohort(config, graph).eval()
    write_detector_package(
        config, box_set(config, folder), Shipped(graph, cohort, graph.deployed, 3, "abc")
    )
    return load_detector_package(config.model_folder)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch):
    """Students that find squares take the networks' place: ``by_hand((score, shift), ...)``."""

    def put(*students: tuple[float, float]) -> None:
        models = iter([finder_onnx(*student) for student in students])
        monkeypatch.setattr(detector_package, "detector_onnx", lambda *_: next(models))

    return put


def test_the_onnx_model_is_the_network(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    task = configured_task(config)
    network = build_cohort(config, expand(load_method("dml"), 2)).alone("student_0").eval()
    model = detector_onnx(network, task, 64)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [64, 64, 3])
    # Two sizes on each of 8 x 8, 4 x 4 and 2 x 2 cells.
    assert (given.name, given.shape[1:]) == ("predictions", [168, 5])
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        expected = task.predictions(logits).numpy()
    assert np.ptp(expected[..., 0]) > 1e-4  # something that could be wrong
    for count in (1, 3):
        (found,) = session.run(None, {"images": images[:count]})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)
    assert found[..., 1:].min() >= 0
    assert found[..., 1:].max() <= 64


def test_two_that_agree_are_averaged(tmp_path: Path, by_hand) -> None:
    by_hand((0.9, 0.0), (0.5, 0.0))
    package = shipped(experiment(tmp_path), tmp_path)
    manifest = package.manifest
    assert manifest.ensemble.kind == "dense"
    assert manifest.ensemble.validation_ap50.model_dump() == {"dense": 1.0, "boxes": 1.0}
    # Every detection is right: the threshold is the lowest score, which is every one's.
    assert manifest.threshold == pytest.approx(0.7)
    assert manifest.validation["sensitivity"] == manifest.validation["mean_iou"] == 1
    assert manifest.validation["fp_per_negative_image"] == 0
    found = Detector(package)(image_with_square((128, 128), (16, 16, 48, 48)))
    assert found.boxes.tolist() == [[16, 16, 48, 48]]
    assert found.scores[0] >= manifest.threshold


def test_what_is_better_on_validation_images_ships(tmp_path: Path, by_hand) -> None:
    # The second gives each box 12 px beside the square. The mean lies 6 px beside it: of 16 px,
    # IoU 10 / 22; of 24 px, 18 / 30. Fused boxes: each student's own at half its score.
    by_hand((0.9, 0.0), (0.8, 12.0))
    manifest = shipped(experiment(tmp_path), tmp_path).manifest
    ap50 = manifest.ensemble.validation_ap50
    # Dense: both score 0.85; the wrong one comes first, the right one finds half of the boxes with
    # precision 1/2: at 51 of 101 recalls.
    assert ap50.dense == pytest.approx(51 / 101 / 2)
    # Fused: scores of 0.45, right, before those of 0.4, wrong.
    assert ap50.boxes == pytest.approx(1)
    assert manifest.ensemble.kind == "boxes"
    assert manifest.threshold == pytest.approx(0.45)
    assert manifest.validation["ap50"] == pytest.approx(1)


def test_what_the_configuration_says_ships(tmp_path: Path, by_hand) -> None:
    by_hand((0.9, 0.0), (0.8, 12.0))
    manifest = shipped(experiment(tmp_path, "detection.ensemble=dense"), tmp_path).manifest
    assert manifest.ensemble.kind == "dense"
    assert manifest.validation["ap50"] == manifest.ensemble.validation_ap50.dense
    assert manifest.ensemble.validation_ap50.boxes == pytest.approx(1)


def test_nothing_found_is_told(tmp_path: Path, by_hand, capsys) -> None:
    by_hand((0.9, 30.0), (0.9, 30.0))
    package = shipped(experiment(tmp_path), tmp_path)
    assert package.manifest.threshold == 1
    assert "the model will call none" in capsys.readouterr().err


def test_where_it_comes_from_and_what_it_is_made_of(tmp_path: Path, by_hand) -> None:
    by_hand((0.9, 0.0), (0.5, 0.0))
    config = experiment(tmp_path)
    package = shipped(config, tmp_path)
    manifest = package.manifest
    origin = manifest.provenance
    assert (origin.run_id, origin.method, origin.best_epoch) == ("abc", "dml", 3)
    assert origin.images == {"train": 3, "validation": 3, "test": 3}
    assert origin.boxes == {"train": 2, "validation": 2, "test": 2}
    assert origin.images_without_boxes == {"train": 1, "validation": 1, "test": 1}
    assert (manifest.name, manifest.classes, manifest.image_px) == ("run", ("polyp",), 64)
    assert manifest.anchors.strides == (8, 16, 32)
    cohort = build_cohort(config, expand(load_method("dml"), 2))
    for student in manifest.students:
        own = cohort.alone(student.name)
        weights = load((package.folder / student.safetensors).read_bytes())
        assert set(weights) == set(own.state_dict())
        assert student.parameters == sum(weight.numel() for weight in own.parameters())
