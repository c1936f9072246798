"""The tile stage: every slide of a table to its tile store, a process each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.files import make_folder, output_errors, remove_stale_temporaries
from medkd.progress import progress
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
    """
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
    with progress("tiling", len(tasks), done=len(outcomes)) as advance:
        for outcome in _tiled(to_do, parameters.workers):
            if outcome.status == "ok" and outcome.slide_id in redone:
                reason = f"done again: {redone[outcome.slide_id]}"
                outcome = replace(outcome, message=reason)  # noqa: PLW2901
            outcomes[outcome.slide_id] = outcome
            advance(1, _note(outcome))
    in_order = [outcomes[task.slide_id] for task in tasks]
    good = [outcome for outcome in in_order if outcome.status != "failed"]
    index = write_index(folder, (outcome.record for outcome in good))
    write_report(folder, in_order, parameters)
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


def _tiled(tasks: Sequence[SlideTask], workers: int) -> Iterator[SlideOutcome]:
    """The outcome of each task, as they end.

    When a worker process dies, no one can tell which of the slides in flight killed it. Each of
    them is tried again alone.
    """
    waiting = list(reversed(tasks))
    while waiting:
        suspects: list[SlideTask] = []
        with _pool(min(workers, len(waiting))) as pool:
            in_flight: dict[Future[SlideOutcome], SlideTask] = {}
            try:
                while (waiting or in_flight) and not suspects:
                    # No more than can run at once, so that a death has few suspects.
                    while waiting and len(in_flight) < workers:
                        in_flight[pool.submit(tile_slide, waiting[-1])] = waiting[-1]
                        waiting.pop()
                    for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                        task = in_flight.pop(future)
                        try:
                            outcome = future.result()
                        except BrokenProcessPool:
                            suspects.append(task)
                        else:
                            yield outcome
            except BrokenProcessPool:
                pass  # submit() met the broken pool; the futures in flight tell the rest.
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            suspects.extend(in_flight.values())
        for task in suspects:
            yield _tiled_alone(task)


def _tiled_alone(task: SlideTask) -> SlideOutcome:
    with _pool(1) as pool:
        try:
            return pool.submit(tile_slide, task).result()
        except BrokenProcessPool:
            error = SlideError(
                "crashed",
                "the process that read the slide died (a crash in a native library, or too "
                "little memory)",
                where=task.path,
                remedy="The file is probably damaged: copy or export it again. If memory ran "
                "out, lower tile.workers.",
            )
            return SlideOutcome(
                task.slide_id, task.patient_id, "failed", reason=error.reason, message=str(error)
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the same on every system, and no lock is copied while it is held.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
