"""The slides that a process keeps open between reads."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from medkd.slides.reader import SlideReader

# Slides that a forked process got from its parent. The two share the position in each file, which
# even closing may move: they are neither used nor closed.
_inherited: list[OrderedDict[Path, SlideReader]] = []


class OpenSlides:
    """The slides that this process has open, the last used ones; read one at a time.

    It can be pickled and forked: each process opens slides of its own.

    Args:
        limit: how many stay open, at least 1.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"'open_slides' must be at least 1, not {limit}")
        self._limit = limit
        self._begin()

    def __reduce__(self) -> tuple[object, ...]:
        return OpenSlides, (self._limit,)

    @contextmanager
    def using(self, path: Path, opened: Callable[[], SlideReader]) -> Iterator[SlideReader]:
        """The slide at ``path``, by ``opened`` unless it is open already."""
        self._leave_inherited()
        with self._lock:
            if path not in self._slides:
                self._slides[path] = opened()
            self._slides.move_to_end(path)
            while len(self._slides) > self._limit:
                self._slides.popitem(last=False)[1].close()
            yield self._slides[path]

    def close(self) -> None:
        """Close all of them."""
        self._leave_inherited()
        with self._lock:
            while self._slides:
                self._slides.popitem()[1].close()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._slides: OrderedDict[Path, SlideReader] = OrderedDict()

    def _leave_inherited(self) -> None:
        if self._pid != os.getpid():
            _inherited.append(self._slides)
            self._begin()
