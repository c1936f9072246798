"""One training from its first epoch to its last: of a whole cohort, or of a teacher beforehand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medkd.config import Config, TrainConfig
from medkd.datasets.patches import seed_of
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.errors import TrainingError
from medkd.progress import progress
from medkd.training import checkpoint
from medkd.training.data import TileTable, epoch_batches, evaluation_batches, training_loader
from medkd.training.loop import ENSEMBLE, Engine, evaluate, predict_tiles, set_up, train_epoch
from medkd.training.run_tracking import CohortTracker

_EPOCH_SEEDS = 1_000_000


@dataclass(frozen=True)
class Phase:
    """A cohort and what it is trained with.

    Attributes:
        config: of the run.
        graph: of this phase.
        table: all tiles with their roles.
        cohort: the networks.
        identity: of the run; a checkpoint of another run is refused.
        tracker: told of each epoch.
        first: name of the teacher that is trained before the others; empty: this is the whole.
    """

    config: Config
    graph: Graph
    table: TileTable
    cohort: Cohort
    identity: str
    tracker: CohortTracker
    first: str = ""

    @property
    def checkpoints(self) -> Path:
        """Where its state is kept."""
        return self.config.run_folder / "checkpoints" / self.first

    @property
    def settings(self) -> TrainConfig:
        """How it is trained; a teacher beforehand may have epochs of its own."""
        train = self.config.train
        if self.first and train.teacher_epochs is not None:
            return train.model_copy(update={"epochs": train.teacher_epochs})
        return train

    def restore_best(self, done: checkpoint.Progress) -> None:
        """Bring the weights of the chosen epoch back."""
        best = checkpoint.epoch_folder(self.checkpoints, done.best_epoch)
        for name, module in self.cohort.own_modules().items():
            checkpoint.load_network(best / f"{name}.safetensors", module)


def train_phase(phase: Phase) -> checkpoint.Progress:
    """Train to the last epoch, from where an interrupted run stopped.

    Raises:
        TrainingError: the run was begun with other settings, or its loss is not finite.
    """
    config, graph, cohort, settings = phase.config, phase.graph, phase.cohort, phase.settings
    tiles = phase.table.tiles
    training = tiles[tiles["role"] == "train"].reset_index(drop=True)
    held_out = tiles[tiles["role"] == "validation"].reset_index(drop=True)
    dataset, sampler = training_loader(config, training, views=graph.views)
    steps = len(epoch_batches(dataset, sampler, config, 0))
    engine = set_up(cohort, settings, steps)
    found = checkpoint.load_checkpoint(phase.checkpoints, phase.identity)
    done, state = found if found is not None else (checkpoint.Progress(), None)
    if state is not None:
        cohort.load_state_dict(state["cohort"])
        engine.optimizer.load_state_dict(state["optimizer"])
        engine.schedule.load_state_dict(state["schedule"])
    validation = evaluation_batches(config, held_out, cache=True)
    positive = config.data.classes.index(config.data.positive)
    label = f"{phase.first} first" if phase.first else "training"
    with progress(label, steps * settings.epochs, done=steps * done.epochs_done) as advance:
        for epoch in range(done.epochs_done, settings.epochs):
            began = time.monotonic()
            # Dropout draws from this; the epoch alone decides it, so a resume draws the same.
            torch.manual_seed(seed_of(config.seed, _EPOCH_SEEDS + epoch))
            batches = epoch_batches(dataset, sampler, config, epoch)
            terms = train_epoch(engine, batches, advance, epoch=epoch, config=settings)
            probabilities, labels = predict_tiles(engine.forward, engine.fabric.device, validation)
            metrics = evaluate(probabilities, labels, graph, positive)
            rows = _curve_rows(epoch + 1, terms, metrics, "first/" if phase.first else "")
            done.curves += rows
            done.epochs_done = epoch + 1
            log_loss = metrics[ENSEMBLE]["log_loss"]
            if log_loss < done.best_log_loss:
                done.best_log_loss, done.best_epoch = log_loss, epoch + 1
                checkpoint.save_networks(
                    checkpoint.epoch_folder(phase.checkpoints, epoch + 1), cohort.own_modules()
                )
            done.seconds += time.monotonic() - began
            _save(phase, engine, done)
            phase.tracker.log_epoch(epoch + 1, rows)
            advance(0, note=f"epoch {epoch + 1}: validation log loss {log_loss:.3f}")
    if not done.best_epoch:
        raise TrainingError(
            "no epoch gave finite probabilities on the validation tiles",
            where=config.run_folder,
            remedy="Lower train.learning_rate or lengthen train.warmup_epochs, and begin anew with "
            "--restart.",
        )
    return done


def _save(phase: Phase, engine: Engine, done: checkpoint.Progress) -> None:
    checkpoint.save_checkpoint(
        phase.checkpoints,
        phase.identity,
        done,
        {
            "cohort": phase.cohort.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "schedule": engine.schedule.state_dict(),
        },
    )
    checkpoint.keep_only(phase.checkpoints, done.best_epoch)


def _curve_rows(
    epoch: int, terms: dict[str, float], metrics: dict[str, dict[str, float]], prefix: str
) -> list[dict[str, Any]]:
    rows = []
    for term, value in terms.items():
        node, name = term.split("/", 1)
        rows.append(
            {"epoch": epoch, "network": node, "metric": f"{prefix}train/{name}", "value": value}
        )
    for node, values in metrics.items():
        if prefix and node == ENSEMBLE:
            continue  # what ships is not there yet
        rows += [
            {
                "epoch": epoch,
                "network": node,
                "metric": f"{prefix}validation/{name}",
                "value": value,
            }
            for name, value in values.items()
        ]
    return rows
