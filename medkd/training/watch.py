"""What happens between steps: saving, stopping, telling how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from medkd.progress import Advance
from medkd.training import checkpoint
from medkd.training.devices import mean_over_ranks
from medkd.training.engine import Engine
from medkd.training.interruption import StopRequest
from medkd.training.loop import EpochCourse, check_finite
from medkd.training.pace import Pace

if TYPE_CHECKING:
    from medkd.training.phase import Phase

# Telling waits for the device, so it is done now and then.
_SECONDS_BETWEEN_TELLINGS = 10.0


class Watch:
    """Looks after a phase while it trains.

    Args:
        phase: see there.
        engine: see there.
        done: how far the phase is; brought up to date before it is saved.
        request: whether a signal came.
        advance: shows the progress.
        steps: of an epoch.
    """

    def __init__(
        self,
        phase: Phase,
        engine: Engine,
        done: checkpoint.Progress,
        request: StopRequest,
        advance: Advance,
        steps: int,
    ) -> None:
        self._phase, self._engine, self._done = phase, engine, done
        self._request, self._advance, self._steps = request, advance, steps
        self.pace = Pace()
        self._validation = self._lately = ""
        self._saved = self._counted = time.monotonic()

    def after_step(self, course: EpochCourse) -> None:
        """Save if it is time to, stop if that was asked for, tell how it goes.

        Raises:
            Stopped: a signal came; the state is saved.
            TrainingError: the loss is not finite any more.
        """
        settings, first = self._phase.settings, self._engine.ranks.is_first
        due = time.monotonic() - self._saved >= 60 * settings.save_minutes
        if settings.save_steps is not None:
            due = due or course.steps_done % settings.save_steps == 0
        # Only the first process's clock counts; a signal may have reached any.
        asked = [self._request.signal_number or 0, int(due and first)]
        number, save = self._engine.ranks.largest(asked)
        if number or save:
            self.save(course)
        self._request.stop(number)
        if self.pace.seconds() >= _SECONDS_BETWEEN_TELLINGS:
            self._tell(course)
        self._advance(1)

    def between(self, course: EpochCourse) -> Callable[[int], None]:
        """To be called with each batch of a validation: a stop is one after the last step."""

        def check(_: int) -> None:
            # Several processes agree after a step only.
            if self._engine.ranks.count == 1 and self._request:
                self.save(course)
                self._request.stop()

        return check

    def save(self, course: EpochCourse) -> None:
        """Save, with so much of the epoch done; every process takes part, the first one writes."""
        now = time.monotonic()
        self._done.seconds += now - self._counted
        self._counted = now
        self._done.steps_done = course.steps_done
        sums = mean_over_ranks(course.sums, self._engine.ranks)
        if self._engine.ranks.is_first:
            checkpoint.save_checkpoint(
                self._phase.checkpoints,
                self._phase.identity,
                self._done,
                {**self._engine.state(), "sums": sums, "dead": course.dead},
            )
        self._saved = time.monotonic()

    def validated(self, epoch: int, reached: float) -> None:
        """Show what the epoch, from 1, came to by the task's criterion."""
        label = self._engine.cohort.task.criterion.label
        self._validation = f"epoch {epoch}: validation {label} {reached:.3f}"
        self._show()

    def _show(self) -> None:
        self._advance(0, note="; ".join(filter(None, (self._validation, self._lately))))

    def _tell(self, course: EpochCourse) -> None:
        """Losses and speed; waits for the device."""
        if self._phase.settings.non_finite == "stop":  # else it is told when the epoch ends
            check_finite(course, self._engine, self._done.epochs_done)
        figures = self.pace.read()
        networks: dict[str, dict[str, float]] = {}
        losses: dict[str, float] = {}
        for term, value in course.means().items():
            node, name = term.split("/", 1)
            networks.setdefault(node, {})[name] = value
            losses[node] = losses.get(node, 0.0) + value
        told = " ".join(f"{node} {value:.3g}" for node, value in losses.items())
        self._lately = f"{figures['images_per_s']:.0f} images/s, loss {told}"
        self._show()
        if self._phase.tracker is not None:
            for group in self._engine.optimizer.param_groups:
                owner = group["name"].split("/")[0]
                if owner in networks:
                    networks[owner]["learning_rate"] = group["lr"]
            step = self._done.epochs_done * self._steps + course.steps_done
            self._phase.tracker.log_steps(step, figures, networks)
