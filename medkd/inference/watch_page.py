"""What a watch shows: ``heartbeat.json`` for a monitor, ``queue.html`` for a person."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkd import __version__
from medkd.files import write_json, write_text
from medkd.inference.package import ModelPackage
from medkd.inference.watch_state import Status, WatchedSlide
from medkd.pages import page_template

HEARTBEAT, PAGE = "heartbeat.json", "queue.html"

_MOST_ROWS = 100


@dataclass(frozen=True)
class Glance:
    """A watch at one moment.

    Attributes:
        package: the model.
        poll_s: how often the folder is looked at, seconds.
        slides: all that ever arrived.
        queue: those that wait and are there, the next one first.
        running: the one that is being called.
        settling: keys of slides that may still be written to.
        left_aside: files that are no slides, in words.
        problem: what keeps the watch from its work, in words; empty: nothing.
        stopped: why the watch ended; empty: it goes on.
    """

    package: ModelPackage
    poll_s: float
    slides: tuple[WatchedSlide, ...]
    queue: tuple[WatchedSlide, ...]
    running: WatchedSlide | None
    settling: tuple[str, ...]
    left_aside: str
    problem: str
    stopped: str


def write_glance(folder: Path, glance: Glance) -> None:
    """Write both files into ``folder``.

    Raises:
        OutputError: they cannot be written.
    """
    now = datetime.now(UTC)
    write_json(folder / HEARTBEAT, heartbeat(glance, now))
    write_text(folder / PAGE, queue_html(glance, now))


def heartbeat(glance: Glance, now: datetime) -> dict[str, Any]:
    """What ``heartbeat.json`` says; docs/watch.md explains every key."""
    counts = Counter(slide.status for slide in glance.slides)
    running = glance.running
    model = glance.package.manifest
    return {
        "time": now.isoformat(timespec="seconds"),
        "status": "stopped" if glance.stopped else "problem" if glance.problem else "watching",
        "problem": glance.problem or None,
        "stopped": glance.stopped or None,
        "medkd": __version__,
        "model": {
            "name": model.name,
            "version": model.version,
            "sha256": glance.package.sha256,
        },
        "process": os.getpid(),
        "poll_s": glance.poll_s,
        "now_at": running.slide_id if running else None,
        "now_since": _time(running.changed).isoformat(timespec="seconds") if running else None,
        "queue": len(glance.queue),
        "settling": len(glance.settling),
        "done": counts[Status.DONE],
        "failed": counts[Status.FAILED],
        "quarantined": counts[Status.QUARANTINED],
        "research_use_only": True,
    }


def queue_html(glance: Glance, now: datetime) -> str:
    """The page: one file that loads nothing, and asks to be loaded anew at every look."""

    def of(status: Status) -> list[WatchedSlide]:
        rows = [slide for slide in glance.slides if slide.status is status]
        return sorted(rows, key=lambda slide: -slide.changed)

    return page_template("medkd.inference", "queue.html.j2").render(
        beat=heartbeat(glance, now),
        refresh_s=max(round(glance.poll_s), 5),
        running=glance.running,
        queue=glance.queue,
        settling=glance.settling,
        troubled=[*of(Status.QUARANTINED), *of(Status.FAILED)],
        done=of(Status.DONE),
        left_aside=glance.left_aside,
        stopped=glance.stopped,
        most=_MOST_ROWS,
        time=lambda seconds: _time(seconds).strftime("%Y-%m-%d %H:%M:%S"),
        on_synthetic=glance.package.manifest.provenance.trained_on_synthetic,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
