"""Worker processes that may die: each costs the task it held, and is replaced.

Every worker has a pipe of its own. The pools of the standard library and of others share one
queue, whose lock a killed process takes with it; here nothing is shared.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# Spawned, not forked: the same on every system, and no lock is copied while it is held.
_CONTEXT = multiprocessing.get_context("spawn")

# A process that something else killed (a machine short of memory kills the largest) deserves
# another try; one that a slide crashes, crashes again.
_ATTEMPTS = 3


@dataclass(frozen=True)
class Lost:
    """What is told in place of a result.

    Attributes:
        why: the process ``died`` each time, or the task took ``too_long``.
        exit_code: of the process that died last; negative: the signal that killed it.
    """

    why: Literal["died", "too_long"]
    exit_code: int | None = None


@dataclass
class _Worker(Generic[Task]):
    process: SpawnProcess
    pipe: Connection
    task: Task
    attempt: int
    deadline: float


def run_in_workers(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    time_limit_s: float,
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Call ``function`` with each task, ``workers`` at a time, each in a process of its own.

    Args:
        function: importable by name in a new process. What it raises is raised here.
        tasks: picklable.
        workers: processes at a time.
        time_limit_s: a task that takes longer is given up and its process killed.

    Yields:
        A task and what came of it, as they end. A task whose process died is tried again, three
        times in all.
    """
    waiting = [(task, 1) for task in reversed(tasks)]
    idle: list[tuple[SpawnProcess, Connection]] = []
    busy: list[_Worker[Task]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                task, attempt = waiting.pop()
                process, pipe = idle.pop() if idle else _start(function)
                worker = _Worker(process, pipe, task, attempt, time.monotonic() + time_limit_s)
                try:
                    pipe.send(task)
                except OSError:
                    # It died while it was idle; the task was not begun.
                    waiting.append((task, attempt))
                    _end(process, pipe)
                    continue
                busy.append(worker)
            for worker in _ready(busy):
                busy.remove(worker)
                came = _outcome(worker)
                if isinstance(came, Lost):
                    _end(worker.process, worker.pipe)
                    if came.why == "died" and worker.attempt < _ATTEMPTS:
                        waiting.append((worker.task, worker.attempt + 1))
                        continue
                else:
                    idle.append((worker.process, worker.pipe))
                yield worker.task, came
    finally:
        for process, pipe in [*idle, *((worker.process, worker.pipe) for worker in busy)]:
            _end(process, pipe)


def _start(function: Callable[[Any], Any]) -> tuple[SpawnProcess, Connection]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """What a worker does: it ends when the pipe does, so it never outlives its parent for long."""
    # Ctrl-C goes to every process of the terminal; which of them end is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, Any] = (True, function(task))
        except Exception as error:
            answer = (False, error)
        try:
            pipe.send(answer)
        except OSError:
            return


def _ready(busy: list[_Worker[Task]]) -> list[_Worker[Task]]:
    """Workers that answered, died or are over time; waits for the first."""
    soonest = min(worker.deadline for worker in busy)
    told = wait(
        [item for worker in busy for item in (worker.pipe, worker.process.sentinel)],
        timeout=max(soonest - time.monotonic(), 0),
    )
    now = time.monotonic()
    return [
        worker
        for worker in busy
        if worker.pipe in told or worker.process.sentinel in told or worker.deadline <= now
    ]


def _outcome(worker: _Worker[Task]) -> Any:
    if worker.deadline > time.monotonic() and not worker.pipe.poll():
        # It is dying: the system tells so a moment before it closes the pipe.
        worker.process.join(timeout=5)
    answer = None
    try:
        if worker.pipe.poll():
            answer = worker.pipe.recv()
        elif worker.process.is_alive():
            return Lost("too_long")
    except (EOFError, OSError, pickle.UnpicklingError):
        pass  # it died, perhaps while it answered
    if answer is None:
        worker.process.join(timeout=5)
        return Lost("died", worker.process.exitcode)
    succeeded, value = answer
    if not succeeded:
        raise value
    return value


def _end(process: SpawnProcess, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()
