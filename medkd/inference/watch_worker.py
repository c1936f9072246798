"""The process that calls a watch's slides: the model is loaded once, and a crash costs it alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from medkd.errors import MedkdError, ModelPackageError, OutputError
from medkd.inference.slide_files import SlideFile

# Spawned, not forked: no lock is copied while it is held.
_CONTEXT = multiprocessing.get_context("spawn")

# How long the last one of a killed watch may take to notice.
_ORPHAN_S = 60.0


@dataclass(frozen=True)
class WorkerSetup:
    """What the process needs to know.

    Attributes:
        model: the package.
        model_sha256: what it must be.
        out: gets the results.
        lock: a file; while its holder lives, no other process calls slides into ``out``.
        mpp: resolution of level 0, um/px, over what the slides say.
        maps: kinds of maps beside the report.
        memory_bytes: more than this is refused to the process, where the system can.
    """

    model: Path
    model_sha256: str
    out: Path
    lock: Path
    mpp: float | None
    maps: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""


@dataclass(frozen=True)
class Called:
    """The slide's result is written."""

    call: str
    probability: float | None
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The slide cannot be used."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """No slide can be called: the model is not what it was, or nothing can be written."""

    error: MedkdError


@dataclass(frozen=True)
class Died:
    """The process ended by itself. Negative: the signal that killed it."""

    exit_code: int | None

    @property
    def in_words(self) -> str:
        """How it ended."""
        code = self.exit_code
        if code is None or code >= 0:
            return f"exit status {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


Answer = Ready | Called | Failed | Refused | Died


class Worker:
    """A process that calls one slide after the other."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    @property
    def lives(self) -> bool:
        """Whether it was started, and neither ended nor was told to have died."""
        return self._process is not None

    def start(self) -> None:
        """Start it; it answers :class:`Ready` when the model is loaded."""
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(self._setup, theirs), daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours

    def call(self, slide: SlideFile) -> None:
        """Give it a slide; it answers :class:`Called` or :class:`Failed`, or dies."""
        assert self._pipe is not None
        # Where it died meanwhile, the answer will say so.
        with contextlib.suppress(OSError):
            self._pipe.send(slide)

    @property
    def sources(self) -> list[Connection | int]:
        """What becomes ready when there is an answer; for ``multiprocessing.connection.wait``."""
        if self._process is None or self._pipe is None:
            return []
        return [self._pipe, self._process.sentinel]

    def answer(self) -> Answer | None:
        """What it says, if it says anything now."""
        if self._process is None or self._pipe is None:
            return None
        try:
            if self._pipe.poll():
                answer: Answer = self._pipe.recv()
                return answer
        except (EOFError, OSError):
            pass  # it died, perhaps while it answered
        else:
            if self._process.is_alive():
                return None
        self._process.join(timeout=5)
        died = Died(self._process.exitcode)
        self.kill()
        return died

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


def _serve(setup: WorkerSetup, pipe: Connection) -> None:
    from medkd.inference.watch_lock import only_one
    from medkd.progress import keep_silent

    # A service's signals go to all its processes; when this one ends is the watch's to say.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory(setup.memory_bytes)
    keep_silent()
    try:
        with only_one(setup.lock, wait_s=_ORPHAN_S, remedy="End that process."):
            _call_slides(setup, pipe)
    except MedkdError as error:
        pipe.send(Refused(error))
    except (EOFError, OSError):
        return  # the watch is gone


def _call_slides(setup: WorkerSetup, pipe: Connection) -> None:
    from medkd.inference.engine import Students
    from medkd.inference.infer_stage import infer_slides
    from medkd.inference.package import load_package

    package = load_package(setup.model)
    if package.sha256 != setup.model_sha256:
        raise model_changed(setup.model)
    students = Students(package)
    pipe.send(Ready())
    while True:
        slide: SlideFile = pipe.recv()
        try:
            done = infer_slides(
                [slide],
                package,
                setup.out,
                mpp=setup.mpp,
                maps=setup.maps,
                students=students,
            )
        except OutputError:
            raise
        except MedkdError as error:
            # The slide made a network fail; the next one may be sound.
            pipe.send(Failed(str(error)))
            continue
        if done.failed:
            pipe.send(Failed(done.failed[0]))
        else:
            row = done.rows[0]
            pipe.send(Called(row.call, row.probability, row.seconds))


def model_changed(model: Path) -> ModelPackageError:
    """The error for a model that is another one than when the watch began."""
    return ModelPackageError(
        "is not the model that the watch began with",
        where=model,
        remedy="Start 'medkd watch' again to call new slides with it; slides that were called "
        "keep their results.",
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _limit_memory(limit_bytes: int) -> None:
    """So that a slide that says it is enormous fails, and the machine goes on."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
