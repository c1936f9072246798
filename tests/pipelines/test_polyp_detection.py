"""The study of detectors, on drawn images in the layout of Kvasir-SEG."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from medkd.importers.box_table import read_boxes
from tests.training.box_cohort import box_cohort

_PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(_PIPELINES)
    import polyp_detection

    return polyp_detection


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Images and negatives as published, and the options of a study of them."""
    drawn = box_cohort(tmp_path / "drawn", images=24, split=False)
    root, negatives = tmp_path / "kvasir", tmp_path / "negatives"
    (root / "images").mkdir(parents=True)
    negatives.mkdir()
    boxes = {}
    for row in read_boxes(drawn.detection.boxes).images.itertuples():
        path = drawn.output / row.image
        if not row.boxes:
            shutil.copy(path, negatives)
            continue
        shutil.copy(path, root / "images")
        names = ("xmin", "ymin", "xmax", "ymax")
        boxes[path.stem] = {
            "width": row.width_px,
            "height": row.height_px,
            "bbox": [{"label": "polyp", **dict(zip(names, box, strict=True))} for box in row.boxes],
        }
    (root / "kavsir_bboxes.json").write_text(json.dumps(boxes))
    given = {
        "images": root,
        "negatives": negatives,
        "out": tmp_path / "study",
        "config": drawn.output / "medkd.yaml",
        "markdown": tmp_path / "table.md",
        "figure": tmp_path / "ap50.svg",
    }
    tracking = f"mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    return [
        *(part for name, value in given.items() for part in (f"--{name}", str(value))),
        *("--methods", "independent", "kd_ml", "--seeds", "0", "1"),
        *("--set", "train.epochs=1", "--set", tracking, "--set", "mlflow.system_metrics=false"),
    ]


@pytest.mark.slow
def test_a_study_is_done_once_and_compares_on_the_same_images(
    study: ModuleType,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert study.main(options) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: len(runs) for name, runs in told["runs"].items()} == {
        "independent": 2,
        "kd_ml": 2,
    }
    # One split for all runs, whatever their seed.
    split = pd.read_parquet(tmp_path / "study" / "splits.parquet")
    tested = set(split.loc[split["role"] == "test", "patient_id"])
    for method in ("independent", "kd_ml"):
        for seed in (0, 1):
            folder = tmp_path / "study" / "runs" / f"{method}-seed{seed}" / "evaluation"
            report = json.loads((folder / "evaluation.json").read_text())
            assert report["run"]["seed"] == seed
            assert set(pd.read_parquet(folder / "detections.parquet")["image"]) == tested
    (comparison,) = told["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("kd_ml", "independent")
    means = [
        np.mean([run["figures"]["ap50"] for run in told["runs"][method]])
        for method in ("kd_ml", "independent")
    ]
    assert comparison["over_images"]["first"] == pytest.approx(means[0])
    assert comparison["over_images"]["difference"]["value"] == pytest.approx(means[0] - means[1])
    table = (tmp_path / "table.md").read_text()
    assert "| KD+ML less Independent |" in table
    assert f"{100 * means[0]:.1f} ± " in table
    shipped = report["shipped"]
    (model,) = [model for model in report["models"] if model["name"] == shipped]
    limits = [f"{100 * model['figures']['ap50'][key]:.1f}" for key in ("value", "lower", "upper")]
    (line,) = [line for line in table.splitlines() if line.startswith("| KD+ML, seed 1 |")]
    assert f"| {limits[0]} ({limits[1]} to {limits[2]}) |" in line
    assert ElementTree.parse(tmp_path / "ap50.svg").getroot().tag.endswith("svg")

    assert "same software" not in table
    runs = told["runs"]
    runs["kd_ml"][1]["trained_by"] = ["medkd 1", "medkd 2"]
    today = runs["kd_ml"][0]["trained_by"]
    assert len(today) == 1
    assert study.report(runs, []).splitlines()[-1] == (
        "Not all runs were trained by the same software: independent-seed0, independent-seed1, "
        f"kd_ml-seed0 by {today[0]}; kd_ml-seed1 by medkd 1, then medkd 2."
    )

    def refuse(*_: object) -> None:
        raise AssertionError("trained or predicted again")

    with monkeypatch.context() as patch:
        patch.setattr(study, "run_train_stage", refuse)
        patch.setattr(study, "run_box_evaluation", refuse)
        assert study.main(options) == 0
        again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["comparisons"] == told["comparisons"]
    assert study.main([*options, "--set", "train.learning_rate=0.1"]) == 1
    assert "was begun with other settings" in capsys.readouterr().err
