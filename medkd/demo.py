"""The whole pipeline on slides that are drawn, not scanned: what 'medkd demo' runs."""

from __future__ import annotations

import csv
import os
import random
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

from medkd.config import Config, load_config
from medkd.errors import MedkdError
from medkd.files import atomic_path, make_folder, write_text
from medkd.progress import format_seconds, progress

_SLIDE_PX = 2560
_SLIDE_MPP = 0.5
# Far from any seed of the cohort, so that the new slide is nobody's the networks have seen.
_NEW_SLIDE_SEED = 1_000_003


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    patients: int = 40,
    shuffle_labels: bool = False,
    assignments: tuple[str, ...] = (),
) -> dict[str, float]:
    """Draw slides, run every stage, infer one new slide, and print what came out.

    Interrupted and started again, it goes on where it stopped.

    Args:
        out: folder for everything.
        seed: of the slides, the split and the training.
        patients: how many synthetic patients.
        shuffle_labels: give the patients each other's labels; nothing can then be learnt.
        assignments: ``key.path=value`` over the demo's configuration.

    Returns:
        Slide AUROC on test patients by network.
    """
    began = time.monotonic()
    _few_threads_too_many()
    slides = make_folder(out / "slides")
    with progress("drawing", 0) as _:
        pass
    raise NotImplementedError
