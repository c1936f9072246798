"""AUROC over the tiles of test patients, gathered while predictions are read slide by slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medkd.slide_level.prediction_file import SlideTiles
from medkd.slide_level.statistics import auroc


class TileAreas:
    """Takes slides as they come; keeps 4 bytes for each test tile and network.

    Args:
        labels: of each patient, True for the positive class.
        students: names of the networks that ship; their mean is the ensemble.
        ensemble: what that is called.
    """

    def __init__(self, labels: Mapping[str, bool], students: Sequence[str], ensemble: str) -> None:
        self._labels, self._students, self._ensemble = labels, students, ensemble
        self._truth: list[np.ndarray] = []
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, slide: SlideTiles) -> None:
        """Take one slide, if it is a test patient's."""
        if slide.role != "test":
            return
        of = dict(zip(slide.networks, slide.probabilities, strict=True))
        shipped = np.mean([of[name] for name in self._students], axis=0, dtype=np.float64)
        for name, values in {**of, self._ensemble: shipped}.items():
            self._values.setdefault(name, []).append(np.asarray(values, np.float32))
        tiles = slide.probabilities.shape[1]
        self._truth.append(np.full(tiles, self._labels[slide.patient_id]))

    def areas(self) -> dict[str, float | None]:
        """AUROC over tiles of every network and the ensemble; None where a class is absent."""
        truth = np.concatenate(self._truth)
        return {name: auroc(truth, np.concatenate(values)) for name, values in self._values.items()}
