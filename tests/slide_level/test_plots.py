"""The three figures of an evaluation as PNG."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from medkd.slide_level.aggregate import Aggregation
from medkd.slide_level.plots import evaluation_plots
from tests.slide_level.hand_made import LABELS, aggregated, one_class, predictions

NAMES = ("roc.png", "reliability.png", "confusion.png")


@pytest.fixture(scope="module")
def result() -> Aggregation:
    return aggregated()


@pytest.fixture(scope="module")
def plots(result: Aggregation) -> dict[str, bytes]:
    return evaluation_plots(result, "MSI")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_there_are_three(plots: dict[str, bytes]) -> None:
    assert tuple(plots) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_whole_png_of_a_size_for_a_page(plots: dict[str, bytes], name: str) -> None:
    with Image.open(io.BytesIO(plots[name])) as image:
        assert image.format == "PNG"
        assert image.size == (650, 650)
        image.verify()
    assert 5_000 < len(plots[name]) < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_each_shows_something_on_white(plots: dict[str, bytes], name: str) -> None:
    image = pixels(plots[name])
    dark = (image.min(2) < 128).mean()
    assert image[0, -1].tolist() == [255, 255, 255]
    assert 0.005 < dark < 0.5


def test_the_same_figures_give_the_same_bytes(result: Aggregation, plots: dict) -> None:
    assert evaluation_plots(result, "MSI") == plots


def test_labels_change_every_figure(plots: dict[str, bytes]) -> None:
    other = evaluation_plots(aggregated(labels={**LABELS, "t2": "MSS", "t3": "MSI"}), "MSI")
    assert all(other[name] != plots[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_synthetic_slides_are_told_in_the_strip_at_the_bottom(
    plots: dict[str, bytes], name: str
) -> None:
    synthetic = evaluation_plots(aggregated(synthetic=True), "MSI")
    rows, columns = np.nonzero((pixels(synthetic[name]) != pixels(plots[name])).any(2))
    assert rows.min() > 0.95 * 650
    assert columns.max() < 0.75 * 650


def test_test_patients_of_one_class_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = evaluation_plots(one_class(), "MSI")
    for name in NAMES:
        assert pixels(plots[name]).shape == (650, 650, 3)


def test_an_area_without_an_interval_is_drawn() -> None:
    """Where all test patients score alike no resample differs."""
    table = predictions()
    equal = aggregated(table.assign(probability=table["probability"].where(
        table["role"] != "test", 0.5)))  # fmt: skip
    known = equal.evaluation["networks"]["ensemble"]["patient_auroc"]
    assert (known["value"], known["lower"]) == (0.5, None)
    for name in NAMES:
        assert pixels(evaluation_plots(equal, "MSI")[name]).shape == (650, 650, 3)
