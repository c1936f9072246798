"""What becomes of a slide in the watch: each step is in the state before the next one is taken."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from medkd.errors import StageError
from medkd.files import make_folder, output_errors, remove_stale_temporaries
from medkd.inference.earlier_result import RESULT_NAME, read_result, result_of
from medkd.inference.watch_folder import Arrival
from medkd.inference.watch_state import Status, WatchedSlide, WatchState, printable
from medkd.logs import log_event
from medkd.slides.openslide_reader import fingerprint

_log = logging.getLogger(__name__)

MOST_CRASHES = 2
"""Processes that a slide may take down; then it is in quarantine."""

MOST_INTERRUPTIONS = 5
"""Times that the watch may be killed over a slide. It opens none itself, so that tells little."""

SUPERSEDED = "superseded"


class WatchQueue:
    """The slides on their way through one output folder.

    Args:
        state: where they are kept.
        out: gets a folder for each slide.
        model_sha256: of the model that calls them.
        mpp: resolution of level 0, um/px, over what the slides say.
        kept_names: names in ``out`` that no slide may have.
    """

    def __init__(
        self,
        state: WatchState,
        out: Path,
        *,
        model_sha256: str,
        mpp: float | None,
        kept_names: Collection[str],
    ) -> None:
        self._state = state
        self._out = out
        self._model_sha256 = model_sha256
        self._mpp = mpp
        self._kept_names = frozenset(kept_names)

    @property
    def slides(self) -> Mapping[str, WatchedSlide]:
        """All slides that ever arrived, by key."""
        return self._state.slides

    def waiting(self, present: Collection[str]) -> list[WatchedSlide]:
        """Slides that wait and are ``present``, the next one first."""
        rows = (row for row in self.slides.values() if row.status is Status.WAITING)
        return sorted((row for row in rows if row.key in present), key=lambda row: row.queued)

    def arrived(self, arrival: Arrival, present: Collection[str]) -> None:
        """A slide came, or came again; the same content is not called twice.

        One that failed or is in quarantine has another try, for somebody wrote to it.
        """
        key, row = arrival.key, self.slides.get(arrival.key)
        is_same = row is not None and row.fingerprint == arrival.fingerprint
        if row is not None and is_same and row.status in (Status.DONE, Status.WAITING):
            self._state.put(replace(row, signature=arrival.signature))
            return
        slide_id = arrival.slide.slide_id if row is None else row.slide_id
        now = time.time()
        new = WatchedSlide(
            key, slide_id, arrival.signature, arrival.fingerprint, Status.WAITING, now, now
        )
        reason = self._clash(new, present)
        if reason:
            self.failed(replace(new, queued=0.0), reason)
            return
        if row is not None and row.status is Status.DONE:
            self._set_aside(slide_id)
        self._state.put(new)
        log_event(_log, "slide_queued", slide_id=slide_id, path=key, changed=row is not None)

    def _clash(self, new: WatchedSlide, present: Collection[str]) -> str:
        """Why ``new`` may not have its folder; empty: it may."""
        if new.slide_id.lower() in self._kept_names:
            return f"{new.key}: the watch keeps this name for a file of its own. Rename the slide."
        for other in list(self.slides.values()):
            if other.slide_id != new.slide_id or other.key == new.key or not other.queued:
                continue
            is_same = other.fingerprint == new.fingerprint
            if is_same and other.key not in present:
                self._state.remove(other.key)  # it was moved within the folder
                continue
            told = "is the same slide as" if is_same else "would be written to the same folder as"
            return f"{new.key}: {told} {other.key}. Rename or remove one of the two."
        return ""

    def begun(self, row: WatchedSlide, path: Path) -> WatchedSlide | None:
        """Mark ``row`` as running, its folder free of results; None: its result is there already.

        Raises:
            OSError: ``path`` cannot be read.
        """
        folder, mark = self._out / row.slide_id, fingerprint(path)
        there = result_of(folder, fingerprint=mark, model_sha256=self._model_sha256, mpp=self._mpp)
        if there is not None:
            self._put(row, Status.DONE, call=there.call)
            log_event(_log, "slide_there_already", slide_id=row.slide_id, call=there.call)
            return None
        self._set_aside(row.slide_id)
        log_event(_log, "slide_started", slide_id=row.slide_id, path=row.key)
        return self._put(row, Status.RUNNING)

    def called(self, row: WatchedSlide, call: str, **figures: float | None) -> None:
        """Its result is written."""
        _to_disk(self._out / row.slide_id)
        self._put(row, Status.DONE, call=call)
        log_event(_log, "slide_called", slide_id=row.slide_id, path=row.key, call=call, **figures)

    def failed(self, row: WatchedSlide, reason: str) -> None:
        """It cannot be used as it is."""
        self._put(row, Status.FAILED, reason=reason)
        log_event(_log, "slide_failed", slide_id=row.slide_id, path=row.key, reason=reason)

    def crashed(self, row: WatchedSlide, why: str) -> None:
        """It took the process down that read it: once more at the end of the queue, or never."""
        row = replace(row, crashes=row.crashes + 1)
        log_event(_log, "slide_crashed", slide_id=row.slide_id, reason=why, times=row.crashes)
        self._again(row, why, row.crashes, MOST_CRASHES)

    def postponed(self, row: WatchedSlide, why: str) -> None:
        """Its result could not be written: the others first, it may be for its folder alone."""
        self._put(replace(row, queued=time.time()), Status.WAITING, reason=why)

    def recover(self, *, is_interruption: bool) -> None:
        """Settle what was running when its process ended: its result is there, or it waits again.

        Before a slide is begun its folder holds no result, so one that is there is its own, whole.

        Args:
            is_interruption: the watch was killed; otherwise it gave the slide up by itself.
        """
        for row in [r for r in self.slides.values() if r.status is Status.RUNNING]:
            remove_stale_temporaries(self._out / row.slide_id)
            call = self._call_of(row)
            if call:
                self.called(row, call)
            elif not is_interruption:
                self._put(row, Status.WAITING)
            else:
                times = row.interruptions + 1
                log_event(_log, "slide_interrupted", slide_id=row.slide_id, times=times)
                interrupted = replace(row, interruptions=times)
                self._again(interrupted, "the watch was killed over it", times, MOST_INTERRUPTIONS)

    def _call_of(self, row: WatchedSlide) -> str:
        try:
            result = read_result(self._out / row.slide_id)
        except StageError:
            return ""
        return result.call if result.model.sha256 == self._model_sha256 else ""

    def _again(self, row: WatchedSlide, why: str, times: int, most: int) -> None:
        if times < most:
            self._put(replace(row, queued=time.time()), Status.WAITING, reason=why)
            return
        remove_stale_temporaries(self._out / row.slide_id)
        told = f"{times} times; the last time: {why}"
        self._put(row, Status.QUARANTINED, reason=told)
        log_event(_log, "slide_quarantined", slide_id=row.slide_id, path=row.key, reason=told)

    def _put(
        self, row: WatchedSlide, status: Status, *, call: str = "", reason: str = ""
    ) -> WatchedSlide:
        told = printable(reason)
        return self._state.put(
            replace(row, status=status, call=call, reason=told, changed=time.time())
        )

    def _set_aside(self, slide_id: str) -> None:
        """Keep a result of another file or model where no one takes it for this one's."""
        folder = self._out / slide_id
        if not (folder / RESULT_NAME).is_file():
            return
        parent, number = make_folder(self._out / SUPERSEDED), 1
        while (to := parent / f"{slide_id}.{number}").exists():
            number += 1
        with output_errors(folder):
            folder.rename(to)
        log_event(_log, "slide_superseded", slide_id=slide_id, kept=f"{SUPERSEDED}/{to.name}")


def _to_disk(folder: Path) -> None:
    """Names of files that were moved into place can be lost in a power cut until this is done."""
    for path in (folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
