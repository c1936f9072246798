"""Which tiles are shown, whatever the batches they came in, and what the picture shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medkd.inference.extremes import EACH, Extremes, extremes_png


def tiles_of(probabilities: np.ndarray) -> np.ndarray:
    """Flat tiles whose red is the probability in percent."""
    tiles = np.zeros((len(probabilities), 8, 8, 3), np.uint8)
    tiles[..., 0] = np.round(100 * probabilities)[:, None, None]
    return tiles


def taken(probabilities: np.ndarray, batch: int) -> Extremes:
    found = Extremes()
    for start in range(0, len(probabilities), batch):
        part = probabilities[start : start + batch]
        found.add(part, tiles_of(part))
    return found


@pytest.mark.parametrize("batch", [1, 7, 32, 500])
def test_both_ends_are_kept_with_their_pixels(batch: int) -> None:
    probabilities = np.random.default_rng(0).permutation(np.arange(300) / 300)
    found = taken(probabilities, batch)
    ranked = np.sort(probabilities)
    assert [one.probability for one in found.lowest] == ranked[:EACH].tolist()
    assert [one.probability for one in found.highest] == ranked[::-1][:EACH].tolist()
    for one in (*found.lowest, *found.highest):
        assert (one.pixels[..., 0] == round(100 * one.probability)).all()
        assert probabilities[one.order] == one.probability
        # Not a view that holds the batch.
        assert batch == 1 or one.pixels.base is None or one.pixels.base.nbytes == one.pixels.nbytes


@pytest.mark.parametrize("count", [1, 2, 5, 2 * EACH - 1, 2 * EACH, 2 * EACH + 1])
def test_no_tile_is_shown_twice(count: int) -> None:
    found = taken(np.arange(count) / 100, 4)
    shown = [one.order for one in (*found.lowest, *found.highest)]
    assert len(set(shown)) == len(shown) == min(count, 2 * EACH)
    if found.lowest:
        assert found.lowest[-1].probability < found.highest[-1].probability


def test_equal_tiles_are_those_that_came_first_and_last() -> None:
    found = taken(np.full(100, 0.5), 10)
    assert [one.order for one in found.lowest] == list(range(EACH))
    assert [one.order for one in found.highest] == list(range(99, 99 - EACH, -1))


def test_the_picture_shows_them_from_the_strongest_on() -> None:
    """Probabilities of 0 to 1 in steps of a tenth are reds of 0 to 100."""
    found = taken(np.arange(11) / 10, 4)
    image = np.asarray(Image.open(io.BytesIO(extremes_png(found, "MSI"))).convert("RGB")).astype(
        int
    )
    half = image.shape[0] // 2
    reds = []
    for part in (image[:half], image[half:]):
        flat = (part[..., 1] == 0) & (part[..., 2] == 0)
        row = part[np.argmax(flat.sum(1))]
        seen = row[(row[:, 1] == 0) & (row[:, 2] == 0), 0]
        reds.append(list(dict.fromkeys(seen.tolist())))
    assert reds[0] == [100, 90, 80, 70, 60, 50]
    assert reds[1] == [0, 10, 20, 30, 40]


def test_no_tile_is_no_picture() -> None:
    assert extremes_png(Extremes(), "MSI") == b""
