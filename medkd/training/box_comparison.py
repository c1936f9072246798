"""Another run of detectors, evaluated on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd.config import Config
from medkd.errors import StageError
from medkd.tasks.detection_metrics import match
from medkd.training.box_evaluation import Evaluated, Resampling, comparison_record, figures_of
from medkd.training.box_predictions import FoundBoxes
from medkd.training.detections_file import (
    FOLDER,
    NAME,
    SavedDetections,
    check_weights,
    read_detections,
)


def other_run(name: str, config: Config) -> tuple[str, SavedDetections]:
    """What another run's ensemble found, as it was evaluated.

    Args:
        name: of a run in the same output folder, or a run's folder.
        config: the experiment that is evaluated.

    Returns:
        The name, and what was found.

    Raises:
        StageError: there is no such run, it is this one, it is not evaluated, or it was trained
            again since.
    """
    folder = config.run_folder.parent / name
    if not folder.is_dir():
        folder = Path(name)
    if not folder.is_dir():
        runs = config.run_folder.parent
        there = (
            sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
        )
        raise StageError(
            "is neither a run of this output nor a folder",
            where=f"--against {name}",
            remedy=f"Runs here: {', '.join(there) or 'none'}.",
        )
    if folder.resolve() == config.run_folder.resolve():
        raise StageError(
            "is the run that is evaluated", where=f"--against {name}", remedy="Name another run."
        )
    saved = read_detections(folder / FOLDER / NAME)
    check_weights(folder, saved)
    return name, saved


def check_same_images(
    name: str, other: SavedDetections, test: FoundBoxes, classes: tuple[str, ...]
) -> None:
    """Refuse a run that was evaluated on other images, boxes or classes.

    Raises:
        StageError: with what differs.
    """

    def refusal(what: str) -> StageError:
        return StageError(
            what,
            where=f"--against {name}",
            remedy="Compare runs of the same table of boxes and the same split.",
        )

    if other.classes != classes:
        raise refusal(
            f"looked for {', '.join(other.classes)}, and this run for {', '.join(classes)}"
        )
    theirs, ours = set(other.images.images), set(test.images)
    if theirs != ours:
        raise refusal(
            f"was tested on other images: {len(ours - theirs)} are in this run alone, "
            f"{len(theirs - ours)} in the other, such as "
            f"'{min(ours ^ theirs)}'"
        )
    place = {image: number for number, image in enumerate(other.images.images)}
    for number, image in enumerate(test.images):
        if _truth_of(test, number) != _truth_of(other.images, place[image]):
            raise refusal(f"was tested with other true boxes, such as those of '{image}'")


def _truth_of(images: FoundBoxes, number: int) -> tuple[list[int], list[list[float]]]:
    rows = images.truth[number]
    return images.sizes_px[number].tolist(), rows[rows[:, 0] >= 0].tolist()


def against_record(
    name: str,
    saved: SavedDetections,
    shipped: Evaluated,
    test: FoundBoxes,
    classes: Sequence[str],
    how: Resampling,
) -> dict[str, Any]:
    """The other run's figures on the images of ``test``, and the model that ships minus it."""
    place = {image: number for number, image in enumerate(saved.images.images)}
    found = [saved.images.found[saved.model][place[image]] for image in test.images]
    other = Evaluated(name, saved.threshold, match(found, test.truth, classes))
    return {
        "run": name,
        "model": saved.model,
        "threshold": saved.threshold,
        "figures": figures_of(other, test.sources, how),
        "comparison": comparison_record(shipped, other, test.sources, how),
    }
