"""Being asked to stop in the middle of a training: not between two halves of a step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medkd.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal came, and which."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def stop(self, number: int | None = None) -> None:
        """End, if a signal came, to this process or with this ``number`` to another one.

        Raises:
            Stopped: it did.
        """
        if self.signal_number or number:
            raise Stopped(self.signal_number or number or 0)


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Within, Ctrl-C and SIGTERM wait until they are asked for; the second one does not.

    Elsewhere than in the main thread signals cannot be caught, and nothing is deferred.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def remember(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if request:
            raise Stopped(number)
        request.signal_number = number
        print("\nstopping after this step; once more: at once", file=sys.stderr, flush=True)  # noqa: T201

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
