"""Every kind of method through the whole train stage: phases, views, what is kept and ships."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medkd.config import Config
from medkd.distill.graph import expand
from medkd.distill.method import load_method, method_names
from medkd.errors import ConfigError, TrainingError
from medkd.inference.engine import Students
from medkd.inference.package import load_package
from medkd.training.cohorts import build_cohort
from medkd.training.data import epoch_batches, load_tile_table, training_loader
from medkd.training.predict_stage import run_predict_stage
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def completed(config: Config) -> dict:
    return json.loads((config.run_folder / "training.json").read_text())


# The others in 'make test-slow'; every step of theirs is held against formulas in tests/distill.
WHOLE = ("kd_ml", "sokd", "pcl", "one")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in WHOLE else pytest.mark.slow)
        for name in method_names()
    ],
)
def test_every_method_trains_predicts_and_ships(cohort: Cohort, method: str) -> None:
    config = cohort.variant(f"train.method={method}", "train.epochs=1")
    run_train_stage(config, cohort.rows)
    predictions = pd.read_parquet(run_predict_stage(config, cohort.rows).path)
    graph = expand(load_method(method), 2)
    assert set(predictions["network"]) == {node.name for node in graph.nodes}
    assert predictions["probability"].between(0, 1).all()

    package = load_package(config.model_folder, needs_operating_point=False)
    assert tuple(student.name for student in package.manifest.students) == graph.deployed
    weights = b"".join(path.read_bytes() for path in (config.model_folder / "students").iterdir())
    assert b"teacher" not in weights
    tile = np.zeros((1, 64, 64, 3), np.uint8)
    shipped = Students(package)(tile).probabilities
    cohort_now = build_cohort(config, graph)
    for name, module in cohort_now.own_modules().items():
        module.load_state_dict(load_file(config.run_folder / "networks" / f"{name}.safetensors"))
    logits = cohort_now.eval()(torch.zeros(1, 3, 64, 64)).logits
    for name in graph.deployed:
        expected = torch.softmax(logits[name], 1)[0, 1].item()
        assert shipped[name][0] == pytest.approx(expected, abs=1e-4)


def test_a_frozen_teacher_is_trained_first_and_then_left_alone(cohort: Cohort) -> None:
    config = cohort.variant("train.method=kd_frozen", "train.epochs=2", "train.teacher_epochs=3")
    run_train_stage(config, cohort.rows)
    curves = pd.read_csv(config.run_folder / "curves.csv")
    first = curves[curves["metric"] == "first/train/supervised"]
    assert list(first["network"]) == ["teacher"] * 3
    assert not curves["metric"].eq("train/supervised").where(curves["network"] == "teacher").any()
    told = curves[(curves["network"] == "teacher") & (curves["metric"] == "validation/log_loss")]
    # Frozen: the same figure in every epoch, and the best of its own training.
    assert told["value"].nunique() == 1
    alone = curves[curves["metric"] == "first/validation/log_loss"]["value"]
    assert told["value"].iloc[0] == pytest.approx(alone.min())


def test_stopped_between_teacher_and_students_it_goes_on(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cohort.variant("train.method=sokd", "train.epochs=1")
    once = cohort.variant("train.method=sokd", "train.epochs=1", "train.name=once")
    run_train_stage(once, cohort.rows)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medkd.training.train_stage.Phase.restore_best", stop)
        with pytest.raises(KeyboardInterrupt):
            run_train_stage(config, cohort.rows)
    trained = []
    with monkeypatch.context() as patch:
        from medkd.training import phase

        joint = phase.train_epoch
        patch.setattr(
            phase,
            "train_epoch",
            lambda engine, *a, **k: (
                trained.append(len(engine.cohort.nodes)) or joint(engine, *a, **k)
            ),
        )
        run_train_stage(config, cohort.rows)
    assert trained == [4]  # not the teacher alone again
    for name in ("teacher", "bridge", "student_0"):
        weights = [
            load_file(c.run_folder / "networks" / f"{name}.safetensors") for c in (config, once)
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_a_teacher_of_an_earlier_run(cohort: Cohort) -> None:
    earlier = cohort.variant("train.method=independent", "train.epochs=1", "train.name=earlier")
    run_train_stage(earlier, cohort.rows)
    weights = earlier.run_folder / "networks" / "teacher.safetensors"
    teacher = f"train.teacher={{network: resnet10, width: 0.125, weights: {weights}}}"
    config = cohort.variant("train.method=kd_frozen", "train.epochs=1", teacher)
    run_train_stage(config, cohort.rows)
    assert "first/train/supervised" not in set(
        pd.read_csv(config.run_folder / "curves.csv")["metric"]
    )
    kept = load_file(config.run_folder / "networks" / "teacher.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in load_file(weights).items())
    other = f"train.teacher={{network: resnet18, width: 0.125, weights: {weights}}}"
    with pytest.raises(TrainingError, match=r"teacher\.safetensors: holds another architecture"):
        run_train_stage(
            cohort.variant("train.method=kd_frozen", "train.name=other", other), cohort.rows
        )


def test_views_are_different_augmentations_of_one_tile(cohort: Cohort) -> None:
    config = cohort.variant("train.method=pcl", "train.augment.where=loader")
    table = load_tile_table(config, cohort.rows)
    loader, sampler = training_loader(config, table.tiles.head(4), views=3)
    (batch,) = epoch_batches(loader, sampler, config, 0)
    assert batch["image"].shape == (4, 3, 3, 64, 64)
    first, second, third = batch["image"][0]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    loader, sampler = training_loader(config, table.tiles.head(4), views=3)
    (again,) = epoch_batches(loader, sampler, config, 0)
    assert torch.equal(again["image"], batch["image"])
    # Of one tile: mirrors and turns keep the colours, and the jitter shifts them a little.
    assert (first.mean((1, 2)) - second.mean((1, 2))).abs().max() < 0.15


def test_alternating_updates_differ_from_simultaneous_ones(cohort: Cohort, tmp_path) -> None:
    text = load_method("dml").text.replace("update: simultaneous", "update: alternating")
    path = tmp_path / "in_turn.yaml"
    path.write_text(text)
    turn = cohort.variant(f"train.method={path}", "train.epochs=1", "train.name=turn")
    joint = cohort.variant("train.method=dml", "train.epochs=1", "train.name=joint")
    found = []
    for config in (turn, joint):
        run_train_stage(config, cohort.rows)
        found.append(load_file(config.run_folder / "networks" / "student_1.safetensors"))
    assert any(not torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_network_that_breaks_leaves_the_others_unharmed(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With train.non_finite continue the run goes on without it, and says so."""
    from medkd.training import train_stage

    def one_broken(config, graph):
        built = build_cohort(config, graph)
        with torch.no_grad():
            next(built.nodes["student_1"].parameters()).fill_(torch.nan)
        return built

    monkeypatch.setattr(train_stage, "build_cohort", one_broken)
    stopped = cohort.variant("train.epochs=1")
    with pytest.raises(TrainingError, match=r"\(student_1\)"):
        run_train_stage(stopped, cohort.rows)
    on = cohort.variant("train.epochs=1", "train.non_finite=continue", "train.name=on")
    with pytest.raises(TrainingError, match="no epoch gave finite predictions"):
        run_train_stage(on, cohort.rows)
    assert "student_1 gave numbers that are not finite in" in capsys.readouterr().err


def test_class_weights_must_fit_the_classes(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match="has 3 numbers for 2 classes"):
        cohort.variant("train.class_weights=[1, 2, 3]")
