"""The train stage: co-train a cohort, keep its state, track it, and write the model package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from medkd import __version__
from medkd.config import Config
from medkd.datasets.tables import SlideRow
from medkd.distill.cohort import Cohort
from medkd.distill.drawing import write_drawing
from medkd.distill.graph import Graph, expand
from medkd.distill.method import Method, load_method
from medkd.errors import Stopped
from medkd.files import atomic_path, make_folder, sha256_of_file, sha256_of_json, write_text
from medkd.networks.zoo import count_parameters
from medkd.training import checkpoint
from medkd.training.cohorts import build_cohort, node_record, trained_first, weight_files
from medkd.training.data import TileTable, load_tile_table
from medkd.training.loop import best_deployed
from medkd.training.packaging import write_model_package
from medkd.training.phase import Phase, train_phase
from medkd.training.run_tracking import CohortTracker


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    ``best`` holds the validation metrics of every node and of the ensemble at ``best_epoch``;
    ``resumed_from`` the epochs, and the steps of the next one, that an earlier process had done.
    """

    run_folder: Path
    resumed_from: tuple[int, int] | None
    best_epoch: int
    best: dict[str, dict[str, float]]
    parameters: dict[str, int]
    seconds: float
    mlflow_run_id: str


def run_identity(config: Config, method: Method, table: TileTable) -> str:
    """A digest of all that decides what a run computes; a resume compares it."""
    left_out = {"device", "loader_workers", "cache_mb", "save_minutes"}
    train = config.train.model_dump(mode="json", exclude=left_out)
    weights = [sha256_of_file(path) for path in weight_files(config)]
    return sha256_of_json([train, config.seed, method.text, table.digest, weights])


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
    if restart:
        checkpoint.forget(folder)
    found = checkpoint.load_checkpoint(folder / "checkpoints", identity)
    write_text(folder / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False))
    write_text(folder / "method.yaml", method.text)
    for drawing in write_drawing(method, folder):
        drawing.replace(folder / f"method{drawing.suffix}")
    tracker = CohortTracker(config, graph, cohort, table)
    try:
        before = [
            _train_first(config, graph.first(node.name), table, cohort, identity, tracker)
            for node in trained_first(config, graph)
        ]
        phase = Phase(config, graph, table, cohort, identity, tracker)
        done = train_phase(phase)
        result = _finish(phase, before, done, found[0] if found else None)
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | Stopped) else "FAILED")
        raise
    tracker.finish("FINISHED")
    return result


def _train_first(
    config: Config,
    graph: Graph,
    table: TileTable,
    cohort: Cohort,
    identity: str,
    tracker: CohortTracker,
) -> checkpoint.Progress:
    """Train a frozen network by its labels, and give the cohort its weights."""
    (name,) = graph.deployed
    phase = Phase(config, graph, table, build_cohort(config, graph), identity, tracker, name)
    done = train_phase(phase)
    phase.restore_best(done)
    cohort.nodes[name].load_state_dict(phase.cohort.nodes[name].state_dict())
    return done


def _finish(
    phase: Phase,
    before: Sequence[checkpoint.Progress],
    done: checkpoint.Progress,
    found: checkpoint.Progress | None,
) -> TrainResult:
    config, graph, table, cohort = phase.config, phase.graph, phase.table, phase.cohort
    phase.restore_best(done)
    folder = config.run_folder
    checkpoint.save_networks(folder / "networks", cohort.own_modules())
    curves = [row for earlier in (*before, done) for row in earlier.curves]
    seconds = sum(earlier.seconds for earlier in (*before, done))
    with atomic_path(folder / "curves.csv") as path:
        pd.DataFrame(curves).to_csv(path, index=False)
    best: dict[str, dict[str, float]] = {}
    for row in done.curves:
        kind, _, name = row["metric"].partition("/")
        if row["epoch"] == done.best_epoch and kind == "validation":
            best.setdefault(row["network"], {})[name] = row["value"]
    parameters = {node.name: count_parameters(cohort.alone(node.name)) for node in graph.nodes}
    deployed = (best_deployed(best, graph),) if graph.chosen_by_validation else graph.deployed
    write_model_package(
        config,
        graph,
        table,
        cohort,
        deployed=deployed,
        best_epoch=done.best_epoch,
        run_id=phase.tracker.run_id,
    )
    checkpoint.write_completion(
        folder,
        {
            "software": f"medkd {__version__}",
            "method": graph.method,
            "networks": {
                node.name: {
                    "role": node.role,
                    "deployed": node.name in deployed,
                    "parameters": parameters[node.name],
                    **node_record(config, graph, node),
                }
                for node in graph.nodes
            },
            "epochs": config.train.epochs,
            "best_epoch": done.best_epoch,
            "validation": best,
            "data_digest": table.digest,
            "synthetic": table.synthetic,
            "seconds": round(seconds, 1),
        },
    )
    phase.tracker.log_result(done.best_epoch, best)
    return TrainResult(
        run_folder=folder,
        resumed_from=(found.epochs_done, found.steps_done) if found else None,
        best_epoch=done.best_epoch,
        best=best,
        parameters=parameters,
        seconds=seconds,
        mlflow_run_id=phase.tracker.run_id,
    )
