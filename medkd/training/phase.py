"""One training from its first epoch to its last: of a whole cohort, or of a teacher beforehand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from medkd.config import Config, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.errors import TrainingError
from medkd.progress import progress
from medkd.training import checkpoint
from medkd.training.data import TileTable, epoch_batches, evaluation_batches, training_loader
from medkd.training.interruption import StopRequest, deferred_stop
from medkd.training.loop import (
    ENSEMBLE,
    Engine,
    EpochCourse,
    evaluate,
    predict_tiles,
    set_up,
    train_epoch,
)
from medkd.training.run_tracking import CohortTracker


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
    engine = set_up(cohort, settings, steps, seed=config.seed)
    found = checkpoint.load_checkpoint(phase.checkpoints, phase.identity)
    done, state = found if found is not None else (checkpoint.Progress(), None)
    course = EpochCourse()
    if state is not None:
        cohort.load_state_dict(state["cohort"])
        engine.optimizer.load_state_dict(state["optimizer"])
        engine.schedule.load_state_dict(state["schedule"])
        course = EpochCourse(done.steps_done, state["sums"], state["dead"])
    validation = evaluation_batches(config, held_out, cache=True)
    label = f"{phase.first} first" if phase.first else "training"
    before = steps * done.epochs_done + done.steps_done
    with (
        deferred_stop() as request,
        progress(label, steps * settings.epochs, done=before) as advance,
    ):
        saver = _Saver(phase, engine, done, request)
        for epoch in range(done.epochs_done, settings.epochs):
            batches = epoch_batches(dataset, sampler, config, epoch, steps_done=course.steps_done)
            terms = train_epoch(
                engine,
                batches,
                advance,
                epoch=epoch,
                config=settings,
                course=course,
                after_step=saver.after_step,
            )
            metrics = _validated(engine, graph, validation, config, saver, course)
            rows = _curve_rows(epoch + 1, terms, metrics, "first/" if phase.first else "")
            done.curves += rows
            done.epochs_done = epoch + 1
            course = EpochCourse()
            log_loss = metrics[ENSEMBLE]["log_loss"]
            if log_loss < done.best_log_loss:
                done.best_log_loss, done.best_epoch = log_loss, epoch + 1
                checkpoint.save_networks(
                    checkpoint.epoch_folder(phase.checkpoints, epoch + 1), cohort.own_modules()
                )
            saver.save(course)
            checkpoint.keep_only(phase.checkpoints, done.best_epoch)
            phase.tracker.log_epoch(epoch + 1, rows)
            advance(0, note=f"epoch {epoch + 1}: validation log loss {log_loss:.3f}")
            request.stop()
    if not done.best_epoch:
        raise TrainingError(
            "no epoch gave finite probabilities on the validation tiles",
            where=config.run_folder,
            remedy="Lower train.learning_rate or lengthen train.warmup_epochs, and begin anew with "
            "--restart.",
        )
    return done


class _Saver:
    """Saves the state of a phase: now and then, and before the run stops."""

    def __init__(
        self, phase: Phase, engine: Engine, done: checkpoint.Progress, request: StopRequest
    ) -> None:
        self._phase, self._engine, self._done, self._request = phase, engine, done, request
        self._saved = self._counted = time.monotonic()

    def after_step(self, course: EpochCourse) -> None:
        """Save if it is time to.

        Raises:
            Stopped: a signal came; the state is saved.
        """
        due = time.monotonic() - self._saved >= 60 * self._phase.settings.save_minutes
        if due or self._request:
            self.save(course)
        self._request.stop()

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a signal came."""
        return bool(self._request)

    def save(self, course: EpochCourse) -> None:
        """Save, with so much of the epoch done."""
        engine, done = self._engine, self._done
        now = time.monotonic()
        done.seconds += now - self._counted
        done.steps_done = course.steps_done
        checkpoint.save_checkpoint(
            self._phase.checkpoints,
            self._phase.identity,
            done,
            {
                "cohort": self._phase.cohort.state_dict(),
                "optimizer": engine.optimizer.state_dict(),
                "schedule": engine.schedule.state_dict(),
                "sums": course.sums,
                "dead": course.dead,
            },
        )
        self._counted = now
        self._saved = time.monotonic()


def _validated(
    engine: Engine,
    graph: Graph,
    batches: Iterable[dict[str, Tensor]],
    config: Config,
    saver: _Saver,
    course: EpochCourse,
) -> dict[str, dict[str, float]]:
    """Metrics on the validation tiles; a stop in between is a stop after the epoch's last step."""

    def check(_: int) -> None:
        if saver.is_asked_to_stop:
            saver.after_step(course)

    probabilities, labels = predict_tiles(engine.forward, engine.fabric.device, batches, check)
    positive = config.data.classes.index(config.data.positive)
    return evaluate(probabilities, labels, graph, positive)


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
