"""The tile stage: every slide of a table to its tile store, a process each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.files import make_folder, output_errors, remove_stale_temporaries
from medkd.progress import progress
from medkd.slides.imported_tiles import refuse_imported
from medkd.slides.store import INDEX_NAME, write_index
from medkd.slides.tile_report import write_report
from medkd.slides.tile_slide import (
    SlideOutcome,
    SlideRowLike,
    SlideTask,
    outdated,
    skipped,
    tile_slide,
)
from medkd.slides.workers import Lost, run_in_workers


@dataclass(frozen=True)
class StageSummary:
    """What the tile stage did.

    Attributes:
        total: slides of the table.
        done: tiled now.
        skipped_existing: were there already, made in the same way from the same file.
        failed: (slide_id, reason, message) of each slide that could not be tiled.
        redone: (slide_id, why) of each slide that was there but had to be made anew.
        output: the folder.
        tiles: in the index.
        synthetic: slides that were drawn, not scanned.
    """

    total: int
    done: int
    skipped_existing: int
    failed: tuple[tuple[str, str, str], ...]
    redone: tuple[tuple[str, str], ...]
    output: Path
    tiles: int
    synthetic: int


def run_tile_stage(
    rows: Sequence[SlideRowLike], parameters: TileConfig, folder: Path
) -> StageSummary:
    """Tile every slide of ``rows`` into ``folder``, then write the index and the report.

    Slides that are there already and up to date are left. A slide that fails, or kills the
    process that reads it, costs its own row of the report and nothing else.

    Raises:
        OutputError: the folder cannot be written to. Slides that were finished are kept.
        StageError: the folder holds tiles that were imported.
    """
    began = time.monotonic()
    refuse_imported(folder)
    make_folder(folder)
    remove_stale_temporaries(folder)
    tasks = [
        SlideTask(row.slide_id, row.patient_id, row.path, row.mpp, parameters, folder)
        for row in rows
    ]
    why = {task.slide_id: outdated(task) for task in tasks}
    redone = {
        task.slide_id: why[task.slide_id] or ""
        for task in tasks
        if why[task.slide_id] and task.record_path.is_file()
    }
    outcomes = {task.slide_id: skipped(task) for task in tasks if why[task.slide_id] is None}
    to_do = [task for task in tasks if why[task.slide_id] is not None]
    if to_do:
        # From here on the old index may speak of tiles that are gone.
        with output_errors(folder / INDEX_NAME):
            (folder / INDEX_NAME).unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(_tiled(to_do, parameters)) as ended,
            progress("tiling", len(tasks), done=len(outcomes)) as advance,
        ):
            for outcome in ended:
                if outcome.status == "ok" and outcome.slide_id in redone:
                    reason = f"done again: {redone[outcome.slide_id]}"
                    outcome = replace(outcome, message=reason)  # noqa: PLW2901
                outcomes[outcome.slide_id] = outcome
                advance(1, _note(outcome))
    finally:
        # Of processes that died, or were ended because the run was.
        remove_stale_temporaries(folder)
    in_order = [outcomes[task.slide_id] for task in tasks]
    good = [outcome for outcome in in_order if outcome.status != "failed"]
    index = write_index(folder, (outcome.record for outcome in good))
    write_report(folder, in_order, parameters, elapsed_s=time.monotonic() - began)
    return StageSummary(
        total=len(tasks),
        done=sum(outcome.status == "ok" for outcome in in_order),
        skipped_existing=sum(outcome.status == "skipped" for outcome in in_order),
        failed=tuple(
            (outcome.slide_id, outcome.reason, outcome.message)
            for outcome in in_order
            if outcome.status == "failed"
        ),
        redone=tuple(redone.items()),
        output=folder,
        tiles=len(index),
        synthetic=sum(outcome.synthetic for outcome in in_order),
    )


def _note(outcome: SlideOutcome) -> str:
    if outcome.status == "failed":
        return f"{outcome.slide_id} failed ({outcome.reason})"
    return f"{outcome.slide_id} {outcome.record['tiles']['used']} tiles"


def _tiled(
    tasks: Sequence[SlideTask], parameters: TileConfig
) -> Generator[SlideOutcome, None, None]:
    """The outcome of each task, as they end."""
    limit_s, workers = parameters.time_limit_s, parameters.workers
    with contextlib.closing(
        run_in_workers(tile_slide, tasks, workers=workers, time_limit_s=limit_s)
    ) as ended:
        for task, outcome in ended:
            yield _lost(task, outcome, limit_s) if isinstance(outcome, Lost) else outcome


def _lost(task: SlideTask, lost: Lost, limit_s: float) -> SlideOutcome:
    if lost.why == "too_long":
        error = SlideError(
            "time_limit",
            f"was not done after {limit_s:g} s (tile.time_limit_s)",
            where=task.path,
            remedy="Raise the limit for a large slide; a damaged one, or a network drive that "
            "hangs, needs to be copied again.",
        )
    else:
        error = SlideError(
            "crashed",
            "the process that read the slide died, each time it was tried (a crash in a native "
            f"library, or too little memory; exit code {lost.exit_code})",
            where=task.path,
            remedy="The file is probably damaged: copy or export it again. If memory ran "
            "out, lower tile.workers.",
        )
    return SlideOutcome(
        task.slide_id, task.patient_id, "failed", reason=error.reason, message=str(error)
    )
