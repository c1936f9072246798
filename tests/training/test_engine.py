"""The engine's settings, each against plain torch: what they compute, not that they run."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import NetworkConfig, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import ConfigError, TrainingError
from medkd.networks.zoo import configured_network
from medkd.tasks.classification import Classification
from medkd.training.cohorts import build_cohort, learning_rates
from medkd.training.devices import make_fabric
from medkd.training.engine import Engine, set_up
from medkd.training.loop import EpochCourse, train_epoch
from medkd.training.optimization import learning_rate_factor, parameter_groups
from medkd.training.rho import measure_rho
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort as SlideCohort

TILES = 8


def cohort_of(method: str = "kd_ml", network: str = "resnet10", **options: Any) -> Cohort:
    graph = expand(load_method(method), 2)
    torch.manual_seed(0)
    wanted = NetworkConfig(network=network, **({"width": 0.125} | options))
    networks = {
        node.name: configured_network(wanted, classes=2, where="here")
        for node in graph.nodes
        if node.is_network
    }
    return Cohort(graph, networks, Classification())


def engine_of(cohort: Cohort, **settings: Any) -> Engine:
    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "schedule": "constant",
             "warmup_epochs": 0, "weight_decay": 0.0, "device": "cpu", "batch_size": TILES,
             "epochs": 3}  # fmt: skip
    config = TrainConfig(**(plain | settings))
    return set_up(cohort, config, 1, make_fabric(config)[0])


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(TILES, 3, 32, 32, generator=generator)
    return {"image": images, "label": torch.randint(0, 2, (TILES,), generator=generator)}


def parameters(cohort: Cohort) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in cohort.named_parameters()}


def gradients(cohort: Cohort, shown: dict[str, Tensor]) -> dict[str, Tensor]:
    """By plain torch, of the cohort as it is."""
    alone = copy.deepcopy(cohort).train()
    alone.zero_grad(set_to_none=True)
    images = shown["image"].to(memory_format=torch.channels_last)
    terms = alone(images, shown["label"]).terms
    torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


# Learning rates.


def factors(steps: int, **settings: Any) -> list[float]:
    factor = learning_rate_factor(TrainConfig(epochs=4, **settings), 5)
    return [factor(step) for step in range(steps)]


def test_the_cosine_falls_from_one_to_nought() -> None:
    found = factors(20, warmup_epochs=0.4)
    assert found[:2] == [0.5, 1.0]
    for step in range(2, 20):
        assert found[step] == pytest.approx((1 + math.cos(math.pi * (step - 2) / 18)) / 2)
    assert found[11] == pytest.approx(0.5)


def test_the_steps_fall_after_the_epochs_named() -> None:
    found = factors(20, warmup_epochs=0, schedule="step", drop_epochs=(1, 3), drop_factor=0.5)
    assert found == [1.0] * 5 + [0.5] * 10 + [0.25] * 5


def test_a_constant_rate_is_warmed_up_to() -> None:
    assert factors(8, warmup_epochs=1, schedule="constant") == [
        pytest.approx(x) for x in (0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1)
    ]


def test_each_network_has_its_own_rate_and_decay(cohort: SlideCohort) -> None:
    config = cohort.variant("train.teacher.learning_rate=0.25", "train.weight_decay=0.5")
    graph = expand(load_method("kd_ml"), 2)
    rates = learning_rates(config, graph)
    assert rates == {"teacher": 0.25, "student_0": 0.002, "student_1": 0.002}
    made = parameter_groups(build_cohort(config, graph), config.train, rates)
    groups = {str(group["name"]): group for group in made}
    assert set(groups) == {f"{node}/{kind}" for node in rates for kind in ("decay", "no_decay")}
    for name, group in groups.items():
        node, kind = name.split("/")
        assert group["lr"] == rates[node]
        assert group["weight_decay"] == (0.5 if kind == "decay" else 0.0)
        assert all((p.ndim > 1) == (kind == "decay") for p in group["params"])


def test_stages_in_common_have_the_rate_of_their_first_network(cohort: SlideCohort) -> None:
    config = cohort.variant("train.students.0.learning_rate=0.5")
    graph = expand(load_method("pcl"), 2)
    rates = learning_rates(config, graph)
    (trunk,) = {node.trunk for node in graph.nodes if node.trunk is not None}
    assert rates[trunk] == 0.5
    owners = {str(g["name"]).split("/")[0] for g in
              parameter_groups(build_cohort(config, graph), config.train, rates)}  # fmt: skip
    assert trunk in owners


# Steps.


def test_sgd_takes_the_step_of_plain_sgd() -> None:
    cohort = cohort_of()
    before, expected = parameters(cohort), gradients(cohort, batch())
    train_epoch(engine_of(cohort), [batch()], epoch=0)
    for name, value in cohort.named_parameters():
        torch.testing.assert_close(value, before[name] - 0.1 * expected[name], rtol=0, atol=1e-6)


def test_adamw_takes_the_step_of_adamw() -> None:
    """First step: the sign of the gradient, and decay of what has more than one dimension."""
    cohort = cohort_of()
    before, of = parameters(cohort), gradients(cohort, batch())
    engine = engine_of(cohort, optimizer="adamw", weight_decay=0.5, learning_rate=0.01)
    train_epoch(engine, [batch()], epoch=0)
    for name, value in cohort.named_parameters():
        decay = 0.5 if value.ndim > 1 else 0.0
        step = of[name] / (of[name].abs() + 1e-8)
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * step
        # Where a gradient is about 1e-8 its sign is a matter of rounding.
        clear = of[name].abs() > 1e-6
        torch.testing.assert_close(value[clear], expected[clear], rtol=0, atol=1e-5)


def test_forwards_of_parts_add_up_to_their_mean() -> None:
    cohort = cohort_of()
    before = parameters(cohort)
    quarters = [
        {name: value[start : start + 2] for name, value in batch().items()}
        for start in range(0, TILES, 2)
    ]
    of = [gradients(cohort, quarter) for quarter in quarters]
    means = train_epoch(engine_of(cohort, accumulate=4), [batch()], epoch=0)
    for name, value in cohort.named_parameters():
        mean = torch.stack([part[name] for part in of]).mean(0)
        torch.testing.assert_close(value, before[name] - 0.1 * mean, rtol=1e-3, atol=1e-5)
    assert set(means) == {
        "teacher/supervised",
        *(f"student_{i}/{t}" for i in (0, 1)
          for t in ("supervised", "kl_from_teacher", "kl_from_student")),
    }  # fmt: skip


def test_each_networks_gradient_is_shortened_by_itself() -> None:
    cohort = cohort_of()
    before, of = parameters(cohort), gradients(cohort, batch())
    norms = {
        node: torch.cat([g.ravel() for n, g in of.items() if n.startswith(f"nodes.{node}.")]).norm()
        for node in ("teacher", "student_0", "student_1")
    }
    longest = float(sorted(norms.values())[1]) + 1e-3  # one network's is longer
    train_epoch(engine_of(cohort, clip_norm=longest), [batch()], epoch=0)
    shortened = 0
    for name, value in cohort.named_parameters():
        norm = float(norms[name.split(".")[1]])
        factor = min(1.0, longest / norm)
        shortened += factor < 1
        torch.testing.assert_close(
            value, before[name] - 0.1 * factor * of[name], rtol=1e-4, atol=1e-6
        )
    assert 0 < shortened < len(before)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_gradient_that_is_not_finite_moves_nothing(clip: float | None) -> None:
    """The loss is; the gradient of one weight overflows."""
    cohort = cohort_of()
    before = parameters(cohort)
    engine = engine_of(cohort, non_finite="continue", clip_norm=clip)
    weight = cohort.get_parameter("nodes.student_1.classifier.weight")
    weight.register_hook(lambda gradient: gradient * float("inf"))
    course = EpochCourse()
    means = train_epoch(engine, [batch(), batch(1)], epoch=0, course=course)
    assert all(math.isfinite(value) for value in means.values())
    assert course.broken() == {"student_1": 2}
    for name, value in cohort.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, before[name]) == name.startswith("nodes.student_1."), name


def test_the_moving_average_is_one() -> None:
    cohort = cohort_of("pcl", stem_stride=2)
    engine = engine_of(cohort, ema_decay=0.15)
    assert engine.average is not None
    mean = parameters(cohort)
    seen = []
    for epoch in range(3):
        views = {**batch(epoch), "image": batch(epoch)["image"][:, None].repeat(1, 2, 1, 1, 1)}
        train_epoch(engine, [views], epoch=epoch)
        decay = min(0.15, (1 + epoch) / (10 + epoch))
        seen.append(decay)
        for name, value in cohort.named_parameters():
            trained = value.requires_grad
            mean[name] = decay * mean[name] + (1 - decay) * value if trained else value.clone()
    assert seen == [0.1, 0.15, 0.15]  # early on, less is remembered
    shown = engine.shown
    assert shown is engine.average.cohort
    for name, value in shown.named_parameters():
        torch.testing.assert_close(value, mean[name], rtol=0, atol=1e-6)
    for name, buffer in shown.named_buffers():
        assert torch.equal(buffer, cohort.get_buffer(name)), name
    assert not any(module.training for module in shown.modules())


@pytest.mark.parametrize(
    ("method", "network", "options"),
    [
        ("kd_ml", "resnet10", {}),
        ("one", "resnet10", {"stem_stride": 2}),
        ("dml", "wrn-10-1", {"width": 1.0}),
        ("dml", "densenet-40-12", {"width": 1.0}),
    ],
)
def test_recomputing_changes_no_bit(method: str, network: str, options: dict[str, Any]) -> None:
    found = []
    for recompute in (False, True):
        cohort = cohort_of(method, network, **options)
        engine = engine_of(cohort, recompute=recompute)
        for epoch in range(2):
            train_epoch(engine, [batch(epoch)], epoch=epoch)
        found.append({k: v.clone() for k, v in cohort.state_dict().items()})
    plain, again = found
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    counted = [value for name, value in again.items() if name.endswith("num_batches_tracked")]
    assert counted
    assert all(value == 2 for value in counted)


def test_recomputing_keeps_less() -> None:
    """Bytes that the backward pass holds on to."""
    kept = []
    for recompute in (False, True):
        cohort = cohort_of()
        engine = engine_of(cohort, recompute=recompute)
        engine.forward.train()
        images = torch.rand(4, 3, 128, 128)
        held: dict[int, torch.UntypedStorage] = {}

        def remember(tensor: Tensor, held: dict[int, Any] = held) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in cohort.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            engine.forward(images, torch.tensor([0, 1, 0, 1]))
        kept.append(sum(one.nbytes() for at, one in held.items() if at not in weights))
    assert kept[1] < 0.6 * kept[0], kept


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["networks", "joint"])
@pytest.mark.parametrize("method", ["kd_ml", "pcl"])
def test_compiled_it_computes_the_same(compiled: str, method: str) -> None:
    import torch._dynamo

    found = []
    for setting in ("none", compiled):
        torch._dynamo.reset()
        cohort = cohort_of(method, stem_stride=2)
        engine = engine_of(cohort, compile=setting)
        losses = []
        for epoch in range(3):
            shown = batch(epoch)
            if cohort.graph.views > 1:
                shown["image"] = shown["image"][:, None].repeat(1, 2, 1, 1, 1)
            losses.append(train_epoch(engine, [shown], epoch=epoch))
        found.append(losses)
    for plain, fused in zip(*found, strict=True):
        assert plain.keys() == fused.keys()
        for name in plain:
            assert fused[name] == pytest.approx(plain[name], rel=1e-2, abs=1e-4), name


# Whole runs.


def curves_of(config: Any) -> pd.DataFrame:
    return pd.read_csv(config.run_folder / "curves.csv")


def test_it_stops_when_the_validation_loss_falls_no_more(cohort: SlideCohort) -> None:
    config = cohort.variant(
        "train.epochs=40", "train.early_stop_epochs=2", "train.learning_rate=1e-9"
    )
    result = run_train_stage(config, cohort.rows)
    losses = (
        curves_of(config)
        .query("network == 'ensemble' and metric == 'validation/log_loss'")
        .set_index("epoch")["value"]
    )
    last = losses.index.max()
    assert last == result.best_epoch + 2 < 40
    assert losses[result.best_epoch] == losses.min()
    assert (losses[losses.index > result.best_epoch] >= losses.min()).all()


def test_the_average_is_validated_and_shipped(cohort: SlideCohort) -> None:
    config = cohort.variant("train.ema_decay=0.9", "train.epochs=2")
    run_train_stage(config, cohort.rows)
    last = torch.load(config.run_folder / "checkpoints" / "last.pt", weights_only=True)
    best = max(config.run_folder.glob("checkpoints/epoch-*"))
    stored = load_file(best / "student_0.safetensors")
    raw, average = (
        {key.removeprefix("nodes.student_0."): value for key, value in last[name].items()
         if key.startswith("nodes.student_0.")}
        for name in ("cohort", "average")
    )  # fmt: skip
    if best.name == "epoch-002":
        assert all(torch.equal(stored[key], average[key]) for key in stored)
    assert any(not torch.equal(raw[key], average[key]) for key in stored)


def test_resume_can_be_required_and_refused(cohort: SlideCohort) -> None:
    config = cohort.variant("train.epochs=1")
    with pytest.raises(TrainingError, match="has no state to go on from"):
        run_train_stage(config, cohort.rows, needs_checkpoint=True)
    assert not list(Path(config.output).rglob("*.db"))
    run_train_stage(config, cohort.rows)
    result = run_train_stage(config, cohort.rows, needs_checkpoint=True)
    assert result.resumed_from == (1, 0)


def test_the_command_line_says_whether_to_resume(cohort: SlideCohort) -> None:
    called: list[dict[str, Any]] = []

    def told(*arguments: str) -> dict[str, Any]:
        call = ["train", "--config", str(cohort.folder / "medkd.yaml"), *arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "medkd.training.train_stage.run_train_stage",
                lambda config, rows, **options: called.append(options) or sys.exit(0),
            )
            CliRunner().invoke(app, call)
        return called[-1]

    assert told() == told("--resume", "auto") == {"restart": False, "needs_checkpoint": False}
    assert told("--resume", "required") == {"restart": False, "needs_checkpoint": True}
    assert told("--resume", "never") == {"restart": True, "needs_checkpoint": False}
    assert told("--restart") == {"restart": True, "needs_checkpoint": False}
    refused = CliRunner().invoke(app, ["train", "--resume", "maybe"])
    assert refused.exit_code == 2
    assert "'maybe' is not one of" in refused.output


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("train.schedule=step",), "'schedule: step' needs 'drop_epochs'"),
        (("train.drop_epochs=[3]",), "'drop_epochs' needs 'schedule: step'"),
        (("train.cuda_graphs=true",), "'cuda_graphs' needs 'compile: networks' or"),
        (("train.accumulate=5",), "'batch_size' 32 cannot be divided among 'devices' 1 times"),
    ],
)
def test_settings_that_do_not_go_together(
    cohort: SlideCohort, assignments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cohort.variant(*assignments)


def test_half_precision_needs_a_gpu(cohort: SlideCohort) -> None:
    with pytest.raises(TrainingError) as error:
        run_train_stage(cohort.variant("train.precision=16-mixed"), cohort.rows)
    assert str(error.value) == (
        "train.precision: 16-mixed needs a GPU. Set it to bf16-mixed or 32-true."
    )


@pytest.mark.parametrize("method", ["kd_ml", "pcl", "kd_frozen", "one"])
def test_measuring_rho_changes_nothing(method: str) -> None:
    cohort = cohort_of(method, stem_stride=2)
    engine = engine_of(cohort)
    before = copy.deepcopy(cohort.state_dict())
    assert 0.2 < measure_rho(engine, tiles=8, side_px=32, steps=2) < 5
    assert all(torch.equal(before[key], value) for key, value in cohort.state_dict().items())
    assert all(parameter.grad is None for parameter in cohort.parameters())


def test_rho_is_of_a_forward_and_a_backward_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts calls of networks, together is alone."""
    cohort = cohort_of()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for node in cohort.nodes.values():
        node.stem.register_forward_hook(count)
    monkeypatch.setattr("medkd.training.rho.time.perf_counter", lambda: float(calls))
    assert measure_rho(engine_of(cohort), tiles=4, side_px=32, steps=1) == 1.0
    assert calls == 2 * 2 * 3
