"""Processes that die, hang or refuse, and what is told of their tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from medkd.errors import OutputError
from medkd.slides.workers import Lost, run_in_workers


# At module level: workers import them.
def square(number: int) -> int:
    return number**2


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def die_at_the_first_two_tries(folder: Path) -> int:
    tries = len(list(folder.iterdir()))
    (folder / str(tries)).touch()
    if tries < 2:
        os._exit(7)
    return tries


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def refuse(number: int) -> int:
    raise OutputError("no room", where=str(number), remedy="Make some.")


def note_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


def ended(function, tasks, *, workers=2, time_limit_s=60.0):
    return list(run_in_workers(function, tasks, workers=workers, time_limit_s=time_limit_s))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_its_result(workers):
    assert dict(ended(square, range(7), workers=workers)) == {n: n * n for n in range(7)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_kills_its_process_costs_itself_alone(workers):
    found = dict(ended(square_or_die, range(6), workers=workers))
    assert found.pop(3) == Lost("died", -signal.SIGKILL)
    assert found == {n: n * n for n in (0, 1, 2, 4, 5)}


def test_a_task_whose_process_died_twice_gets_its_third_try(tmp_path):
    assert ended(die_at_the_first_two_tries, [tmp_path]) == [(tmp_path, 2)]


def test_a_task_that_hangs_is_given_up_and_the_others_are_done():
    found = dict(ended(sleep, [60.0, 0.01, 0.02], time_limit_s=3))
    assert found == {60.0: Lost("too_long"), 0.01: 0.01, 0.02: 0.02}


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(OutputError, match=r"1: no room\. Make some\."):
        ended(refuse, [1])


def test_no_process_outlives_a_run_that_is_left_early(tmp_path):
    tasks = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    running = run_in_workers(note_and_sleep, tasks[:2], workers=2, time_limit_s=2)
    with contextlib.closing(running):
        assert next(running)[1] == Lost("too_long")
    for path in tasks[:2]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
