"""What the user is told while work goes on: progress with a time to finish, and warnings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[..., None]
"""``advance(steps=1, note="")``: ``steps`` more are done; ``note`` stands beside the bar."""

_SECONDS_BETWEEN_LINES = 10.0


_is_silent = False


def keep_silent() -> None:
    """Show neither output, warnings nor progress from now on; errors are told."""
    global _is_silent  # noqa: PLW0603
    _is_silent = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def warn(message: str) -> None:
    """Tell of something that does not stop the work, in one line on standard error."""
    if not _is_silent:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """``75`` becomes ``1:15``; hours appear when there are any."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, remaining = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{remaining:02d}" if hours else f"{minutes}:{remaining:02d}"


@contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show how far a piece of work is and when it will end: a live bar, or plain lines in a pipe.

    Args:
        title: what is being done, such as ``tiling``.
        total: how many steps there are.
        done: steps that an earlier run had finished; they do not count towards the speed.
    """
    if _is_silent:
        yield _nothing
    elif sys.stderr.isatty():
        with live_progress(title, total, done=done) as advance:
            yield advance
    else:
        with _plain(title, total, done) as advance:
            yield advance


def _nothing(steps: int = 1, note: str = "") -> None:
    """Progress that is not shown."""


@contextmanager
def live_progress(
    title: str, total: int, *, done: int = 0, file: TextIO | None = None
) -> Iterator[Advance]:
    """One live line on a terminal: standard error, or ``file`` as if it were one."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = Console(file=file, force_terminal=True) if file else Console(stderr=True)
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # Cut where the terminal ends; a second line would flicker.
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, ratio=1)),
    )
    with Progress(
        *columns,
        console=console,
        refresh_per_second=4,
        expand=True,
        # What is printed meanwhile stands above the line, if it goes to the same terminal.
        redirect_stdout=file is None,
        redirect_stderr=file is None,
    ) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            if note:
                bar.update(task, note=note)
            bar.update(task, advance=steps)

        yield advance


@contextmanager
def _plain(title: str, total: int, done: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    count = done
    told = ""

    def line(clock: str) -> None:
        tail = f"  {told}" if told else ""
        print(f"{title:<9} {count}/{total}  {clock}{tail}", file=sys.stderr, flush=True)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal count, last, told
        count += steps
        told = note or told
        now = time.monotonic()
        if count < total and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            elapsed = now - started
            left = elapsed / max(count - done, 1) * (total - count)
            line(f"{format_seconds(elapsed)} elapsed, {format_seconds(left)} left")

    yield advance
    if count >= total:
        line(f"took {format_seconds(time.monotonic() - started)}")
