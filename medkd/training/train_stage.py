"""The train stage: co-train a cohort, keep its state, track it, and write the model package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import yaml

from medkd import __version__
from medkd.config import Config
from medkd.datasets.tables import SlideRow
from medkd.distill.drawing import write_drawing
from medkd.distill.graph import expand
from medkd.distill.method import Method, load_method
from medkd.errors import Stopped, TrainingError
from medkd.files import atomic_path, make_folder, sha256_of_file, sha256_of_json, write_text
from medkd.networks.zoo import count_parameters
from medkd.training import checkpoint
from medkd.training.allocator import keep_freed_memory
from medkd.training.cohorts import build_cohort, node_record, trained_first, weight_files
from medkd.training.devices import make_fabric, peers_expected
from medkd.training.evaluation import best_deployed
from medkd.training.phase import Phase, train_phase
from medkd.training.run_tracking import CohortTracker
from medkd.training.tile_set import load_tile_set
from medkd.training.training_set import Shipped, TrainingSet


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


def run_identity(config: Config, method: Method, data: TrainingSet) -> str:
    """A digest of all that decides what a run computes; a resume compares it."""
    # Where and in how many parts it is computed may change on the way.
    left_out = {
        "device",
        "devices",
        "accumulate",
        "recompute",
        "loader_workers",
        "cache_mb",
        "save_minutes",
        "save_steps",
        "rho_steps",
    }
    train = config.train.model_dump(mode="json", exclude=left_out)
    weights = [sha256_of_file(path) for path in weight_files(config)]
    decided = [train, config.seed, method.text, data.digest, weights, *data.decided]
    return sha256_of_json(decided)


def run_train_stage(
    config: Config,
    rows: Sequence[SlideRow],
    *,
    restart: bool = False,
    needs_checkpoint: bool = False,
) -> TrainResult:
    """Train the configured cohort, or go on where an interrupted run of the same name stopped.

    Args:
        config: the experiment.
        rows: of slides.csv; of a detection there are none.
        restart: forget what an earlier run of this name did.
        needs_checkpoint: refuse to begin anew.

    Raises:
        TrainingError: the run was begun with other settings, or its loss is not finite.
        StageError: tiles or split are missing, or the roles share what they must not share.
        MethodError: the method does not fit the networks.
    """
    method = load_method(config.train.method)
    graph = expand(method, len(config.train.students))
    fabric, ranks = make_fabric(config.train)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    data = load_training_set(config, rows)
    cohort = build_cohort(config, graph)
    identity = run_identity(config, method, data)
    folder = make_folder(config.run_folder)
    if restart and ranks.is_first:
        checkpoint.forget(folder)
    ranks.wait()
    found = checkpoint.load_checkpoint(folder / "checkpoints", identity)
    if needs_checkpoint and found is None:
        raise TrainingError(
            "has no state to go on from",
            where=folder,
            remedy="Check train.name and output, or leave --resume at auto to begin.",
        )
    tracker = None
    if ranks.is_first:
        data.check()
        write_settings(config, method)
        tracker = CohortTracker(config, graph, cohort, data)
    phase = Phase(config, graph, data, cohort, identity, tracker, fabric, ranks)
    try:
        with peers_expected(ranks):
            before = [_train_first(phase, node.name) for node in trained_first(config, graph)]
            done = train_phase(phase)
            result = _results(phase, before, done, found[0] if found else None)
            if ranks.is_first:
                _write_results(phase, before, done, result)
            ranks.wait()
    except BaseException as error:
        if tracker is not None:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | Stopped) else "FAILED")
        raise
    if tracker is not None:
        tracker.finish("FINISHED")
    return result


def load_training_set(config: Config, rows: Sequence[SlideRow]) -> TrainingSet:
    """The data of the configured task."""
    if config.task == "detection":
        from medkd.training.box_set import load_box_set

        return load_box_set(config)
    return load_tile_set(config, rows)


def write_settings(config: Config, method: Method) -> None:
    """The resolved configuration and the method, with its drawings, to the run's folder."""
    folder = config.run_folder
    write_text(folder / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False))
    write_text(folder / "method.yaml", method.text)
    for drawing in write_drawing(method, folder):
        drawing.replace(folder / f"method{drawing.suffix}")


def _train_first(whole: Phase, name: str) -> checkpoint.Progress:
    """Train a frozen network by its labels, and give the cohort its weights."""
    graph = whole.graph.first(name)
    phase = replace(whole, graph=graph, cohort=build_cohort(whole.config, graph), first=name)
    done = train_phase(phase)
    phase.restore_best(done)
    whole.cohort.nodes[name].load_state_dict(phase.cohort.nodes[name].state_dict())
    return done


def _results(
    phase: Phase,
    before: Sequence[checkpoint.Progress],
    done: checkpoint.Progress,
    found: checkpoint.Progress | None,
) -> TrainResult:
    """What the run came to, with the weights of the chosen epoch in the cohort."""
    phase.restore_best(done)
    best: dict[str, dict[str, float]] = {}
    for row in done.curves:
        kind, _, name = row["metric"].partition("/")
        if row["epoch"] == done.best_epoch and kind == "validation":
            best.setdefault(row["network"], {})[name] = row["value"]
    return TrainResult(
        run_folder=phase.config.run_folder,
        resumed_from=(found.epochs_done, found.steps_done) if found else None,
        best_epoch=done.best_epoch,
        best=best,
        parameters={
            node.name: count_parameters(phase.cohort.alone(node.name)) for node in phase.graph.nodes
        },
        seconds=sum(earlier.seconds for earlier in (*before, done)),
        mlflow_run_id=phase.tracker.run_id if phase.tracker is not None else "",
    )


def _write_results(
    phase: Phase,
    before: Sequence[checkpoint.Progress],
    done: checkpoint.Progress,
    result: TrainResult,
) -> None:
    """The networks, the curves, the model package, and that the run is finished."""
    config, graph, data, cohort = phase.config, phase.graph, phase.data, phase.cohort
    folder = config.run_folder
    checkpoint.save_networks(folder / "networks", cohort.own_modules())
    curves = [row for earlier in (*before, done) for row in earlier.curves]
    with atomic_path(folder / "curves.csv") as path:
        pd.DataFrame(curves).to_csv(path, index=False)
    deployed = (
        (best_deployed(result.best, graph, cohort.task),)
        if graph.chosen_by_validation
        else graph.deployed
    )
    data.write_package(Shipped(graph, cohort, deployed, done.best_epoch, result.mlflow_run_id))
    checkpoint.write_completion(
        folder,
        {
            "software": f"medkd {__version__}",
            "trained_by": list(
                dict.fromkeys(name for one in (*before, done) for name in one.trained_by)
            ),
            "method": graph.method,
            "networks": {
                node.name: {
                    "role": node.role,
                    "deployed": node.name in deployed,
                    "parameters": result.parameters[node.name],
                    **node_record(config, graph, node),
                }
                for node in graph.nodes
            },
            "epochs": done.epochs_done,
            "best_epoch": done.best_epoch,
            "validation": result.best,
            "data_digest": data.digest,
            **data.described,
            "synthetic": data.synthetic,
            "seconds": round(result.seconds, 1),
            "rho": None if done.rho is None else round(done.rho, 3),
        },
    )
    if phase.tracker is not None:
        phase.tracker.log_result(done.best_epoch, result.best)
