"""AUROC over tiles, gathered slide by slide, against scikit-learn over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medkd.slide_level.prediction_file import SlideTiles
from medkd.slide_level.tile_areas import TileAreas


def slide(patient: str, role: str, probabilities: np.ndarray) -> SlideTiles:
    return SlideTiles(f"{patient}_s", patient, role, ("a", "b", "teacher"), probabilities)


def test_areas_over_test_tiles_alone() -> None:
    random = np.random.default_rng(0)
    labels = {"p": True, "q": False, "r": True, "t": True}
    values = {p: random.random((3, n), np.float32) for p, n in zip("pqrt", (7, 5, 9, 4))}  # noqa: B905
    areas = TileAreas(labels, ("a", "b"), "ensemble")
    for patient, role in (("p", "test"), ("t", "train"), ("q", "test"), ("r", "test")):
        areas.add(slide(patient, role, values[patient]))
    truth = np.repeat([labels[p] for p in "pqr"], [7, 5, 9])
    together = np.concatenate([values[p] for p in "pqr"], axis=1)
    found = areas.areas()
    for row, name in enumerate(("a", "b", "teacher")):
        assert found[name] == pytest.approx(roc_auc_score(truth, together[row]))
    assert found["ensemble"] == pytest.approx(roc_auc_score(truth, together[:2].mean(0)))


def test_one_class_has_none() -> None:
    areas = TileAreas({"p": True}, ("a",), "ensemble")
    areas.add(slide("p", "test", np.full((3, 2), 0.5, np.float32)))
    assert areas.areas() == {"a": None, "b": None, "teacher": None, "ensemble": None}
