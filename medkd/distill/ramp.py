"""Ramps: how a link's weight grows in the course of training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

_LENGTH = re.compile(
    r"^(?P<length>\d+(\.\d+)?)( of (?P<total>\d+(\.\d+)?))? (?P<unit>epochs?|steps?)$"
)


@dataclass(frozen=True)
class Moment:
    """Where a training is.

    Attributes:
        epoch: that is running, from 0.
        step: that is to be done next, counted through all epochs, from 0.
        epochs: that the whole training has.
        steps_per_epoch: of it.
    """

    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Ramp:
    """A weight's factor, from near 0 to 1.

    Attributes:
        shape: ``linear`` t, ``cosine`` (1 - cos(pi t)) / 2, or ``exponential`` exp(-5 (1 - t)^2)
            (Tarvainen and Valpola, arXiv 1703.01780, and PCL), t from 0 to 1.
        length: epochs or steps until it is 1; with ``total``, of so many that the source had.
        total: of the source's training; None: the length is meant as it stands.
        unit: what length and total count.
    """

    shape: Literal["linear", "exponential", "cosine"]
    length: float
    total: float | None
    unit: Literal["epochs", "steps"]

    def __call__(self, moment: Moment) -> float:
        """The factor at a moment. In epochs it changes from epoch to epoch, as the papers do."""
        length = self.length
        if self.total is not None:
            steps = 1 if self.unit == "epochs" else moment.steps_per_epoch
            length *= moment.epochs * steps / self.total
        now = moment.epoch if self.unit == "epochs" else moment.step
        t = min(now / length, 1.0)
        if t == 1.0:
            return 1.0
        if self.shape == "linear":
            return t
        if self.shape == "cosine":
            return (1 - math.cos(math.pi * t)) / 2
        return math.exp(-5 * (1 - t) ** 2)

    def __str__(self) -> str:
        of = f" of {self.total:g}" if self.total is not None else ""
        return f"{self.shape}, {self.length:g}{of} {self.unit}"


def parse_ramp(shape: Literal["linear", "exponential", "cosine"], text: str) -> Ramp:
    """Read a ramp's length: ``80 epochs``, ``1000 steps``, or ``80 of 300 epochs`` (that share).

    Raises:
        ValueError: it is no such text, or not above zero.
    """
    found = _LENGTH.match(text.strip())
    if found is None:
        raise ValueError(
            f"{text!r} is no length; write '80 epochs', '1000 steps' or '80 of 300 epochs'"
        )
    length = float(found["length"])
    total = float(found["total"]) if found["total"] else None
    if length <= 0 or (total is not None and length > total):
        raise ValueError(f"{text!r} must be above zero, and no longer than the whole")
    return Ramp(shape, length, total, "epochs" if found["unit"].startswith("epoch") else "steps")
