"""Leaks planted in a tiled cohort are found before training; a clean cohort passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simplejpeg

from medkd.config import Config
from medkd.datasets.leakage import LeakageReport, check_leakage
from medkd.datasets.split import read_split
from medkd.datasets.tables import SlideRow
from medkd.errors import StageError
from medkd.slides.store import TileStore, writing_store
from medkd.training.data import load_tile_table
from tests.conftest import Cohort


def check(config: Config, rows: tuple[SlideRow, ...], *weights: Path) -> LeakageReport:
    return check_leakage(config, rows, load_tile_table(config, rows).tiles, weights)


def report(config: Config) -> dict:
    return json.loads((config.run_folder / "leakage.json").read_text())


def slide_of(cohort: Cohort, role: str, number: int = 0) -> SlideRow:
    split = read_split(cohort.config.splits_file)
    patients = set(split.loc[split["role"] == role, "patient_id"])
    return [row for row in cohort.rows if row.patient_id in patients][number]


def plant(cohort: Cohort, role: str, change) -> tuple[str, str]:
    """Put the changed copy of a training tile over a tile of ``role``; gives both places."""
    folder = cohort.config.tiles_folder
    source, target = (slide_of(cohort, of).slide_id for of in ("train", role))
    with TileStore(folder / f"{source}.zip") as store:
        # Of the tiles the one with the most to see.
        tile = max(store.tiles(), key=lambda tile: store.read(tile.x, tile.y).std())
        jpeg = change(store.read_bytes(tile.x, tile.y))
    with TileStore(folder / f"{target}.zip") as store:
        kept = [(tile, store.read_bytes(tile.x, tile.y)) for tile in store.tiles()]
    with writing_store(folder / f"{target}.zip") as writer:
        for number, (stored, data) in enumerate(kept):
            writer.add(stored, jpeg if number == 3 else data)
    first, second = tile, kept[3][0]
    return f"{source} ({first.x}, {first.y})", f"{target} ({second.x}, {second.y})"


def encoded_again(jpeg: bytes) -> bytes:
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    return simplejpeg.encode_jpeg(pixels, 60, "RGB", "420")


def mirrored(jpeg: bytes) -> bytes:
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB")[:, ::-1]
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", "444")


def turned(jpeg: bytes) -> bytes:
    pixels = np.rot90(simplejpeg.decode_jpeg(jpeg, "RGB"))
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 75, "RGB", "420")


def test_a_clean_cohort_passes_and_its_report_says_what_was_compared(cohort: Cohort) -> None:
    found = check(cohort.config, cohort.rows)
    assert found.findings == ()
    written = report(cohort.config)
    assert written["findings"] == []
    assert written["allowed"] == []
    index = pd.read_parquet(cohort.config.tiles_folder / "index.parquet")
    assert written["tiles"] + written["blank_tiles"] == len(index)
    assert written["tiles"] > 0.9 * len(index)
    split = read_split(cohort.config.splits_file)
    assert written["roles"]["test"] == split.loc[split["role"] == "test", "patient_id"].tolist()
    assert written["seen"] == {name: written["roles"][name] for name in ("train", "validation")}
    assert set(written["confounding"]) == {"site", "scanner"}
    assert written["confounding"]["scanner"] is None


@pytest.mark.parametrize(
    ("change", "kind", "alike"),
    [
        (bytes, "duplicate_tiles", "the same tile"),
        (encoded_again, "near_duplicate_tiles", "nearly the same tile"),
        (mirrored, "near_duplicate_tiles", "nearly the same tile"),
        (turned, "near_duplicate_tiles", "nearly the same tile"),
    ],
)
@pytest.mark.parametrize("role", ["validation", "test"])
def test_a_planted_tile_is_found(cohort: Cohort, role: str, change, kind: str, alike: str) -> None:
    first, second = plant(cohort, role, change)
    with pytest.raises(StageError) as error:
        check(cohort.config, cohort.rows)
    assert str(error.value) == (
        f"{cohort.config.run_folder / 'leakage.json'}: train and {role}: {alike} 1 time, such as "
        f"{first} and {second}. Mend the table of slides or the split; to train on it on purpose, "
        f"set data.allow_leakage=[{kind}]."
    )
    (finding,) = report(cohort.config)["findings"]
    assert (finding["kind"], finding["count"], finding["allowed"]) == (kind, 1, False)
    assert finding["examples"] == [[first, second]]


def test_blank_tiles_raise_no_alarm(cohort: Cohort) -> None:
    before = check(cohort.config, cohort.rows)
    blank = simplejpeg.encode_jpeg(np.full((64, 64, 3), 243, np.uint8), 90, "RGB", "444")
    for role in ("validation", "test"):
        plant(cohort, role, lambda _: blank)
    found = check(cohort.config, cohort.rows)
    assert found.findings == ()
    assert found.blank_tiles in range(before.blank_tiles + 1, before.blank_tiles + 3)


def test_a_deliberate_leak_is_allowed_and_recorded(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(cohort, "test", mirrored)
    config = cohort.variant("data.allow_leakage=[near_duplicate_tiles]")
    check(config, cohort.rows)
    assert (
        "warning: allowed by data.allow_leakage: train and test: nearly the same tile 1 time"
        in (capsys.readouterr().err)
    )
    written = report(config)
    assert written["allowed"] == ["near_duplicate_tiles"]
    assert [finding["allowed"] for finding in written["findings"]] == [True]
    assert config.resolved()["data"]["allow_leakage"] == ["near_duplicate_tiles"]
    # Another kind is not allowed with it.
    plant(cohort, "validation", bytes)
    with pytest.raises(StageError, match=r"=\[near_duplicate_tiles, duplicate_tiles\]\.$"):
        check(config, cohort.rows)


def test_training_refuses_before_anything_begins(cohort: Cohort) -> None:
    from medkd.training.train_stage import run_train_stage

    plant(cohort, "test", turned)
    with pytest.raises(StageError, match=r"train and test: nearly the same tile 1 time"):
        run_train_stage(cohort.config, cohort.rows)
    assert [path.name for path in cohort.config.run_folder.iterdir()] == ["leakage.json"]
    assert not list(cohort.config.output.glob("*.db"))


def test_mlflow_has_the_report_and_what_was_allowed(cohort: Cohort) -> None:
    from mlflow import MlflowClient

    from medkd.distill.graph import expand
    from medkd.distill.method import load_method
    from medkd.tracking import tracking_uri
    from medkd.training.cohorts import build_cohort
    from medkd.training.run_tracking import CohortTracker
    from medkd.training.tile_set import load_tile_set
    from medkd.training.train_stage import write_settings

    kinds = "duplicate_tiles, shared_slides"
    config = cohort.variant(f"data.allow_leakage=[{kinds}]", "mlflow.system_metrics=false")
    check(config, cohort.rows)
    method = load_method("independent")
    write_settings(config, method)
    graph = expand(method, 2)
    data = load_tile_set(config, cohort.rows)
    tracker = CohortTracker(config, graph, build_cohort(config, graph), data)
    tracker.finish("FINISHED")
    client = MlflowClient(tracking_uri=tracking_uri(config))
    assert client.get_run(tracker.run_id).data.tags["medkd.allowed_leakage"] == kinds
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert "leakage.json" in files


def test_a_copied_slide_is_found(cohort: Cohort) -> None:
    first, second = (slide_of(cohort, role).slide_id for role in ("train", "test"))
    folder = cohort.config.tiles_folder
    records = [json.loads((folder / f"{name}.json").read_text()) for name in (first, second)]
    records[1]["slide"]["fingerprint"] = records[0]["slide"]["fingerprint"]
    (folder / f"{second}.json").write_text(json.dumps(records[1]))
    with pytest.raises(
        StageError, match=rf"train and test share slides \(1\), such as {first} and {second}\."
    ):
        check(cohort.config, cohort.rows)


def test_weights_of_another_fold_are_found(cohort: Cohort) -> None:
    """A teacher of fold 0 trained on those whom fold 1 tests."""
    folds = ("split.scheme=kfold", "split.folds=4")
    from medkd.datasets.split import run_split_stage

    run_split_stage(cohort.rows, cohort.variant(*folds))
    first, second = (cohort.variant(*folds, f"split.fold={fold}") for fold in (0, 1))
    assert first.run_folder.name == "small-fold0"
    check(first, cohort.rows)
    weights = first.run_folder / "networks" / "teacher.safetensors"
    check(first, cohort.rows, weights)
    with pytest.raises(StageError, match=r"the weights \S+ were chosen by test patients \(4\)"):
        check(second, cohort.rows, weights)
    kinds = {finding["kind"] for finding in report(second)["findings"]}
    assert kinds == {"seen_by_weights", "validation_used_for_test"}
    assert set(report(second)["seen"]["train"]) >= set(report(first)["roles"]["train"])


def test_weights_of_nobody_knows_where_are_told(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort.folder / "somewhere" / "else" / "w.safetensors"
    check(cohort.config, cohort.rows, path)
    assert f"nobody knows which patients trained {path}." in capsys.readouterr().err
    assert report(cohort.config)["weights"] == [{"file": str(path), "known": False}]


def test_confounding_is_told(cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(
        SlideRow(r.slide_id, r.path, r.patient_id, r.label, site=f"of {r.label}")
        for r in cohort.rows
    )
    check(cohort.config, rows)
    told = capsys.readouterr().err
    assert "warning: site and class go together (Cramer's V 1.00, p " in told
    assert report(cohort.config)["confounding"]["site"]["cramers_v"] == pytest.approx(1)


def test_stores_of_places_are_compared_by_the_slides_pixels(cohort: Cohort) -> None:
    """A slide of one role laid over a slide of another; its file is known under another print."""
    from medkd.slides.tile_stage import run_tile_stage

    source, target = slide_of(cohort, "train"), slide_of(cohort, "test")
    shutil.copyfile(source.path, target.path)
    config = cohort.variant("tile.store=coordinates")
    run_tile_stage(cohort.rows, config.tile, config.tiles_folder)
    with pytest.raises(StageError) as error:
        check(config, cohort.rows)
    kinds = {finding["kind"] for finding in report(config)["findings"]}
    assert kinds == {"shared_slides", "duplicate_tiles"}
    assert f"train and test share slides (1), such as {source.slide_id}" in str(error.value)
