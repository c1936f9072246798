"""Reading and predicting at the same time: one thread brings items, others work on them."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def usable_cores() -> int:
    """Cores that this process may use: a batch system or taskset may leave it less than all."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def overlapped(
    work: Callable[[Item], Outcome], items: Iterable[Item], *, threads: int
) -> Generator[tuple[Item, Outcome], None, None]:
    """Do ``work`` in ``threads`` threads while the calling thread brings further items.

    The caller's thread runs ``items`` itself, so that what fails there, or an interrupt from the
    keyboard, needs no way back. At most ``2 * threads`` items are held at a time. Close the
    generator where it may be left early: that ends the threads.

    Args:
        work: releases the interpreter's lock for most of its time, as onnxruntime does.
        items: brought one after the other.
        threads: that work, beside the one that brings.

    Yields:
        Each item with what became of it, in the order of ``items``.

    Raises:
        Whatever ``items`` or ``work`` raise, the latter in its item's turn.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    waiting: deque[tuple[Item, Future[Outcome]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) == 2 * threads:
                first, outcome = waiting.popleft()
                yield first, outcome.result()
        while waiting:
            first, outcome = waiting.popleft()
            yield first, outcome.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
