"""The one file that outlives every process of a watch."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from medkd.errors import OutputError, StageError
from medkd.inference.watch_state import Status, WatchedSlide, WatchState, printable

SLIDE = WatchedSlide("a/b.svs", "b", "s", "f", Status.WAITING, 1.5, 2.5)


def test_what_was_put_is_there_after_a_restart(tmp_path):
    path = tmp_path / "state"
    other = WatchedSlide("<é>.svs", "_", "s", "f", Status.FAILED, 0.0, 3.0, 1, 2, "MSS", "why\nnot")
    with WatchState(path) as state:
        state.put(SLIDE)
        state.put(other)
        state.put(WatchedSlide("c", "c", "s", "f", Status.DONE, 1.0, 1.0))
        state.remove("c")
    with WatchState(path) as state:
        assert dict(state.slides) == {SLIDE.key: SLIDE, other.key: other}
        assert state.slides["a/b.svs"].status is Status.WAITING


_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from medkd.inference.watch_state import Status, WatchedSlide, WatchState
with WatchState(Path(sys.argv[1])) as state:
    first = max((slide.crashes for slide in state.slides.values()), default=0)
    slide = WatchedSlide("a", "a", "", "", Status.RUNNING, 1.0, 1.0)
    for number in range(first + 1, 10**9):
        state.put(replace(slide, crashes=number))
        print(number, flush=True)
"""


def test_a_kill_loses_nothing_that_was_told(tmp_path):
    """The last number that the writer told, or the one it was just writing, is what is there."""
    path, random_ = tmp_path / "state", random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        first = writer.stdout.readline()
        time.sleep(random_.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in (first + writer.communicate()[0]).split("\n") if line]
        with WatchState(path) as state:
            assert state.slides["a"].crashes in (told[-1], told[-1] + 1)


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(StageError) as caught:
        WatchState(path)
    assert str(caught.value) == (
        f"{path}: is damaged: file is not a database. Move it away: the watch then begins anew, "
        "and does not call slides again whose results are in the folder."
    )


def test_a_file_of_a_later_medkd_is_refused(tmp_path):
    path = tmp_path / "state"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(StageError, match=r"of another version of medkd \(7; this one is 1\)"):
        WatchState(path)


def test_a_disk_that_refuses_leaves_things_as_they_were(tmp_path):
    path = tmp_path / "state"
    with WatchState(path) as state:
        state.put(SLIDE)
        state._database.execute("PRAGMA max_page_count = 1")  # what a full disk does
        big = WatchedSlide("big", "b", "s", "f", Status.DONE, 1.0, 1.0, reason="x" * 10**6)
        with pytest.raises(OutputError) as caught:
            state.put(big)
        assert str(caught.value) == (
            f"{path}: cannot be written: database or disk is full. Look at the disk's space and "
            "permissions; what was finished is kept."
        )
        assert dict(state.slides) == {SLIDE.key: SLIDE}
    with WatchState(path) as state:
        assert dict(state.slides) == {SLIDE.key: SLIDE}


def test_any_name_of_a_file_becomes_text():
    assert printable("F\udce4lle") == "F\\xe4lle"
    assert printable("Fälle\n") == "Fälle\n"
