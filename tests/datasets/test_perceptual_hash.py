"""Hashes of drawn and real tiles, encoded again, turned and made smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from medkd.datasets.perceptual_hash import hash_distance, hash_tile, orientation_hashes
from tests.datasets.drawn_tiles import eight, grey_of, textured


def naive_hash(grey: np.ndarray) -> int:
    """Sign bits by the definition of the cosine transform, in the published order of the bands."""
    size = grey.shape[0]
    frequencies = [(v, u) for v in range(11) for u in range(11)]
    frequencies = [f for f in frequencies if 0 < sum(f) <= 10 and f != (5, 5)]
    frequencies.sort(key=lambda f: (sum(f), f))
    assert len(frequencies) == 64
    centre = (np.arange(size) + 0.5) * np.pi / size
    bits = 0
    for number, (v, u) in enumerate(frequencies):
        wave = np.outer(np.cos(v * centre), np.cos(u * centre))
        position = number % 4 * 16 + number // 4
        bits |= int((grey.astype(np.float64) * wave).sum() > 0) << position
    return bits


def test_a_hash_is_the_signs_of_the_cosine_transform() -> None:
    for seed in range(5):
        grey = textured(seed)[..., 0]
        assert int(hash_tile(grey)[0]) == naive_hash(grey)


def test_the_contrast_of_one_cosine_is_its_root_mean_square() -> None:
    centre = (np.arange(64) + 0.5) * np.pi / 64
    for wave in (np.outer(np.cos(2 * centre), np.cos(3 * centre)),
                 np.outer(np.ones(64), np.cos(4 * centre))):  # fmt: skip
        image = 100 + 30 * wave
        assert hash_tile(image)[1] == pytest.approx(np.sqrt((900 * wave**2).mean()), rel=1e-4)


def test_orientations_follow_from_the_hash_alone() -> None:
    for seed in range(5):
        grey = textured(seed)[..., 0]
        found = orientation_hashes(np.array([hash_tile(grey)[0]]))[0]
        assert found[0] == hash_tile(grey)[0]
        assert set(found.tolist()) == {int(hash_tile(turned)[0]) for turned in eight(grey)}


def test_distances_are_counted_bits() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 2**64, (2, 200), np.uint64)
    expected = [bin(int(a) ^ int(b)).count("1") for a, b in zip(one, other, strict=True)]
    assert hash_distance(one, other).tolist() == expected


@pytest.mark.parametrize(("quality", "side_px"), [(90, 96), (50, 96), (30, 96), (75, 80)])
def test_what_is_encoded_again_keeps_its_hash_within_10_bits(quality: int, side_px: int) -> None:
    for seed in range(10):
        tile = textured(seed)
        first = hash_tile(grey_of(simplejpeg.encode_jpeg(tile, 90, "RGB", "444"), 32))[0]
        again = np.asarray(Image.fromarray(tile).resize((side_px, side_px)))
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(again), quality, "RGB", "420")
        second = hash_tile(grey_of(jpeg, 32))[0]
        assert hash_distance(np.array([first]), np.array([second]))[0] <= 4


def test_other_tiles_differ_in_about_half_of_the_bits() -> None:
    hashes = np.array([hash_tile(textured(seed)[..., 0])[0] for seed in range(40)])
    first, second = np.triu_indices(40, 1)
    distances = hash_distance(hashes[first], hashes[second])
    assert distances.min() > 10
    assert 30 < distances.mean() < 34


@pytest.mark.real_data
def test_real_tiles_keep_their_hashes_and_no_two_of_them_are_alike(real_data: Path) -> None:
    paths = sorted((real_data / "crc_tiles").glob("*/*"))[::10]
    assert len(paths) == 150
    tiles = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    stored = [simplejpeg.encode_jpeg(tile, 90, "RGB", "444") for tile in tiles]
    again = [simplejpeg.encode_jpeg(tile, 30, "RGB", "420") for tile in tiles]
    first, second = (np.array([hash_tile(grey_of(jpeg, 32))[0] for jpeg in side])
                     for side in (stored, again))  # fmt: skip
    assert hash_distance(first, second).max() <= 4
    turned = orientation_hashes(first)
    between = hash_distance(np.repeat(first, 150 * 8), np.tile(turned.ravel(), 150))
    between = between.reshape(150, 150, 8)
    between[np.arange(150), np.arange(150)] = 64
    assert between.min() > 10
