"""Speed, told by a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from medkd.training.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("medkd.training.pace.time.perf_counter", clock)
    return clock


def batches(clock: Clock, count: int) -> Iterator[int]:
    """Each takes a second to come."""
    for number in range(count):
        clock.now += 1
        yield number


def test_speed_and_waiting(clock: Clock) -> None:
    pace = Pace()
    for _ in pace.timed(batches(clock, 4)):
        clock.now += 3  # the step
        pace.count(32)
    assert pace.seconds() == 16
    assert pace.read() == {"images_per_s": 8.0, "waiting_share": 0.25}
    assert pace.seconds() == 0


def test_what_happens_between_epochs_does_not_count(clock: Clock) -> None:
    pace = Pace()
    for _ in range(2):
        for _ in pace.timed(batches(clock, 2)):
            clock.now += 1
            pace.count(10)
        clock.now += 1000  # the validation
    for _ in pace.timed(batches(clock, 2)):
        clock.now += 1
        pace.count(10)
    assert pace.read() == {"images_per_s": 5.0, "waiting_share": 0.5}


def test_a_reading_within_an_epoch_begins_anew(clock: Clock) -> None:
    pace = Pace()
    for number in pace.timed(batches(clock, 4)):
        clock.now += 1
        pace.count(10)
        if number == 1:
            assert pace.read() == {"images_per_s": 5.0, "waiting_share": 0.5}
    assert pace.read() == {"images_per_s": 5.0, "waiting_share": 0.5}
