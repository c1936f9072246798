"""Which images of a detector's are drawn; a file of its own, as the command line needs no more."""

from __future__ import annotations

from enum import StrEnum


class Draw(StrEnum):
    """The choices of ``medkd infer --draw``."""

    ALL = "all"
    CALLED = "called"
    NONE = "none"
