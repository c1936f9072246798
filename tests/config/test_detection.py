"""The detection section of a configuration file."""

from __future__ import annotations

from pathlib import Path

from medkd.config import load_config


def test_the_table_of_boxes_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "polyp.yaml"
    path.write_text("task: detection\ntrain: {augment: {where: loader}}\n")
    assert load_config(path).detection.boxes == tmp_path / "boxes.parquet"
    path.write_text(
        "task: detection\ndetection: {boxes: a/b.parquet}\ntrain: {augment: {where: loader}}\n"
    )
    assert load_config(path).detection.boxes == tmp_path / "a" / "b.parquet"
    elsewhere = load_config(path, ("detection.boxes=c.parquet",)).detection.boxes
    assert elsewhere == Path.cwd() / "c.parquet"


def test_null_is_a_value(tmp_path: Path) -> None:
    path = tmp_path / "medkd.yaml"
    path.write_text("mlflow: {registered_model: polyps}\n")
    for text in ("null", "~", ""):
        config = load_config(path, (f"mlflow.registered_model={text}",))
        assert config.mlflow.registered_model is None


def test_the_polyp_configuration_can_be_read() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "polyp.yaml"
    config = load_config(path)
    assert config.task == "detection"
    assert config.detection.boxes == path.parent / "boxes" / "boxes.parquet"
