"""How good detectors are on test images: figures with intervals, curves, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medkd.tasks.detection_intervals import bootstrap, compare
from medkd.tasks.detection_metrics import Matches, best_threshold, match, metrics
from medkd.training.box_predictions import BOXES, DENSE, FoundBoxes

_AT_50 = 0


@dataclass(frozen=True)
class Resampling:
    """How intervals are made; see :func:`medkd.tasks.detection_intervals.bootstrap`."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model on the test images.

    Attributes:
        name: of a network, or of a form of the ensemble.
        threshold: the score from which on a detection counts, chosen on validation images.
        matches: of its detections in the test images.
    """

    name: str
    threshold: float
    matches: Matches

    def shows(self, scores: np.ndarray) -> np.ndarray:
        """Which of the scores count."""
        return scores >= self.threshold


def evaluated(
    name: str,
    validation: FoundBoxes,
    test: FoundBoxes,
    classes: Sequence[str],
    *,
    threshold: float | None = None,
) -> Evaluated:
    """A model on the test images.

    Args:
        name: of the model.
        validation: what was found in validation images.
        test: in test images.
        classes: their names.
        threshold: that it has already; by default the one with the best F1 on validation images.

    Raises:
        ValueError: no validation image has a box.
    """
    if threshold is None:
        threshold = best_threshold(match(validation.found[name], validation.truth, classes))
    if threshold is None:
        raise ValueError("no validation image has a box, and no threshold can be chosen")
    return Evaluated(name, threshold, match(test.found[name], test.truth, classes))


def shipped_model(kind: Literal["dense", "boxes"], deployed: Sequence[str]) -> str:
    """The model that ships: a form of the ensemble, or the one network that does."""
    if len(deployed) == 1:
        return deployed[0]
    return {"dense": DENSE, "boxes": BOXES}[kind]


def model_record(
    model: Evaluated,
    validation: FoundBoxes,
    test: FoundBoxes,
    classes: Sequence[str],
    how: Resampling,
) -> dict[str, Any]:
    """What is told of a model: its figures on test images, with intervals, its curves and counts.

    A figure is ``value``, ``lower``, ``upper``, and ``reason`` where one of them is null.
    """
    on_validation = metrics(
        validation.found[model.name], validation.truth, classes, threshold=model.threshold
    )
    return {
        "name": model.name,
        "threshold": model.threshold,
        "figures": figures_of(model, test.sources, how),
        "validation": {key: value for key, value in on_validation.items() if key != "threshold"},
        "at_threshold": counts_at(model),
        "curve": curve(model.matches),
    }


def figures_of(model: Evaluated, sources: np.ndarray, how: Resampling) -> dict[str, dict[str, Any]]:
    """Figures on test images with their intervals, by name."""
    estimates = bootstrap(model.matches, threshold=model.threshold, groups=sources, **asdict(how))
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def counts_at(model: Evaluated) -> dict[str, int]:
    """Boxes at the threshold: found, missed, and false alarms."""
    right = model.matches.right[_AT_50][model.shows(model.matches.scores)]
    found = int(right.sum())
    return {
        "found": found,
        "missed": len(model.matches.truth_classes) - found,
        "false_alarms": len(right) - found,
    }


def curve(matches: Matches) -> dict[str, list[float]] | None:
    """FROC and precision-recall curve, at IoU 0.5, of all classes together.

    Returns:
        For every score at which recall rises ``score``, ``recall``, ``precision`` and
        ``false_positives_per_image``; None where no image has a box.
    """
    if not len(matches.truth_classes):
        return None
    found, wrong = (
        of.cumsum()[matches.ends] for of in (matches.right[_AT_50], ~matches.right[_AT_50])
    )
    rises = np.diff(found, prepend=0) > 0
    found, wrong = found[rises], wrong[rises]
    return {
        "score": matches.scores[matches.ends[rises]].tolist(),
        "recall": (found / len(matches.truth_classes)).tolist(),
        "precision": (found / (found + wrong)).tolist(),
        "false_positives_per_image": (wrong / matches.images).tolist(),
    }


def comparison_record(
    first: Evaluated, second: Evaluated, sources: np.ndarray, how: Resampling
) -> dict[str, Any]:
    """Two models on the same test images: each figure of both, and first minus second."""
    found = compare(
        first.matches,
        second.matches,
        thresholds=(first.threshold, second.threshold),
        groups=sources,
        **asdict(how),
    )
    return {
        "first": first.name,
        "second": second.name,
        "figures": {name: asdict(comparison) for name, comparison in found.items()},
    }


def compared_pairs(
    shipped: str, roles: Mapping[str, str], forms: Sequence[str]
) -> list[tuple[str, str]]:
    """What is compared: what ships with each student and the teacher, and the two forms.

    Args:
        shipped: the model that ships.
        roles: of each network, such as ``student``.
        forms: of the ensemble, as far as there are.
    """
    networks = [name for role in ("student", "teacher") for name in roles if roles[name] == role]
    pairs = [(shipped, name) for name in networks if name != shipped]
    return [*pairs, (DENSE, BOXES)] if forms else pairs


def in_words(name: str) -> str:
    """A model's name as a reader has it: ``ensemble_dense`` becomes ``ensemble (dense)``."""
    forms = {DENSE: "ensemble (dense)", BOXES: "ensemble (boxes)"}
    return forms.get(name, name.replace("_", " "))
