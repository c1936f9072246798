"""A step divided among two processes, on the CPU through gloo."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from medkd.config import NetworkConfig, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method, method_names
from medkd.errors import ConfigError, TrainingError
from medkd.networks.zoo import configured_network
from medkd.tasks.classification import Classification
from medkd.training.devices import Ranks, make_fabric, same_buffers
from medkd.training.engine import Engine, set_up
from medkd.training.evaluation import predict_tiles
from medkd.training.loop import train_epoch
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort as SlideCohort

TILES, RANKS = 16, 2


def cohort_of(method: str = "kd_ml") -> Cohort:
    graph = expand(load_method(method), 2)
    torch.manual_seed(0)
    network = NetworkConfig(network="resnet10", width=0.125)
    networks = {
        node.name: configured_network(network, classes=2, where="here")
        for node in graph.nodes
        if node.is_network or node.role == "bridge"
    }
    return Cohort(graph, networks, Classification())


def tiles() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(TILES, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 2, (TILES,), generator=generator)


def share(rank: int) -> tuple[Tensor, Tensor]:
    own = slice(rank * TILES // RANKS, (rank + 1) * TILES // RANKS)
    images, labels = tiles()
    return images[own], labels[own]


def gradients_of(cohort: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in cohort.named_parameters() if p.grad is not None}


def in_process(
    rank: int, work: Callable[[Engine, Ranks], Any], folder: str, accumulate: int
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "ROLE_RANK": str(rank),
        "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "GROUP_WORLD_SIZE": "1",
        "ROLE_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test",
        "MASTER_PORT": Path(folder, "port").read_text(),
    }  # fmt: skip
    config = TrainConfig(device="cpu", devices=RANKS, batch_size=TILES, accumulate=accumulate,
                         optimizer="sgd", momentum=0.0, learning_rate=0.0625, epochs=1,
                         schedule="constant", warmup_epochs=0, weight_decay=0.0)  # fmt: skip
    fabric, ranks = make_fabric(config)
    cohort = cohort_of()
    if rank:  # the first process's weights count
        with torch.no_grad():
            for parameter in cohort.parameters():
                parameter.add_(1.0)
    engine = set_up(cohort, config, 1, fabric, ranks=ranks)
    torch.save(work(engine, ranks), Path(folder) / f"{rank}.pt")


def on_two_processes(
    work: Callable[[Engine, Ranks], Any], folder: Path, accumulate: int = 1
) -> list[Any]:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(taken.getsockname()[1]))
    spawn(in_process, (work, str(folder), accumulate), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def one_step(engine: Engine, ranks: Ranks) -> dict[str, Any]:
    images, labels = share(ranks.rank)
    before = {n: p.detach().clone() for n, p in engine.cohort.named_parameters()}
    means = train_epoch(engine, [{"image": images, "label": labels}], epoch=0)
    gradients = gradients_of(engine.cohort)
    same_buffers(engine.cohort, ranks)
    shown = predict_tiles(engine.cohort, engine.fabric, [{"image": images, "label": labels}])
    return {
        "before": before,
        "gradients": gradients,
        "after": {n: p.detach() for n, p in engine.cohort.named_parameters()},
        "buffers": dict(engine.cohort.named_buffers()),
        "means": means,
        "gathered": ranks.gathered(shown),
        "largest": ranks.largest([ranks.rank, 5 - ranks.rank]),
    }


def alone(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Cohort]:
    """Gradients and losses of one process's tiles, by plain torch."""
    cohort = cohort_of().to(memory_format=torch.channels_last).train()
    images, labels = share(rank)
    terms = cohort(images.to(memory_format=torch.channels_last), labels).terms
    torch.stack(list(terms.values())).sum().backward()
    return gradients_of(cohort), {n: t.detach() for n, t in terms.items()}, cohort


def test_gradients_are_the_mean_of_the_ranks(tmp_path: Path) -> None:
    found = on_two_processes(one_step, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums round by the number of threads
    try:
        (first, first_terms, cohort), (second, second_terms, _) = alone(0), alone(1)
    finally:
        torch.set_num_threads(threads)
    for got in found:
        assert got["gradients"].keys() == first.keys()
        for name, gradient in got["gradients"].items():
            assert torch.equal(gradient, (first[name] + second[name]) / 2), name
            # The first process's weights, and one step of plain SGD.
            start = cohort.get_parameter(name)
            assert torch.equal(got["before"][name], start), name
            assert torch.equal(got["after"][name], start - 0.0625 * gradient), name
        for name, value in got["means"].items():
            assert value == (first_terms[name].double() + second_terms[name].double()) / 2
        for name, buffer in cohort.named_buffers():  # statistics of the first one's tiles
            assert torch.equal(got["buffers"][name], buffer), name
        assert got["largest"] == [1, 5]
    # Each process has what both predicted, and they predict with the same networks.
    (first_seen, first_labels), (second_seen, second_labels) = found[0]["gathered"]
    assert torch.equal(torch.cat([first_labels, second_labels]), tiles()[1])
    assert first_seen.keys() == second_seen.keys() == {"teacher", "student_0", "student_1"}
    for name in first_seen:
        assert torch.equal(first_seen[name], found[1]["gathered"][0][0][name])


def test_forwards_of_a_step_exchange_their_sum_once(tmp_path: Path) -> None:
    """Two forwards in each of two processes: the mean over four quarters of the step's tiles."""
    found = on_two_processes(one_step, tmp_path, accumulate=2)
    torch.set_num_threads(1)
    expected: dict[str, Tensor] = {}
    for rank in range(RANKS):
        images, labels = share(rank)
        for x, y in zip(images.chunk(2), labels.chunk(2), strict=True):
            cohort = cohort_of().to(memory_format=torch.channels_last).train()
            terms = cohort(x.to(memory_format=torch.channels_last), y).terms
            torch.stack(list(terms.values())).sum().backward()
            for name, gradient in gradients_of(cohort).items():
                expected[name] = expected.get(name, torch.zeros_like(gradient)) + gradient / 4
    for name, gradient in found[0]["gradients"].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(gradient, found[1]["gradients"][name])


def every_method(engine: Engine, ranks: Ranks) -> dict[str, bool]:
    """Whether both processes have the same weights, and other ones than before, after two steps."""
    images, labels = share(ranks.rank)
    same = {}
    for method in method_names():
        cohort = cohort_of(method)
        before = [p.clone() for p in cohort.parameters() if p.requires_grad]
        own = set_up(cohort, engine.config, 2, engine.fabric, ranks=ranks)
        shown = images
        if cohort.graph.views > 1:
            shown = torch.stack([images] * cohort.graph.views, 1)
        train_epoch(own, [{"image": shown, "label": labels}] * 2, epoch=0)
        trained = [p.detach() for p in cohort.parameters() if p.requires_grad]
        first, second = ranks.gathered(trained)
        moved = any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
        same[method] = moved and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return same


def test_every_method_is_trained_on_two_processes(tmp_path: Path) -> None:
    found = on_two_processes(every_method, tmp_path)
    assert set(found[0]) == set(method_names())
    assert all(found[0].values()), found[0]


# Whole runs.


def train(cohort: SlideCohort, *assignments: str, seconds: float = 240) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medkd.cli", "train", "--config",
               str(cohort.folder / "medkd.yaml")]  # fmt: skip
    for assignment in assignments:
        command += ["--set", assignment]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 150
    while not (value := found()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert value, process.communicate()[1]
    return value


def test_two_processes_train_one_cohort(cohort: SlideCohort) -> None:
    process = train(cohort, "train.devices=2", "train.accumulate=2")
    out, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    # One of them speaks.
    assert out.count("Networks and model package") == 1
    assert re.fullmatch(r"training  10/10  took \S+  epoch 2: validation log loss .+\n", told)
    folder = cohort.config.run_folder
    curves = pd.read_csv(folder / "curves.csv")
    assert sorted(curves["epoch"].unique()) == [1, 2]
    assert (folder / "model" / "model.json").exists()
    # Each step has the same tiles, however they are divided: the loss is nearly that of one
    # process, whose batch norm sees a step's tiles together.
    one = cohort.variant("train.name=one")
    run_train_stage(one, cohort.rows)
    single = pd.read_csv(one.run_folder / "curves.csv")
    both = curves.merge(single, on=["epoch", "network", "metric"], validate="one_to_one")
    assert len(both) == len(single)
    first = both[(both["epoch"] == 1) & (both["metric"] == "train/supervised")]
    assert (first["value_x"] - first["value_y"]).abs().max() < 0.1


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_run_and_one_goes_on(cohort: SlideCohort, rank: int) -> None:
    process = train(cohort, "train.devices=2", "train.epochs=30", "train.save_steps=3")
    last = cohort.config.run_folder / "checkpoints" / "last.pt"
    wait_for(last.exists, process)
    workers = wait_for(lambda: children_of(process.pid), process)
    by_rank = {
        re.search(rb"(?:^|\0)RANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes()): pid
        for pid in workers
    }
    (victim,) = [pid for match, pid in by_rank.items() if match and int(match[1]) == rank]
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    assert (
        f"error: train.devices: process {rank} of 2 was killed by SIGKILL, and the others were "
        "ended." in told
    ), told
    assert "Traceback" not in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

    found = torch.load(last, weights_only=True)["progress"]
    result = run_train_stage(cohort.variant("train.epochs=30", "train.save_steps=3"), cohort.rows)
    assert result.resumed_from == (found["epochs_done"], found["steps_done"]) > (0, 0)
    curves = pd.read_csv(cohort.config.run_folder / "curves.csv")
    assert sorted(curves["epoch"].unique()) == list(range(1, 31))
    for path in (cohort.config.run_folder / "networks").iterdir():
        assert all(value.isfinite().all() for value in load_file(path).values())


@pytest.mark.slow
def test_a_signal_stops_all_processes_at_one_step(cohort: SlideCohort) -> None:
    process = train(cohort, "train.devices=2", "train.epochs=30", "train.save_steps=7")
    last = cohort.config.run_folder / "checkpoints" / "last.pt"
    wait_for(last.exists, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "Traceback" not in told
    assert "stopped; what was finished is kept." in told
    found = torch.load(last, weights_only=True)["progress"]
    again = train(cohort, "train.devices=2", "train.epochs=30", "train.save_steps=7")
    out, told = again.communicate(timeout=240)
    assert again.returncode == 0, told
    epoch, step = found["epochs_done"], found["steps_done"]
    assert f"Resumed after epoch {epoch}" + (f" and step {step}." if step else ".") in out


def test_what_cannot_be_divided_is_told(
    cohort: SlideCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="'batch_size' 32 cannot be divided among 'devices' 3"):
        cohort.variant("train.devices=3")
    with pytest.raises(TrainingError, match="is 2, and 1 process were started"):
        run_train_stage(cohort.variant("train.devices=2"), cohort.rows)
    (cohort.folder / "alternating.yaml").write_text(
        load_method("dml").text.replace("\nupdate: simultaneous", "\nupdate: alternating")
    )
    with pytest.raises(TrainingError) as error:
        run_train_stage(
            cohort.variant(f"train.method={cohort.folder}/alternating.yaml", "train.accumulate=2"),
            cohort.rows,
        )
    assert str(error.value).startswith(
        "train.accumulate: the method 'alternating' updates its networks"
    )
    monkeypatch.setattr("medkd.datasets.patches.EpochSampler.__len__", lambda self: 1)
    with pytest.raises(TrainingError, match="an epoch has 1 tiles, and a step is divided into 2"):
        run_train_stage(cohort.variant("train.accumulate=2"), cohort.rows)
