"""The train stage: co-train a cohort, keep its state, track it, and write the model package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from medkd import __version__
from medkd.config import Config, NetworkConfig
from medkd.datasets.patches import EpochSampler, PatchDataset, seed_of
from medkd.datasets.tables import SlideRow
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, Method, expand, load_method
from medkd.errors import Stopped
from medkd.files import atomic_path, make_folder, sha256_of_json, write_text
from medkd.networks.zoo import build_network, count_parameters
from medkd.progress import progress
from medkd.tasks.classification import supervised_loss
from medkd.training import checkpoint
from medkd.training.data import (
    TileTable,
    epoch_batches,
    evaluation_batches,
    load_tile_table,
    training_loader,
)
from medkd.training.loop import ENSEMBLE, Engine, evaluate, predict_tiles, set_up, train_epoch
from medkd.training.packaging import write_model_package
from medkd.training.run_tracking import CohortTracker


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    ``best`` holds the validation metrics of every node and of the ensemble at ``best_epoch``.
    """

    run_folder: Path
    resumed_from: int
    best_epoch: int
    best: dict[str, dict[str, float]]
    parameters: dict[str, int]
    seconds: float
    mlflow_run_id: str


def network_config(config: Config, role: str, index: int) -> NetworkConfig:
    """The configured network of a node."""
    return config.train.teacher if role == "teacher" else config.train.students[index]


def build_cohort(config: Config, graph: Graph) -> Cohort:
    """All networks of the graph, untrained.

    A network's first weights depend on the seed, its role and its number alone, so that methods
    are compared from the same start.
    """
    networks = {}
    for node in graph.nodes:
        chosen = network_config(config, node.role, node.index)
        torch.manual_seed(seed_of(config.seed, 0 if node.role == "teacher" else 1 + node.index))
        networks[node.name] = build_network(
            chosen.network, classes=len(config.data.classes), width=chosen.width
        )
    return Cohort(graph, networks, supervised_loss)


def run_identity(config: Config, method: Method, table: TileTable) -> str:
    """A digest of all that decides what a run computes; a resume compares it."""
    train = config.train.model_dump(mode="json", exclude={"device", "loader_workers", "cache_mb"})
    return sha256_of_json([train, config.seed, method.text, table.digest])


def run_train_stage(
    config: Config, rows: Sequence[SlideRow], *, restart: bool = False
) -> TrainResult:
    """Train the configured cohort, or go on where an interrupted run of the same name stopped.

    Args:
        config: the experiment.
        rows: of slides.csv.
        restart: forget what an earlier run of this name did.

    Raises:
        TrainingError: the run was begun with other settings, or its loss is not finite.
        StageError: tiles or split are missing.
        MethodError: the method does not fit the networks.
    """
    method = load_method(config.train.method)
    graph = expand(method, len(config.train.students))
    table = load_tile_table(config, rows)
    cohort = build_cohort(config, graph)
    identity = run_identity(config, method, table)
    folder = make_folder(config.run_folder)
    checkpoints = folder / "checkpoints"
    if restart:
        checkpoint.forget(folder)
    found = checkpoint.load_checkpoint(checkpoints, identity)
    done, state = found if found is not None else (checkpoint.Progress(), None)
    resumed_from = done.epochs_done
    write_text(folder / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False))
    write_text(folder / "method.yaml", method.text)

    training = table.tiles[table.tiles["role"] == "train"].reset_index(drop=True)
    dataset, sampler = training_loader(config, training)
    steps = len(epoch_batches(dataset, sampler, config, 0))
    engine = set_up(cohort, config.train, steps)
    if state is not None:
        cohort.load_state_dict(state["cohort"])
        engine.optimizer.load_state_dict(state["optimizer"])
        engine.schedule.load_state_dict(state["schedule"])
    run = _Run(
        config=config,
        graph=graph,
        table=table,
        cohort=cohort,
        engine=engine,
        dataset=dataset,
        sampler=sampler,
        steps_per_epoch=steps,
        identity=identity,
        tracker=CohortTracker(config, graph, cohort, table),
    )
    try:
        _train(run, done)
        result = _finish(run, done, resumed_from)
    except BaseException as error:
        run.tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | Stopped) else "FAILED")
        raise
    run.tracker.finish("FINISHED")
    return result


@dataclass(frozen=True)
class _Run:
    config: Config
    graph: Graph
    table: TileTable
    cohort: Cohort
    engine: Engine
    dataset: PatchDataset
    sampler: EpochSampler
    steps_per_epoch: int
    identity: str
    tracker: CohortTracker


def _train(run: _Run, done: checkpoint.Progress) -> None:
    config, engine = run.config, run.engine
    checkpoints = config.run_folder / "checkpoints"
    held_out = run.table.tiles[run.table.tiles["role"] == "validation"].reset_index(drop=True)
    validation = evaluation_batches(config, held_out, cache=True)
    positive = config.data.classes.index(config.data.positive)
    total, first = run.steps_per_epoch * config.train.epochs, done.epochs_done
    with progress("training", total, done=run.steps_per_epoch * first) as advance:
        for epoch in range(first, config.train.epochs):
            began = time.monotonic()
            # Dropout draws from this; the epoch alone decides it, so a resume draws the same.
            torch.manual_seed(seed_of(config.seed, 1_000_000 + epoch))
            batches = epoch_batches(run.dataset, run.sampler, config, epoch)
            terms = train_epoch(engine, batches, advance)
            probabilities, labels = predict_tiles(engine.forward, engine.fabric.device, validation)
            metrics = evaluate(probabilities, labels, run.graph.deployed, positive)
            rows = _curve_rows(epoch + 1, terms, metrics)
            done.curves += rows
            done.epochs_done = epoch + 1
            log_loss = metrics[ENSEMBLE]["log_loss"]
            if log_loss < done.best_log_loss:
                done.best_log_loss, done.best_epoch = log_loss, epoch + 1
                checkpoint.save_networks(
                    checkpoint.epoch_folder(checkpoints, epoch + 1), dict(run.cohort.nodes)
                )
            done.seconds += time.monotonic() - began
            checkpoint.save_checkpoint(
                checkpoints,
                run.identity,
                done,
                {
                    "cohort": run.cohort.state_dict(),
                    "optimizer": engine.optimizer.state_dict(),
                    "schedule": engine.schedule.state_dict(),
                },
            )
            checkpoint.keep_only(checkpoints, done.best_epoch)
            run.tracker.log_epoch(epoch + 1, rows)
            advance(0, note=f"epoch {epoch + 1}: validation log loss {log_loss:.3f}")


def _curve_rows(
    epoch: int, terms: dict[str, float], metrics: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    rows = []
    for term, value in terms.items():
        node, name = term.split("/", 1)
        rows.append({"epoch": epoch, "network": node, "metric": f"train/{name}", "value": value})
    for node, values in metrics.items():
        rows += [
            {"epoch": epoch, "network": node, "metric": f"validation/{name}", "value": value}
            for name, value in values.items()
        ]
    return rows


def _finish(run: _Run, done: checkpoint.Progress, resumed_from: int) -> TrainResult:
    config, graph, table, cohort = run.config, run.graph, run.table, run.cohort
    best_folder = checkpoint.epoch_folder(config.run_folder / "checkpoints", done.best_epoch)
    for name, network in cohort.nodes.items():
        checkpoint.load_network(best_folder / f"{name}.safetensors", network)
    folder = config.run_folder
    checkpoint.save_networks(folder / "networks", dict(cohort.nodes))
    with atomic_path(folder / "curves.csv") as path:
        pd.DataFrame(done.curves).to_csv(path, index=False)
    best: dict[str, dict[str, float]] = {}
    for row in done.curves:
        kind, _, name = row["metric"].partition("/")
        if row["epoch"] == done.best_epoch and kind == "validation":
            best.setdefault(row["network"], {})[name] = row["value"]
    parameters = {name: count_parameters(network) for name, network in cohort.nodes.items()}
    write_model_package(
        config, graph, table, cohort, best_epoch=done.best_epoch, run_id=run.tracker.run_id
    )
    checkpoint.write_completion(
        folder,
        {
            "software": f"medkd {__version__}",
            "method": graph.method,
            "networks": {
                node.name: {
                    "role": node.role,
                    "deployed": node.name in graph.deployed,
                    "parameters": parameters[node.name],
                    **network_config(config, node.role, node.index).model_dump(),
                }
                for node in graph.nodes
            },
            "epochs": config.train.epochs,
            "best_epoch": done.best_epoch,
            "validation": best,
            "data_digest": table.digest,
            "synthetic": table.synthetic,
            "seconds": round(done.seconds, 1),
        },
    )
    run.tracker.log_result(done.best_epoch, best)
    return TrainResult(
        run_folder=folder,
        resumed_from=resumed_from,
        best_epoch=done.best_epoch,
        best=best,
        parameters=parameters,
        seconds=done.seconds,
        mlflow_run_id=run.tracker.run_id,
    )
