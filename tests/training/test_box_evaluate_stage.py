"""The evaluate stage on a small trained run of detectors: files, figures, refusals."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config, load_config
from medkd.errors import MedkdError, ModelPackageError, StageError
from medkd.inference.detect import Detector
from medkd.inference.detector_package import load_detector_package
from medkd.slides.imported_tiles import read_image
from medkd.tracking import connect, read_run_ids, tracking_uri
from medkd.training.box_evaluate_stage import BoxEvaluateResult, run_box_evaluation
from medkd.training.detections_file import read_detections, write_detections

NETWORKS = {"teacher", "student_0", "student_1", "ensemble_dense", "ensemble_boxes"}


@pytest.fixture(scope="module")
def settings(trained_boxes: Path) -> tuple[str, ...]:
    """Assignments that every configuration here has."""
    return (
        "slide_level.bootstrap_resamples=200",
        f"mlflow.tracking_uri=sqlite:///{trained_boxes / 'mlflow.db'}",
    )


@pytest.fixture(scope="module")
def folder(trained_boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the trained experiment for the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield shutil.copytree(trained_boxes, tmp_path_factory.mktemp("boxes") / "experiment")


@pytest.fixture(scope="module")
def done(folder: Path, settings: tuple[str, ...]) -> tuple[Config, BoxEvaluateResult]:
    """The run, evaluated; no test writes to its folder."""
    config = load_config(folder / "medkd.yaml", settings)
    return config, run_box_evaluation(config)


@pytest.fixture(scope="module")
def report(done: tuple[Config, BoxEvaluateResult]) -> dict:
    return json.loads((done[0].run_folder / "evaluation" / "evaluation.json").read_text())


@pytest.fixture
def mine(trained_boxes: Path, tmp_path: Path) -> Path:
    """A copy of the experiment for one test; it was not evaluated."""
    return shutil.copytree(trained_boxes, tmp_path / "mine")


def models(report: dict) -> dict[str, dict]:
    return {model["name"]: model for model in report["models"]}


def by_pycocotools(table: pd.DataFrame) -> tuple[float, float, float]:
    """AP, AP50 and AP75 of the boxes in detections.parquet."""
    truth: dict = {"info": {}, "images": [], "annotations": [], "categories": [{"id": 1}]}
    found = []
    for number, row in enumerate(table.itertuples(), start=1):
        truth["images"].append({"id": number})
        for box in row.true_boxes:
            x1, y1, x2, y2 = map(float, box)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        for box, score in zip(row.boxes, row.scores, strict=True):
            x1, y1, x2, y2 = map(float, box)
            found.append([number, x1, y1, x2 - x1, y2 - y1, float(score), 1])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(np.array(found)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return tuple(judge.stats[:3])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(sides.clip(0)))
    areas = sum(float(np.prod(box[2:] - box[:2])) for box in (one, other))
    return shared / (areas - shared)


def test_figures_are_those_of_the_saved_boxes(done, report: dict) -> None:
    table = pd.read_parquet(done[0].run_folder / "evaluation" / "detections.parquet")
    shipped = models(report)[report["shipped"]]
    values = {name: figure["value"] for name, figure in shipped["figures"].items()}
    ap, ap50, ap75 = by_pycocotools(table)
    assert values["ap50"] > 0
    assert values["ap"] == pytest.approx(ap, abs=1e-6)
    assert values["ap50"] == pytest.approx(ap50, abs=1e-6)
    assert values["ap75"] == pytest.approx(ap75, abs=1e-6)
    threshold = shipped["threshold"]
    found_in, alarms, ious = [], [], []
    for row in table.itertuples():
        boxes = [
            np.float64(box) for box, s in zip(row.boxes, row.scores, strict=True) if s >= threshold
        ]
        best = [
            max((overlap(np.float64(true), box) for box in boxes), default=0.0)
            for true in row.true_boxes
        ]
        ious += best
        if best:
            found_in.append(any(iou >= 0.5 for iou in best))
        else:
            alarms.append(len(boxes))
    assert values["sensitivity"] == pytest.approx(np.mean(found_in))
    assert values["fp_per_negative_image"] == pytest.approx(np.mean(alarms))
    assert values["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-6)


def test_the_boxes_are_those_of_the_package(done) -> None:
    """What is evaluated is what 'medkd infer' gives: by ONNX, from the file, in its pixels."""
    config, _ = done
    package = load_detector_package(config.model_folder)
    saved = read_detections(config.run_folder / "evaluation" / "detections.parquet")
    assert saved.threshold == package.manifest.threshold
    detector, compared = Detector(package), 0
    root = config.detection.boxes.parent
    for image, ours in zip(saved.images.images, saved.images.found[saved.model], strict=True):
        theirs = detector(read_image(root / image))
        assert abs(len(theirs) - len(ours)) <= 1  # one may lie at the least score
        count = min(len(theirs), len(ours), 5)
        np.testing.assert_allclose(theirs.scores[:count], ours.scores[:count], atol=1e-4)
        np.testing.assert_allclose(theirs.boxes[:count], ours.boxes[:count], atol=0.05)
        compared += count
    assert compared > 0


def test_every_network_and_both_forms_of_the_ensemble_are_told(done, report: dict) -> None:
    assert report == json.loads(json.dumps(done[1].report))
    assert (report["schema_version"], report["research_use_only"]) == (1, True)
    assert set(models(report)) == NETWORKS
    assert report["models"][0]["name"] == report["shipped"]
    assert report["shipped"].startswith("ensemble_")
    assert models(report)["teacher"]["network"] == "resnet10"
    assert report["images"]["test"] == {
        "images": 9, "without_boxes": 2, "boxes": 7, "sources": 9, "sources_known": False
    }  # fmt: skip
    for model in report["models"]:
        for name, figure in model["figures"].items():
            if figure["lower"] is not None:
                assert figure["lower"] <= figure["value"] <= figure["upper"], (model["name"], name)
    pairs = [(one["first"], one["second"]) for one in report["comparisons"]]
    assert pairs == [
        *((report["shipped"], name) for name in ("student_0", "student_1", "teacher")),
        ("ensemble_dense", "ensemble_boxes"),
    ]
    first, second = (models(report)[name]["figures"]["ap50"]["value"] for name in pairs[0])
    difference = report["comparisons"][0]["figures"]["ap50"]["difference"]["value"]
    assert difference == pytest.approx(first - second)


def test_mlflow_has_the_figures_the_page_and_the_examples(done, report: dict) -> None:
    config, _ = done
    client, _ = connect(config)
    parent = read_run_ids(config.run_folder, tracking_uri(config))["parent"]
    logged = client.get_run(parent).data.metrics
    shipped = report["models"][0]
    assert logged["test/ap50/ensemble"] == shipped["figures"]["ap50"]["value"]
    assert logged["test/ap50_upper/ensemble"] == shipped["figures"]["ap50"]["upper"]
    assert logged["test/threshold/ensemble"] == shipped["threshold"]
    assert logged["test/ap/teacher"] == models(report)["teacher"]["figures"]["ap"]["value"]
    one = report["comparisons"][0]
    assert logged[f"test/ap50_difference/{one['first']}_minus_student_0"] == pytest.approx(
        one["figures"]["ap50"]["difference"]["value"]
    )
    files = {item.path for item in client.list_artifacts(parent, "evaluation")}
    assert files == {
        f"evaluation/{name}"
        for name in ("detections.parquet", "evaluation.html", "evaluation.json", "examples")
    }
    drawn = {item.path for item in client.list_artifacts(parent, "evaluation/examples")}
    assert drawn == {f"evaluation/{example['file']}" for example in report["examples"]}


class _Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_shows_every_model_and_example(done, report: dict) -> None:
    page = _Page((done[0].run_folder / "evaluation" / "evaluation.html").read_text("utf-8"))
    assert all(source.startswith("data:image/") for source in page.sources)
    assert len(page.sources) == 2 + len(report["examples"])
    assert not {"script", "link", "iframe"} & page.tags
    for name in ("ensemble (dense)", "ensemble (boxes)", "student 0", "student 1", "teacher"):
        assert name in page.text
    for example in report["examples"]:
        assert example["why"] in page.text
    words = " ".join(page.text.split())
    assert "Only 7 test images have a box: fewer than 10 say little, whatever the figure." in words
    assert "Nobody knows which test images are of one patient" in words


def test_evaluated_again_it_is_the_same_and_another_run_beside_it(
    done, report: dict, folder: Path, settings: tuple[str, ...]
) -> None:
    runs = done[0].run_folder.parent
    shutil.copytree(runs / "small", runs / "twin")
    result = CliRunner().invoke(
        app,
        [
            "evaluate", "--config", str(folder / "medkd.yaml"),
            *(word for setting in settings for word in ("--set", setting)),
            "--against", "twin", "--out", str(folder / "out"),
        ],
    )  # fmt: skip
    shutil.rmtree(runs / "twin")
    assert result.exit_code == 0, result.output
    for name in (*NETWORKS, "twin"):
        assert name in result.output
    assert "9 test images, 2 without a box" in result.output
    again = json.loads((folder / "out" / "evaluation.json").read_text())
    for part in ("models", "comparisons", "examples", "images", "model"):
        assert again[part] == report[part]
    for example in ("detections.parquet", *(one["file"] for one in report["examples"])):
        first = (runs / "small" / "evaluation" / example).read_bytes()
        assert (folder / "out" / example).read_bytes() == first
    (twin,) = again["against"]
    found = twin["comparison"]["figures"]["ap50"]
    assert (twin["run"], found["difference"]["value"], found["p_value"]) == ("twin", 0, 1)
    assert twin["figures"] == report["models"][0]["figures"]
    assert "twin" in _Page((folder / "out" / "evaluation.html").read_text("utf-8")).text


def refused(config: Config, error: type[MedkdError], message: str, **options: object) -> None:
    with pytest.raises(error, match=message) as told:
        run_box_evaluation(config, **options)
    assert "\n" not in str(told.value)
    assert not (config.run_folder / "evaluation").exists()


def test_runs_that_cannot_be_compared_are_refused(
    done, mine: Path, settings: tuple[str, ...]
) -> None:
    config = load_config(mine / "medkd.yaml", settings)
    other = config.run_folder.parent / "other"
    for name, message in (
        ("other", "is neither a run of this output nor a folder. Runs here: small."),
        ("small", "is the run that is evaluated"),
    ):
        refused(config, StageError, message, against=(name,))
    shutil.copytree(config.run_folder, other)
    refused(config, StageError, "no evaluation of a detector is there", against=("other",))
    path = other / "evaluation" / "detections.parquet"
    saved = read_detections(done[0].run_folder / "evaluation" / "detections.parquet")
    images = saved.images
    for changed, message in (
        (
            replace(images, images=("images/x.png", *images.images[1:])),
            "was tested on other images: 1 are in this run alone, 1 in the other, such as",
        ),
        (
            replace(images, truth=images.truth + (images.truth > 0)),
            "was tested with other true boxes, such as those of",
        ),
    ):
        write_detections(path, replace(saved, images=changed))
        refused(config, StageError, message, against=("other",))
    write_detections(path, replace(saved, classes=("adenoma",)))
    refused(config, StageError, "looked for adenoma, and this run for polyp", against=("other",))
    write_detections(path, replace(saved, weights={"student_0": "0" * 64}))
    refused(config, StageError, "other weights of student_0 than it has now", against=("other",))


def test_a_run_that_is_not_what_was_trained_is_refused(
    mine: Path, settings: tuple[str, ...]
) -> None:
    def variant(*assignments: str) -> Config:
        return load_config(mine / "medkd.yaml", (*settings, *assignments))

    config = variant()
    refused(variant("train.name=later"), StageError, "holds no finished training")
    refused(
        variant("detection.anchor_sizes=[2.0, 3.0]"),
        StageError,
        r"was trained with detection.anchor_sizes 2.0, 2.8, and it is 2.0, 3.0 now",
    )
    split = pd.read_parquet(config.splits_file)
    role = split["role"].map({"train": "train", "validation": "test", "test": "validation"})
    split.assign(role=role).to_parquet(config.splits_file)
    refused(config, StageError, "was trained on other images, boxes or roles than those now")
    split.to_parquet(config.splits_file)
    (config.model_folder / "model_card.md").write_text("changed")
    refused(config, ModelPackageError, "model_card.md")
    (config.run_folder / "networks" / "student_0.safetensors").unlink()
    refused(config, MedkdError, "no such weights")
