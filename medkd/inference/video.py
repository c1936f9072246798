"""Frames of a video, by PyAV (the extra ``video``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medkd.errors import ConfigError, StageError

# Of a whole video: headers round, and the last frames may be missing.
_MOST_MISSING_S = 1.0


@dataclass(frozen=True)
class Frames:
    """Which frames of a video are looked at.

    Attributes:
        every: each n-th, beginning with the first.
        fps: so many a second of the video at most, whatever its own rate; None: see ``every``.
    """

    every: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(
                f"'{self.every}' is no number of frames", where="--every", remedy="Use 1 or more."
            )
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ConfigError(
                f"'{self.fps:g}' is no rate", where="--fps", remedy="Use a number above 0."
            )
        if self.fps is not None and self.every > 1:
            raise ConfigError(
                "--every and --fps both say which frames",
                where="medkd infer",
                remedy="Give one of them.",
            )


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        number: from 0, of all frames.
        time_s: since the first frame.
        pixels: RGB, uint8 height x width x 3, turned as players turn it.
    """

    number: int
    time_s: float
    pixels: np.ndarray


def require_video() -> ModuleType:
    """PyAV.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(
            "videos are read by PyAV, which is not installed",
            where="medkd infer",
            remedy="Install it: pip install 'medkd[video]'.",
        ) from None
    return av


def expected_frames(path: Path, wanted: Frames) -> int:
    """About how many frames :func:`frames` will give, for a progress bar; 1 where nobody knows."""
    av = require_video()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            length = container.duration / av.time_base if container.duration else 0.0
            count = stream.frames or round(length * float(stream.average_rate or 0))
    except (av.FFmpegError, IndexError):
        return 1  # told when it is read
    if wanted.fps is not None and length:
        count = min(count, round(length * wanted.fps))
    return max(1, math.ceil(count / wanted.every))


def frames(path: Path, wanted: Frames) -> Iterator[Frame]:
    """The wanted frames in their order, each decoded when it is asked for.

    Raises:
        ConfigError: PyAV is not installed.
        StageError: the file is no video, or is damaged; frames before the damage were given.
    """
    av = require_video()
    number, time_s, due, length_s = -1, 0.0, 0.0, 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise StageError("has no picture", where=path, remedy="Name a video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            length_s = _length_s(container, stream, av.time_base)
            began = None
            for number, frame in enumerate(container.decode(stream)):
                seconds = _time_of(frame, number, stream)
                began = seconds if began is None else began
                time_s = seconds - began
                if wanted.fps is not None:
                    # A clock of the video's own ticks may be late by a rounding.
                    if time_s < due - 1e-6:
                        continue
                    due += (1 + int((time_s - due) * wanted.fps)) / wanted.fps
                elif number % wanted.every:
                    continue
                pixels = frame.to_ndarray(format="rgb24")
                yield Frame(number, time_s, turned(pixels, frame.rotation))
    except av.FFmpegError as error:
        raise _damaged(path, f"cannot be decoded: {error.strerror or error}", number) from error
    if number < 0:
        raise _damaged(path, "holds no frame", number)
    # A decoder takes the end of a file that was cut off for the end of the video.
    if time_s + _MOST_MISSING_S < length_s:
        raise _damaged(path, f"ends at {time_s:.1f} s of {length_s:.1f} s", number)


def _damaged(path: Path, what: str, number: int) -> StageError:
    """What is to be told of a video whose last frame that could be decoded is ``number``."""
    kept = "" if number < 0 else f"; what was found up to frame {number} is kept"
    return StageError(what, where=path, remedy=f"Save the video again{kept}.")


def _length_s(container: Any, stream: Any, ticks: int) -> float:
    """How long the pictures say that they are, seconds; 0 where they do not."""
    lengths = [0.0]
    if stream.duration is not None and stream.time_base is not None:
        lengths.append(float(stream.duration * stream.time_base))
    elif container.duration is not None and len(container.streams) == 1:  # no longer sound
        lengths.append(container.duration / ticks)
    if stream.frames and stream.average_rate:
        lengths.append(float(stream.frames / stream.average_rate))
    return max(lengths)


def turned(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """A picture turned anticlockwise by the nearest multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90)))


def _time_of(frame: Any, number: int, stream: Any) -> float:
    """Seconds; some files have no times, and then their rate must do."""
    if frame.time is not None:
        return float(frame.time)
    rate = float(stream.average_rate or 0)
    return number / rate if rate else float(number)
