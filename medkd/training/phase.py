"""One training from its first epoch to its last: of a whole cohort, or of a teacher beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from medkd.config import Config, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.errors import TrainingError
from medkd.progress import progress
from medkd.training import checkpoint
from medkd.training.cohorts import learning_rates
from medkd.training.data import epoch_batches, evaluation_order
from medkd.training.devices import Ranks, same_buffers
from medkd.training.engine import Engine, set_up
from medkd.training.evaluation import ENSEMBLE, evaluate, predict_tiles
from medkd.training.interruption import deferred_stop
from medkd.training.loop import EpochCourse, train_epoch
from medkd.training.rho import measure_rho
from medkd.training.run_tracking import CohortTracker
from medkd.training.software import continued_by
from medkd.training.training_set import TrainingSet
from medkd.training.watch import Watch


@dataclass(frozen=True)
class Phase:
    """A cohort and what it is trained with.

    Attributes:
        config: of the run.
        graph: of this phase.
        data: all images with their roles.
        cohort: the networks.
        identity: of the run; a checkpoint of another run is refused.
        tracker: told of each epoch; None: someone else tells.
        fabric: the device.
        ranks: the processes.
        first: name of the teacher that is trained before the others; empty: this is the whole.
    """

    config: Config
    graph: Graph
    data: TrainingSet
    cohort: Cohort
    identity: str
    tracker: CohortTracker | None
    fabric: Fabric
    ranks: Ranks
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
    ranks = phase.ranks
    loader, sampler = phase.data.training_loader(graph.views)
    steps = len(epoch_batches(loader, sampler, config, 0, ranks=ranks))
    engine = set_up(
        cohort,
        settings,
        steps,
        phase.fabric,
        ranks=ranks,
        seed=config.seed,
        learning_rates=learning_rates(config, graph),
    )
    found = checkpoint.load_checkpoint(phase.checkpoints, phase.identity)
    done, state = found if found is not None else (checkpoint.Progress(), None)
    course = EpochCourse()
    if state is not None:
        engine.load_state(state)
        course = EpochCourse(done.steps_done, state["sums"], state["dead"])
    validation = phase.data.validation_batches(ranks)
    criterion = cohort.task.criterion
    if done.epochs_done < settings.epochs and not _is_stuck(done, settings):
        done.trained_by = continued_by(done.trained_by, config.run_name, speaks=ranks.is_first)
    label = f"{phase.first} first" if phase.first else "training"
    before = steps * done.epochs_done + done.steps_done
    with (
        deferred_stop() as request,
        progress(label, steps * settings.epochs, done=before) as advance,
    ):
        if state is None:
            _measure_rho(phase, engine, done)
        watch = Watch(phase, engine, done, request, advance, steps)
        while done.epochs_done < settings.epochs and not _is_stuck(done, settings):
            epoch = done.epochs_done
            terms = train_epoch(
                engine,
                epoch_batches(
                    loader, sampler, config, epoch, steps_done=course.steps_done, ranks=ranks
                ),
                epoch=epoch,
                course=course,
                pace=watch.pace,
                after_step=watch.after_step,
            )
            metrics = _validated(engine, graph, validation, config, watch, course)
            rows = _curve_rows(epoch + 1, terms, metrics, "first/" if phase.first else "")
            done.curves += rows
            done.epochs_done = epoch + 1
            course = EpochCourse()
            cost = criterion.cost(metrics[ENSEMBLE])
            if cost < done.best_cost:
                done.best_cost, done.best_epoch = cost, epoch + 1
                if ranks.is_first:
                    checkpoint.save_networks(
                        checkpoint.epoch_folder(phase.checkpoints, epoch + 1),
                        engine.shown.own_modules(),
                    )
            watch.save(course)
            if ranks.is_first:
                checkpoint.keep_only(phase.checkpoints, done.best_epoch)
            if phase.tracker is not None:
                phase.tracker.log_epoch(epoch + 1, rows)
            watch.validated(epoch + 1, metrics[ENSEMBLE][criterion.metric])
            request.stop(*ranks.largest([request.signal_number or 0]))
    ranks.wait()
    if not done.best_epoch:
        raise TrainingError(
            "no epoch gave finite predictions on the validation images",
            where=config.run_folder,
            remedy="Lower train.learning_rate or lengthen train.warmup_epochs, and begin anew with "
            "--restart.",
        )
    return done


def _measure_rho(phase: Phase, engine: Engine, done: checkpoint.Progress) -> None:
    """What training together costs, where several networks are, in one process."""
    settings = phase.settings
    if phase.first or engine.ranks.count > 1 or not settings.rho_steps:
        return
    tiles = settings.batch_size // settings.accumulate
    done.rho = measure_rho(engine, tiles, phase.data.image_px, settings.rho_steps)
    if phase.tracker is not None:
        phase.tracker.log_rho(done.rho)


def _is_stuck(done: checkpoint.Progress, settings: TrainConfig) -> bool:
    """Whether too many epochs went by without a lower validation loss."""
    patience = settings.early_stop_epochs
    return patience is not None and done.epochs_done - done.best_epoch >= patience


def _validated(
    engine: Engine,
    graph: Graph,
    batches: Iterable[dict[str, Tensor]],
    config: Config,
    watch: Watch,
    course: EpochCourse,
) -> dict[str, dict[str, float]]:
    """Metrics on the validation images, of which each process predicts its share of batches."""
    same_buffers(engine.shown, engine.ranks)
    check = watch.between(course)
    parts = engine.ranks.gathered(predict_tiles(engine.shown, engine.fabric, batches, check))
    # In their order again, so that sums round as those of one process do.
    labels = torch.cat([labels for _, labels in parts])
    places = evaluation_order(len(labels), config, engine.ranks.count)
    predictions = {
        name: torch.cat([values[name] for values, _ in parts if values])[places]
        for name in parts[0][0]
    }
    labels = labels[places]
    return evaluate(predictions, labels, graph, engine.shown.task)


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
