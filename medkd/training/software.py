"""By which code a run is trained, and what to tell where that changes on the way."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

import medkd
from medkd.progress import warn

# What of medkd decides which numbers a training gives.
_PARTS = ("datasets", "distill", "networks", "tasks", "training")


@cache
def software() -> str:
    """``medkd 0.1.0 (code 1a2b3c4d), torch 2.13.0``; the code's digest tells versions apart that
    nobody numbered."""
    root = Path(medkd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for part in _PARTS for path in (root / part).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    code = digest.hexdigest()[:8]
    return f"medkd {medkd.__version__} (code {code}), torch {torch.__version__}"


def continued_by(trained_by: list[str], run: str, *, speaks: bool = True) -> list[str]:
    """What a run was trained by, with today's software at the end; another one is told.

    A resume is exact where nothing changed: other code may give other numbers from here on.

    Args:
        trained_by: what the run was trained by so far; empty: nobody wrote it down, or it begins.
        run: its name.
        speaks: whether this process is the one that tells.
    """
    mine = software()
    if mine in trained_by[-1:]:
        return trained_by
    if trained_by and speaks:
        warn(
            f"run '{run}' was trained by {trained_by[-1]} and goes on with {mine}: its figures may "
            "differ from those of either. --restart begins anew."
        )
    return [*trained_by, mine]
