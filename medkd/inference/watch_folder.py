"""What lies in the watched folder, and what of it nobody writes to any more."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkd.inference.slide_files import SlideFile, slides_in
from medkd.inference.watch_state import printable
from medkd.slides.dicom_headers import dicom_header
from medkd.slides.openslide_reader import fingerprint


@dataclass(frozen=True)
class Arrival:
    """A slide whose files were left alone long enough, and are not as they were known."""

    key: str
    slide: SlideFile
    signature: str
    fingerprint: str


@dataclass(frozen=True)
class Look:
    """The folder at one moment.

    Attributes:
        present: every slide that is there, by its key.
        settling: keys of slides that may still be written to.
        arrivals: slides that have just settled.
        left_aside: files that are no slides.
        problem: what cannot be read, in words; empty: nothing.
    """

    present: Mapping[str, SlideFile] = field(default_factory=dict)
    settling: tuple[str, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    left_aside: tuple[Path, ...] = ()
    problem: str = ""


class WatchedFolder:
    """A folder that is looked at again and again: the system tells nothing of network drives.

    Args:
        folder: scanners write to it; it is read only.
        settle_s: how long sizes and times of a slide's files must stay the same, seconds.
    """

    def __init__(self, folder: Path, settle_s: float) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self._since: dict[str, tuple[str, float]] = {}

    def look(self, known: Mapping[str, str], now: float, *, busy: str = "") -> Look:
        """See what is there.

        Args:
            known: signature of each slide that arrived before, by its key.
            now: by a clock that never goes back, seconds.
            busy: key of the slide that is being called; it cannot arrive meanwhile.
        """
        try:
            if not self._folder.is_dir():
                return Look(problem=f"{self._folder}: no such folder. Mount it, or make it again.")
            found = slides_in(self._folder)
        except OSError as error:  # a drive that goes away while it is looked at
            return Look(problem=printable(f"{self._folder}: cannot be read: {error.strerror}."))
        problems = list(found.unusable)
        present: dict[str, SlideFile] = {}
        since: dict[str, tuple[str, float]] = {}
        arrivals: list[Arrival] = []
        for slide in found.slides:
            try:
                key, signature = self._key(slide), _signature(slide)
                present[key] = slide
                if known.get(key) == signature:
                    continue
                seen, begun = self._since.get(key, ("", now))
                if seen != signature:
                    begun = now
                since[key] = (signature, begun)
                if now - begun >= self._settle_s and key != busy:
                    arrivals.append(Arrival(key, slide, signature, _content(slide)))
                    del since[key]
            except FileNotFoundError:  # it went away meanwhile
                continue
            except OSError as error:
                problems.append(f"{slide.path}: cannot be read: {error.strerror}.")
        self._since = since
        return Look(
            present,
            tuple(sorted(since)),
            tuple(arrivals),
            found.left_aside,
            printable(" ".join(problems)),
        )

    def _key(self, slide: SlideFile) -> str:
        place = slide.path.relative_to(self._folder)
        header = dicom_header(slide.path) if _is_dicom(slide) else None
        # Which file of a series is the first may change while they arrive.
        return printable(str(place if header is None else place.parent / header.series))


def _is_dicom(slide: SlideFile) -> bool:
    return slide.path.suffix.lower() in ("", ".dcm", ".dicom")


def _signature(slide: SlideFile) -> str:
    """Of names, sizes and times: while it changes, somebody writes."""
    parts = []
    for path in slide.files:
        status = path.stat()
        parts.append((os.fsencode(path.name).hex(), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def _content(slide: SlideFile) -> str:
    """The slide's fingerprint; with those of the files beside a MIRAX or VMS slide's own."""
    marks = [fingerprint(slide.path)]
    if not _is_dicom(slide):
        marks += [fingerprint(path) for path in slide.files if path != slide.path]
    return marks[0] if len(marks) == 1 else hashlib.sha256("".join(marks).encode()).hexdigest()
