from __future__ import annotations

import os
import sys
import threading
from contextlib import closing

import pytest

from medkd.inference.overlap import overlapped, usable_cores


def predicting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_once_and_in_order(threads):
    late = threading.Event()

    def square(number):
        # The first item of several is the last to be done.
        if number == 0 and threads > 1:
            assert late.wait(10)
        elif number == 1:
            late.set()
        return number * number

    found = list(overlapped(square, range(7), threads=threads))
    assert found == [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16), (5, 25), (6, 36)]
    assert predicting_threads() == []


def test_nothing_to_do():
    assert list(overlapped(abs, [], threads=2)) == []


def test_reading_goes_on_while_others_work():
    """The work on an item is not done before the next item was brought."""
    brought = [threading.Event() for _ in range(4)]

    def items():
        for number in range(4):
            brought[number].set()
            yield number

    def work(number):
        return number == 3 or brought[number + 1].wait(10)

    assert [done for _, done in overlapped(work, items(), threads=1)] == [True] * 4


def test_few_items_are_held():
    held, most = 0, 0

    def items():
        nonlocal held, most
        for number in range(40):
            held += 1
            most = max(most, held)
            yield number

    for _ in overlapped(abs, items(), threads=3):
        held -= 1
    assert most == 2 * 3
    assert held == 0


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_what_fails_while_reading_is_raised_and_ends_the_threads(error):
    def items():
        yield from range(5)
        raise error

    with pytest.raises(type(error)) as caught:
        list(overlapped(abs, items(), threads=2))
    assert caught.value is error
    assert predicting_threads() == []


def test_what_fails_at_work_is_raised_in_its_turn():
    outcomes = overlapped(lambda number: 1 / (3 - number), range(9), threads=2)
    assert [next(outcomes) for _ in range(3)] == [(0, 1 / 3), (1, 1 / 2), (2, 1)]
    with pytest.raises(ZeroDivisionError):
        next(outcomes)
    assert predicting_threads() == []


def test_leaving_early_ends_the_threads():
    begun = []

    def work(number):
        begun.append(number)

    with closing(overlapped(work, range(1000), threads=2)) as outcomes:
        next(outcomes)
        assert predicting_threads()
    assert predicting_threads() == []
    assert len(begun) <= 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be bound to cores")
def test_cores_are_those_of_the_process():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert usable_cores() == len(mine)
