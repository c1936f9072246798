"""Stain normalisation against torchstain, scikit-image and drawn stains, on real tissue too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from skimage.color import rgb2lab
from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer
from torchstain.numpy.normalizers.reinhard import NumpyReinhardNormalizer

from medkd.datasets.stain import (
    PUBLISHED_MACENKO,
    MacenkoStains,
    Method,
    ReinhardColour,
    StainReference,
    fit,
    map_macenko,
    map_reinhard,
    measure_macenko,
    measure_reinhard,
    normalise,
    optical_density,
    recorded,
)

HAEMATOXYLIN, EOSIN = np.array([0.6, 0.7, 0.387298]), np.array([0.2, 0.9, 0.387298])


def drawn(seed: int = 0, side: int = 64, strength: float = 1.0) -> np.ndarray:
    """Float 3 x H x W: a pixel is one pure stain, or both, in densities of 0.4 to 1.2."""
    random = np.random.default_rng(seed)
    amounts = random.uniform(0.4, 1.2, (2, side, side)) * strength
    kind = random.random((side, side))
    amounts[0, kind < 0.1] = 0
    amounts[1, kind > 0.9] = 0
    density = np.stack([HAEMATOXYLIN, EOSIN], 1) @ amounts.reshape(2, -1)
    return (240 * np.exp(-density) - 1).reshape(3, side, side)


def as_image(tile: np.ndarray) -> np.ndarray:
    return np.moveaxis(tile, 0, -1)


def read(path: Path) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(Image.open(path).convert("RGB")), -1, 0))


@pytest.fixture(scope="module")
def tissue(real_data: Path) -> dict[str, np.ndarray]:
    """Two tiles of four patients as they were scanned, and 32 tiles of eight kinds of tissue."""
    paths = [
        *sorted((real_data / "tcga_crc_tiles").rglob("*.jpg")),
        *sorted((real_data / "tissue_tiles").glob("*.png")),
    ]
    return {path.name: read(path)[:, ::2, ::2] for path in paths}


def test_optical_density_is_the_natural_logarithm_of_what_glass_lets_through() -> None:
    np.testing.assert_allclose(optical_density(np.array([239, 119, 0])), np.log([1, 2, 240]))


def test_drawn_stains_are_found() -> None:
    stains = measure_macenko(drawn())
    assert stains is not None
    np.testing.assert_allclose(stains.haematoxylin, HAEMATOXYLIN, atol=1e-5)
    np.testing.assert_allclose(stains.eosin, EOSIN, atol=1e-5)
    # Nine pixels in ten hold a stain evenly up to 1.2, so 99% of all lie below this.
    np.testing.assert_allclose(stains.densities, 1.2 - 0.8 * 0.01 / 0.9, atol=0.002)


def test_a_tile_that_is_stained_twice_as_strongly_comes_out_as_the_other() -> None:
    weak, strong = drawn(), drawn(strength=2.0)
    reference = fit([weak], "macenko")
    assert reference is not None
    np.testing.assert_allclose(normalise(strong, reference), weak, atol=0.01)
    np.testing.assert_allclose(normalise(weak, reference), weak, atol=0.01)


def test_macenko_is_that_of_torchstain(tissue: dict[str, np.ndarray]) -> None:
    """It keeps the one level that it added, and cuts fractions off: up to one level apart."""
    theirs, compared = NumpyMacenkoNormalizer(), 0
    reference = next(iter(tissue.values()))
    theirs.fit(as_image(reference))
    own = measure_macenko(reference)
    assert own is not None
    np.testing.assert_allclose(own.mixing, theirs.HERef, atol=1e-9)
    np.testing.assert_allclose(own.densities, theirs.maxCRef, rtol=1e-9)
    for tile in tissue.values():
        if measure_macenko(tile) is None:
            continue
        expected = theirs.normalize(as_image(tile), stains=False)[0].astype(np.float64)
        ours = as_image(normalise(tile, own))
        # floor(v) against v - 1; at either end both are cut.
        inside = (expected > 0) & (expected < 255)
        assert np.abs(expected - ours - 0.5)[inside].max() < 0.501
        assert np.abs(expected - ours).max() < 1.001
        compared += 1
    assert compared >= 32


def test_the_published_reference_is_that_of_torchstain() -> None:
    theirs = NumpyMacenkoNormalizer()
    np.testing.assert_array_equal(PUBLISHED_MACENKO.mixing, theirs.HERef)
    np.testing.assert_array_equal(PUBLISHED_MACENKO.densities, theirs.maxCRef)


def test_reinhard_is_that_of_torchstain(tissue: dict[str, np.ndarray]) -> None:
    """Its floats are of 32 bits and it cuts fractions off: up to one level and a little apart.

    Colours that no screen shows, one pixel in a thousand at most, are cut otherwise.
    """
    theirs, compared = NumpyReinhardNormalizer(), 0
    reference = next(iter(tissue.values()))
    theirs.fit(as_image(reference))
    own = measure_reinhard(reference)
    assert own is not None
    np.testing.assert_allclose(own.mean, theirs.target_means, atol=0.01)
    np.testing.assert_allclose(own.std, theirs.target_stds, atol=0.01)
    for tile in tissue.values():
        if measure_reinhard(tile) is None:
            continue
        expected = theirs.normalize(as_image(tile)).astype(np.float64)
        apart = as_image(normalise(tile, own)) - expected
        assert ((apart < -0.1) | (apart > 1.1)).mean() < 0.001
        shown = ((expected > 0) & (expected < 255)).all(-1)
        assert apart[shown].min() > -0.1
        assert apart[shown].max() < 1.1
        compared += 1
    assert compared >= 32


def test_colour_is_measured_in_the_space_of_scikit_image() -> None:
    tile = drawn().round().astype(np.uint8)
    colour = measure_reinhard(tile)
    assert colour is not None
    lab = rgb2lab(as_image(tile)).reshape(-1, 3)
    np.testing.assert_allclose(colour.mean, lab.mean(0), atol=1e-9)
    np.testing.assert_allclose(colour.std, lab.std(0), atol=1e-9)


def test_normalised_tissue_has_the_colours_of_the_reference(
    tissue: dict[str, np.ndarray],
) -> None:
    """Normalised, then compared, on tiles of four patients as they were scanned.

    Unmixed by the reference's stains (by least squares) each tile holds its amounts: within 1%,
    for levels that are cut to 0..255. The same of means and deviations: within one of CIELAB.
    """
    scanned = [tile for name, tile in tissue.items() if name.endswith(".jpg")]
    assert len(scanned) == 8
    macenko, reinhard = fit(scanned, "macenko"), fit(scanned, "reinhard")
    assert isinstance(macenko, MacenkoStains)
    assert isinstance(reinhard, ReinhardColour)
    ratios, means = [], []
    for tile in scanned:
        density = -np.log((normalise(np.float32(tile), macenko).reshape(3, -1) + 1) / 240)
        amounts = np.linalg.lstsq(macenko.mixing, density, rcond=None)[0]
        np.testing.assert_allclose(np.percentile(amounts, 99, axis=1), macenko.densities, rtol=0.01)
        lab = rgb2lab(as_image(normalise(tile, reinhard)) / 255).reshape(-1, 3)
        np.testing.assert_allclose(lab.mean(0), reinhard.mean, atol=1)
        np.testing.assert_allclose(lab.std(0), reinhard.std, atol=1)
        before = measure_macenko(tile)
        assert before is not None
        ratios.append(np.divide(before.densities, macenko.densities))
        means.append(rgb2lab(as_image(tile)).mean((0, 1)))
    # They were not alike before: amounts of eosin by a factor of 1.9, lightness by 12.
    assert np.ptp(ratios, 0)[1] > 0.6
    assert np.ptp(means, 0)[0] > 10


def test_the_same_place_stained_otherwise_becomes_more_alike(
    tissue: dict[str, np.ndarray],
) -> None:
    """Not the same: a paler stain leaves fewer pixels that count as stained."""
    tile = next(iter(tissue.values()))
    own = measure_macenko(tile)
    assert own is not None
    haematoxylin, eosin = own.densities
    other = MacenkoStains(
        haematoxylin=(0.62, 0.68, 0.391408),
        eosin=(0.15, 0.9, 0.409268),
        densities=(haematoxylin * 0.8, eosin * 0.6),
    )
    here, elsewhere = normalise(tile, own), map_macenko(tile, own, other)
    before = np.abs(elsewhere - here).mean()
    after = np.abs(normalise(elsewhere, own) - here).mean()
    assert before > 15
    assert after < before / 2


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_blank_tiles_are_left_as_they_were(method: Method) -> None:
    reference = fit([drawn()], method)
    assert reference is not None
    random = np.random.default_rng(0)
    white = np.full((3, 32, 32), 255, np.uint8)
    paper = random.integers(235, 250, (3, 32, 32)).astype(np.uint8)
    nearly = paper.copy()
    nearly[:, :3] = drawn(side=32)[:, :3]  # 3 of 32 rows: 9% tissue
    for tile in (white, paper, nearly):
        for kind in (np.uint8, np.float32):
            done = normalise(tile.astype(kind), reference)
            np.testing.assert_array_equal(done, tile)
            assert done.dtype == kind
    nearly[:, :4] = drawn(side=32)[:, :4]  # 4 rows: 12%
    assert not np.array_equal(normalise(nearly, reference), nearly)
    assert fit([white, paper], method) is None


def test_one_stain_alone_and_black_are_left_as_they_were() -> None:
    amount = np.random.default_rng(0).uniform(0.4, 1.2, (1, 32, 32))
    one_stain = 240 * np.exp(-HAEMATOXYLIN[:, None, None] * amount) - 1
    black = np.zeros((3, 32, 32), np.uint8)
    # Both stains, but eosin is nearly nowhere.
    faint = drawn(side=100)
    faint[:] = (240 * np.exp(-HAEMATOXYLIN * 0.8) - 1)[:, None, None]
    faint[:, 0, :50] = (240 * np.exp(-EOSIN * 0.8) - 1)[:, None]
    for tile in (one_stain, black, faint):
        assert measure_macenko(tile) is None
        np.testing.assert_array_equal(
            normalise(tile, PUBLISHED_MACENKO), np.asarray(tile, np.float32)
        )


def test_real_blanks_and_pens_do_not_explode(real_data: Path) -> None:
    tiles = {path.name: read(path) for path in sorted((real_data / "qc_tiles").glob("*.png"))}
    left = {name for name, tile in tiles.items() if measure_macenko(tile) is None}
    blank = {"almost-white-1.png", "almost-white-2.png", "no-tissue.png", "no-tissue2.png"}
    assert blank <= left
    assert "high-nuclei-score-level0.png" not in left
    for tile in tiles.values():
        done = normalise(tile, PUBLISHED_MACENKO)
        assert np.isfinite(done).all()
        assert 0 <= done.min() <= done.max() <= 255


def test_reinhard_by_hand() -> None:
    """A reference of two thirds of the deviation, 5 brighter; nothing of it is cut."""
    tile = drawn().round().astype(np.uint8)
    colour = measure_reinhard(tile)
    assert colour is not None
    mean, std = np.array(colour.mean), np.array(colour.std)
    reference = ReinhardColour(mean=(mean[0] + 5, mean[1], mean[2]), std=tuple(std * 2 / 3))
    lab = rgb2lab(as_image(normalise(tile.astype(np.float32), reference)) / 255)
    expected = (rgb2lab(as_image(tile)) - mean) * 2 / 3 + mean + [5, 0, 0]
    np.testing.assert_allclose(lab, expected, atol=1e-3)


def test_colours_that_no_screen_shows_are_cut_without_a_warning() -> None:
    tile = drawn().round().astype(np.uint8)
    colour = measure_reinhard(tile)
    assert colour is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yellow = map_reinhard(tile, colour, ReinhardColour(mean=(30, 0, 120), std=(40, 60, 60)))
    assert np.isfinite(yellow).all()
    assert yellow.min() == 0


def test_a_reference_is_the_median_of_its_tiles() -> None:
    """Of three strengths the middle one; a blank tile counts for nothing."""
    tiles = [drawn(0), drawn(0, strength=1.5), drawn(0, strength=3.0), np.full((3, 8, 8), 255)]
    reference, middle = fit(tiles, "macenko"), measure_macenko(tiles[1])
    assert isinstance(reference, MacenkoStains)
    assert middle is not None
    np.testing.assert_allclose(reference.densities, middle.densities)
    np.testing.assert_allclose(np.linalg.norm(reference.mixing, axis=0), 1)
    np.testing.assert_allclose(reference.haematoxylin, HAEMATOXYLIN, atol=1e-5)
    colours = fit(tiles, "reinhard")
    each = [measure_reinhard(tile) for tile in tiles[:3]]
    assert isinstance(colours, ReinhardColour)
    lightness = sorted(one.mean[0] for one in each if one is not None)
    assert colours.mean[0] == lightness[1]


def test_bytes_give_what_floats_give_rounded() -> None:
    tile = drawn().round().astype(np.uint8)
    for reference in (PUBLISHED_MACENKO, fit([drawn(2)], "reinhard")):
        assert reference is not None
        of_bytes, of_floats = normalise(tile, reference), normalise(np.float32(tile), reference)
        assert (of_bytes.dtype, of_floats.dtype) == (np.uint8, np.float32)
        np.testing.assert_array_equal(of_bytes, np.floor(of_floats + 0.5))


def test_a_reference_survives_json() -> None:
    for reference in (fit([drawn()], "macenko"), fit([drawn()], "reinhard"), None):
        text = json.dumps(recorded(reference))
        read = TypeAdapter(StainReference | None).validate_python(json.loads(text))
        assert read == reference
