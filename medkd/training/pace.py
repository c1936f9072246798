"""How fast a training goes, and how long it waits for tiles."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Counts images and the time between asking for a batch and having it."""

    def __init__(self) -> None:
        self._paused_at = 0.0
        self._begin()

    def _begin(self) -> None:
        self._since = time.perf_counter()
        self._images = 0
        self._waited_s = 0.0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time that each is waited for.

        What passes between the last one and the next call, such as a validation, does not count.
        """
        if self._paused_at:
            self._since += time.perf_counter() - self._paused_at
            self._paused_at = 0.0
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                self._paused_at = time.perf_counter()
                return
            self._waited_s += time.perf_counter() - asked
            yield batch

    def count(self, images: int) -> None:
        """So many more images are through."""
        self._images += images

    def seconds(self) -> float:
        """Since the last reading."""
        return time.perf_counter() - self._since

    def read(self) -> dict[str, float]:
        """Images per second and the share of time spent waiting since the last reading.

        Let the device finish first: otherwise it is told how fast work is handed to it.
        """
        seconds = max(self.seconds(), 1e-9)
        figures = {
            "images_per_s": self._images / seconds,
            "waiting_share": self._waited_s / seconds,
        }
        self._begin()
        return figures
