"""The train stage on images with boxes: the loop of classification, unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medkd.config import Config, load_config
from medkd.distill.graph import expand
from medkd.distill.method import load_method, method_names
from medkd.errors import ConfigError, MethodError, StageError
from medkd.training.box_set import BoxSet, load_box_set
from medkd.training.cohorts import build_cohort
from medkd.training.train_stage import run_train_stage
from tests.training.box_cohort import box_cohort

# Whose ensembles see whole images.
NOT_OF_DETECTORS = {"pcl", "pcl_e"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return box_cohort(tmp_path / "experiment")


def variant(config: Config, *assignments: str) -> Config:
    return load_config(config.output / "medkd.yaml", assignments)


def curves(config: Config) -> pd.DataFrame:
    return pd.read_csv(config.run_folder / "curves.csv")


@pytest.mark.slow
def test_a_training_learns_to_find_boxes_and_is_tracked(config: Config) -> None:
    from mlflow import MlflowClient

    config = variant(config, "train.epochs=12", "train.method=kd_ml")
    result = run_train_stage(config, ())
    assert set(result.best) == {"teacher", "student_0", "student_1", "ensemble"}
    table = curves(config)
    of_ensemble = table[(table.network == "ensemble") & (table.metric == "validation/ap50")]
    # Chosen is the epoch with the highest AP50, the first of equals.
    assert result.best_epoch == of_ensemble.set_index("epoch")["value"].idxmax()
    assert result.best["ensemble"]["ap50"] == of_ensemble["value"].max() > 0.5
    assert {"train/kl_from_teacher", "train/kl_from_student", "train/supervised"} <= set(
        table[table.network == "student_0"].metric
    )
    done = json.loads((config.run_folder / "training.json").read_text())
    assert done["image_px"] == 64
    assert done["classes"] == ["polyp"]
    client = MlflowClient()
    run = client.get_run(result.mlflow_run_id)
    assert run.data.metrics["best/ap50/ensemble"] == result.best["ensemble"]["ap50"]
    assert run.data.params["data_counts.train.images"] == "20"
    (logged,) = run.inputs.dataset_inputs
    assert json.loads(logged.dataset.profile)["train_images"] == 20


def test_an_interrupted_training_goes_on_bit_for_bit(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkd.training import phase

    monkeypatch.setattr(BoxSet, "write_package", lambda *_: None)
    once = variant(config, "train.name=once", "train.epochs=3")
    run_train_stage(once, ())
    broken = variant(config, "train.name=broken", "train.epochs=3", "train.save_steps=1")
    train_epoch = phase.train_epoch

    def stops(*arguments, epoch, after_step, **options):  # type: ignore[no-untyped-def]
        def after(course) -> None:  # type: ignore[no-untyped-def]
            after_step(course)
            if epoch == 1:
                raise KeyboardInterrupt

        return train_epoch(*arguments, epoch=epoch, after_step=after, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase, "train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            run_train_stage(broken, ())
    result = run_train_stage(broken, ())
    assert result.resumed_from == (1, 1)
    pd.testing.assert_frame_equal(curves(broken), curves(once), check_exact=True)
    for path in (once.run_folder / "networks").iterdir():
        mine, theirs = load_file(broken.run_folder / "networks" / path.name), load_file(path)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_batches_do_not_depend_on_the_number_of_processes(config: Config) -> None:
    from medkd.training.data import epoch_batches

    seen = []
    for workers in (0, 2):
        chosen = variant(config, f"train.loader_workers={workers}")
        loader, sampler = load_box_set(chosen).training_loader(1)
        seen.append(list(epoch_batches(loader, sampler, chosen, 1)))
    assert len(seen[0]) == 2
    for one, other in zip(*seen, strict=True):
        assert one["image"].shape == (8, 3, 64, 64)
        assert one["label"].shape == (8, 2, 5)  # two boxes at most
        for key in ("image", "label"):
            assert torch.equal(one[key], other[key])


def test_labels_are_the_boxes_and_padding(config: Config) -> None:
    data = load_box_set(config)
    (batch,) = data.batches("validation")
    items = data.items["validation"]
    assert len(batch["label"]) == len(items) > 5
    for label, item in zip(batch["label"], items, strict=True):
        scale = 64 / max(item["size_px"])
        count = len(item["boxes"])
        assert label[:count, 0].eq(0).all()
        assert label[count:, 0].eq(-1).all()
        assert label[count:, 1:].eq(0).all()
        expected = torch.as_tensor(item["boxes"]) * scale
        # Sides are whole pixels: 60 of 80 become 48 of 64.
        torch.testing.assert_close(label[:count, 1:], expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", sorted(set(method_names()) - NOT_OF_DETECTORS))
def test_every_method_of_logits_serves_detectors(config: Config, name: str) -> None:
    """The graphs and the cohort of classification, with detectors for networks."""
    method = load_method(name)
    graph = expand(method, 2)
    cohort = build_cohort(config, graph).train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = images if graph.views == 1 else torch.stack([images] * graph.views)
    outputs = cohort(shown, cohort.task.example_labels(2, torch.device("cpu")))
    links = {link.name for link in graph.links}
    assert links <= set(outputs.terms)
    assert all(logits.shape == (2, 84 * 2, 5) for logits in outputs.logits.values())
    torch.stack(list(outputs.terms.values())).sum().backward()
    for node in graph.nodes:
        if node.is_network:
            gradients = [p.grad for p in cohort.nodes[node.name].parameters()]
            learns = [g is not None and bool(g.isfinite().all()) for g in gradients]
            assert not any(learns) if node.frozen else all(learns), node.name


@pytest.mark.parametrize("name", sorted(NOT_OF_DETECTORS))
def test_what_sees_whole_images_is_refused(config: Config, name: str) -> None:
    with pytest.raises(MethodError, match="sees whole images, and its members are detectors"):
        build_cohort(config, expand(load_method(name), 2))


def test_a_bridge_of_a_detector_has_the_frozen_part_of_its_pyramid(config: Config) -> None:
    """The bridge's own pyramid is built on the teacher's early states and its own last one."""
    graph = expand(load_method("sokd"), 2)
    cohort = build_cohort(config, graph)
    images = torch.rand(2, 3, 64, 64)
    before = cohort(images).logits["bridge"]
    with torch.no_grad():
        teacher = cohort.nodes["teacher"]
        for parameter in list(teacher.pool.parameters()) + list(teacher.classifier.parameters()):
            parameter.zero_()
        torch.testing.assert_close(cohort(images).logits["bridge"], before)
        next(teacher.stem.parameters()).mul_(2)
        assert not torch.allclose(cohort(images).logits["bridge"], before)


def test_views_are_refused(config: Config) -> None:
    with pytest.raises(MethodError, match="boxes that were turned differently cannot be compared"):
        run_train_stage(variant(config, "train.method=kdcl"), ())


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("train.augment.where=device",), r"needs 'train.augment.where: loader'"),
        (("train.augment.affine_p=0.5",), r"needs 'train.augment.affine_p: 0'"),
        (("detection.strides=[8,32]",), r"must be twice the one before"),
        (("detection.classes=[polyp,polyp]",), r"a class stands twice"),
    ],
)
def test_a_wrong_configuration_is_refused(
    config: Config, assignments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        variant(config, *assignments)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("detection.strides=[6,12]", "detection: no anchors can be made: .*strides"),
        ("detection.anchor_sizes=[0.1]", r"detection: no anchors can be made: .*px"),
    ],
)
def test_anchors_that_cannot_be_are_told(config: Config, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_cohort(variant(config, assignment), expand(load_method("kd_ml"), 2))
    assert str(caught.value).endswith("'anchor_sizes' or 'anchor_ratios'.")


def test_a_network_without_maps_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"train\.teacher"):
        run_train_stage(variant(config, "train.teacher={network: vit-tiny}"), ())


def test_another_table_of_boxes_is_another_run(config: Config, tmp_path: Path) -> None:
    digest = load_box_set(config).digest
    assert load_box_set(variant(config, "train.name=other")).digest == digest
    assert load_box_set(variant(config, "detection.image_px=96")).digest != digest


def test_an_image_without_a_role_is_told(config: Config) -> None:
    split = pd.read_parquet(config.splits_file)
    split.iloc[1:].to_parquet(config.splits_file)
    with pytest.raises(
        StageError, match="1 images, sequences or patients have no role, such as 'ima"
    ):
        load_box_set(config)


def test_validation_images_without_boxes_are_refused(config: Config) -> None:
    split = pd.read_parquet(config.splits_file)
    split.loc[(split.role == "validation") & (split.label == "polyp"), "role"] = "test"
    split.to_parquet(config.splits_file)
    with pytest.raises(StageError, match="no validation image has a box"):
        load_box_set(config)


def test_a_corrupted_image_stops_the_training_with_one_line(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoxSet, "check", lambda _: None)  # which reads every image before
    path = config.output / "images" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Exception, match=r"001\.png: cannot be decoded") as caught:
        run_train_stage(variant(config, "train.epochs=1"), ())
    assert "\n" not in str(caught.value)
