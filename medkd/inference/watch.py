"""The watch folder: what a scanner writes is called once, whatever dies in between.

The watch itself opens no slide: a process of its own does, and a crash there is counted against
the slide that it had.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

from medkd import __version__
from medkd.errors import MedkdError, OutputError, SlideError, StageError
from medkd.files import make_folder, remove_stale_temporaries
from medkd.inference.maps.write import check_map_kinds
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.package_files import MANIFEST
from medkd.inference.slide_files import check_mpp, told_aside
from medkd.inference.watch_folder import Look, WatchedFolder
from medkd.inference.watch_lock import only_one
from medkd.inference.watch_page import HEARTBEAT, PAGE, Glance, write_glance
from medkd.inference.watch_queue import SUPERSEDED, WatchQueue
from medkd.inference.watch_state import WatchedSlide, WatchState, printable
from medkd.inference.watch_worker import (
    Called,
    Died,
    Failed,
    Ready,
    Refused,
    Worker,
    WorkerSetup,
    model_changed,
)
from medkd.logs import json_log, log_event

_log = logging.getLogger(__name__)

STATE, LOG, LOCK, WORKER_LOCK = "watch.sqlite", "watch.jsonl", "watch.lock", "watch-worker.lock"
_KEPT_NAMES = (HEARTBEAT, PAGE, SUPERSEDED, STATE, f"{STATE}-journal", LOG, LOCK, WORKER_LOCK)
_MOST_STARTS = 3
_ORPHAN_S = 60.0


@dataclass(frozen=True)
class WatchOptions:
    """What to watch, and how.

    Attributes:
        incoming: the folder that scanners write to; it is read only.
        model: the package.
        out: gets the results.
        mpp: resolution of level 0, um/px, over what the slides say.
        maps: kinds of maps beside the report, see docs/maps.md.
        settle_s: a slide's files must have been left alone so long, seconds.
        poll_s: how often the folder is looked at, seconds.
        time_limit_s: a slide that takes longer is given up, seconds.
        memory_gb: that the process which calls slides may take, GiB.
    """

    incoming: Path
    model: Path
    out: Path
    mpp: float | None = None
    maps: tuple[str, ...] = ()
    settle_s: float = 60.0
    poll_s: float = 10.0
    time_limit_s: float = 3600.0
    memory_gb: float = 8.0


def watch(options: WatchOptions) -> None:
    """Call every slide that arrives, once, until Ctrl-C or SIGTERM.

    The slide that is being called then is given up; it is the first when the watch begins again.

    Raises:
        ConfigError: there is no such kind of map, or its extra is not installed.
        ModelPackageError: the model cannot be used, or was replaced.
        OutputError: ``out`` cannot be written when the watch begins.
        SlideError: a folder is not there, one lies within the other, or ``mpp`` is not a length.
        StageError: another watch has ``out``, or its state is damaged.
    """
    check_mpp(options.mpp)
    check_map_kinds(options.maps)
    _check_folders(options.incoming, options.out)
    package = load_package(options.model)
    out = make_folder(options.out)
    busy = "Stop it, or give this one an output folder of its own."
    with (
        _stop_signals() as stop,
        only_one(out / LOCK, wait_s=0, remedy=busy),
        json_log(out / LOG),
        WatchState(out / STATE) as state,
    ):
        # Of a watch that was killed, the process that calls slides lives a moment longer.
        with only_one(out / WORKER_LOCK, wait_s=_ORPHAN_S, remedy="End that process."):
            remove_stale_temporaries(out)
        setup = WorkerSetup(
            model=options.model,
            model_sha256=package.sha256,
            out=out,
            lock=out / WORKER_LOCK,
            mpp=options.mpp,
            maps=options.maps,
            memory_bytes=round(options.memory_gb * 2**30),
        )
        Watch(options, package, state, Worker(setup)).run(stop)


class Watch:
    """The loop, and what it remembers between two looks at the folder."""

    def __init__(
        self, options: WatchOptions, package: ModelPackage, state: WatchState, worker: Worker
    ) -> None:
        self._options = options
        self._package = package
        self._worker = worker
        self._folder = WatchedFolder(options.incoming, options.settle_s)
        self._queue = WatchQueue(
            state,
            options.out,
            model_sha256=package.sha256,
            mpp=options.mpp,
            kept_names=_KEPT_NAMES,
        )
        self._manifest = _digest(options.model / MANIFEST)
        self._seen = Look()
        self._running: WatchedSlide | None = None
        self._began = 0.0
        self._next_look = 0.0
        self._is_ready = False
        self._starts = 0
        self._folder_problem = ""
        self._output_problem = ""

    def run(self, stop: socket.socket) -> None:
        """Go on until ``stop`` has something to read."""
        model = self._package.manifest
        log_event(
            _log,
            "watch_started",
            medkd=__version__,
            model=model.name,
            model_version=model.version,
            model_sha256=self._package.sha256,
            process=os.getpid(),
        )
        self._queue.recover(is_interruption=True)
        why = "a fault of medkd"
        try:
            while not self._turn(stop):
                pass
            why = "asked to stop"
        except MedkdError as error:
            why = str(error)
            raise
        finally:
            self._put_down()
            log_event(_log, "watch_stopped", reason=why)
            self._tell_if_possible(stopped=why)

    def _turn(self, stop: socket.socket) -> bool:
        """Look, begin, wait, and take what came; True: it is time to stop."""
        try:
            if time.monotonic() >= self._next_look:
                self._look()
            self._begin()
            self._tell()
            if stop in wait([stop, *self._worker.sources], timeout=self._patience_s()):
                return True
            self._take()
        except OutputError as error:
            # A full disk, a drive that went away: nothing is lost, and it may come back.
            self._has_problem(str(error))
            self._put_down()
            self._tell_if_possible()
            return bool(wait([stop], timeout=self._options.poll_s))
        return False

    def _look(self) -> None:
        self._next_look = time.monotonic() + self._options.poll_s
        if not self._running:
            # Where the disk was full before, this is done late.
            self._queue.recover(is_interruption=False)
        manifest = _digest(self._options.model / MANIFEST)
        if manifest and manifest != self._manifest:
            raise model_changed(self._options.model)
        known = {key: row.signature for key, row in self._queue.slides.items()}
        busy = self._running.key if self._running else ""
        seen = self._folder.look(known, time.monotonic(), busy=busy)
        if seen.problem != self._folder_problem:
            self._folder_problem = seen.problem
            self._warn(seen.problem)
        if seen.left_aside and seen.left_aside != self._seen.left_aside:
            log_event(_log, "left_aside", told=told_aside(seen.left_aside))
        self._seen = seen
        for arrival in seen.arrivals:
            self._queue.arrived(arrival, seen.present)
        if not self._running and not self._queue.waiting(seen.present):
            self._output_problem = ""

    def _begin(self) -> None:
        """Give the process that calls slides the next one, if it is free."""
        if self._running:
            return
        for row in self._queue.waiting(self._seen.present):
            if not self._worker.lives:
                self._worker.start()
                self._is_ready = False
            if not self._is_ready:
                return
            slide = self._seen.present[row.key]
            try:
                self._running = self._queue.begun(row, slide.path)
            except OutputError as error:
                self._queue.postponed(row, str(error))
                raise
            except OSError:  # it went away, or cannot be read now; the next look tells
                continue
            if self._running:
                self._began = time.monotonic()
                self._worker.call(replace(slide, slide_id=row.slide_id))
                return

    def _take(self) -> None:
        """Take what the process says, if it says anything, or give up what takes too long."""
        answer, row = self._worker.answer(), self._running
        limit_s = self._options.time_limit_s
        if answer is None and row and time.monotonic() - self._began > limit_s:
            self._worker.kill()
            self._queue.crashed(row, f"it was not done after {limit_s:g} s (--time-limit)")
        elif isinstance(answer, Called) and row:
            self._output_problem = ""
            seconds = round(answer.seconds, 3)
            self._queue.called(row, answer.call, probability=answer.probability, seconds=seconds)
        elif isinstance(answer, Failed) and row:
            self._queue.failed(row, answer.reason)
        elif isinstance(answer, Died) and row:
            self._queue.crashed(row, f"the process that read it died ({answer.in_words})")
        else:
            if isinstance(answer, Ready):
                self._is_ready, self._starts = True, 0
            elif isinstance(answer, Refused):
                if row and isinstance(answer.error, OutputError):
                    self._queue.postponed(row, str(answer.error))
                raise answer.error
            elif isinstance(answer, Died):
                self._died_at_start(answer)
            return
        self._running = None

    def _died_at_start(self, died: Died) -> None:
        self._starts += 1
        if self._starts >= _MOST_STARTS:
            raise StageError(
                f"the process that loads it died {self._starts} times ({died.in_words})",
                where=self._options.model,
                remedy="See with 'medkd infer' whether the model can be used; it may need more "
                "memory (--memory-gb).",
            )

    def _put_down(self) -> None:
        """End the process, and settle what it had."""
        self._worker.kill()
        self._running = None
        try:
            self._queue.recover(is_interruption=False)
        except OutputError as error:
            self._has_problem(str(error))

    def _patience_s(self) -> float:
        """How long to wait for the process that calls slides."""
        until = self._next_look
        if self._running:
            until = min(until, self._began + self._options.time_limit_s)
        return max(until - time.monotonic(), 0.0)

    # What others see.

    def _has_problem(self, told: str) -> None:
        """Something cannot be written; a problem until a result could be, or none is to be."""
        told = printable(told)
        if told != self._output_problem:
            self._output_problem = told
            self._warn(told)

    def _warn(self, told: str) -> None:
        if told:
            log_event(_log, "problem", reason=told)
            print(f"warning: {told}", file=sys.stderr, flush=True)  # noqa: T201

    def _tell(self, *, stopped: str = "") -> None:
        write_glance(
            self._options.out,
            Glance(
                package=self._package,
                poll_s=self._options.poll_s,
                slides=tuple(self._queue.slides.values()),
                queue=tuple(self._queue.waiting(self._seen.present)),
                running=self._running,
                settling=self._seen.settling,
                left_aside=printable(told_aside(self._seen.left_aside)),
                problem=" ".join(filter(None, (self._folder_problem, self._output_problem))),
                stopped=stopped,
            ),
        )

    def _tell_if_possible(self, *, stopped: str = "") -> None:
        try:
            self._tell(stopped=stopped)
        except OutputError as error:
            self._has_problem(str(error))


def _digest(path: Path) -> str:
    """SHA-256 of a file's content; empty where it cannot be read now."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _check_folders(incoming: Path, out: Path) -> None:
    inner, outer = incoming.resolve(), out.resolve()
    if not incoming.is_dir():
        error = SlideError(
            "no_folder", "no such folder", where=incoming, remedy="Name the folder to watch."
        )
    elif inner.is_relative_to(outer) or outer.is_relative_to(inner):
        error = SlideError(
            "nested_folders",
            f"it and {incoming} lie one within the other, so results could be taken for slides",
            where=out,
            remedy="Choose an output folder beside the one that is watched.",
        )
    else:
        return
    error.exit_status = 2
    raise error


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """A socket that has something to read once Ctrl-C or SIGTERM came; neither interrupts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        earlier = signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(earlier)
            for number, handler in before.items():
                signal.signal(number, handler)
