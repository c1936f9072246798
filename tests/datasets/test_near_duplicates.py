"""Pairs of tiles: which are candidates, and which the pixels confirm."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from medkd.datasets.near_duplicates import (
    agreement,
    candidate_pairs,
    confirmed_duplicates,
    tile_detail,
)
from medkd.datasets.perceptual_hash import hash_distance, hash_tile, orientation_hashes
from tests.datasets.drawn_tiles import eight, grey_of, textured


def pairs_of(one: np.ndarray, other: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of hashes, not of their numbers."""
    found = candidate_pairs(one, other)
    return {(int(found.one[a]), int(found.other[b])) for a, b in found.pairs}


def flip_bits(hashes: np.ndarray, bits: list[int]) -> np.ndarray:
    return hashes ^ np.uint64(sum(1 << bit for bit in bits))


@pytest.mark.parametrize("bits", [[], [0], [5, 40], [0, 16, 32], [0, 1, 2, 20, 21, 33, 34, 35]])
def test_hashes_with_one_band_left_are_found_in_any_orientation(bits: list[int]) -> None:
    random = np.random.default_rng(1)
    one = random.integers(0, 2**64, 50, np.uint64)
    changed = flip_bits(one[:20], bits)
    turned = orientation_hashes(changed)[np.arange(20), np.arange(20) % 8]
    expected = {(int(a), int(b)) for a, b in zip(one[:20], turned, strict=True)}
    assert pairs_of(one, turned) == expected


def test_all_pairs_up_to_3_bits_and_none_beyond_10_as_by_comparing_all() -> None:
    random = np.random.default_rng(2)
    base = random.integers(0, 2**64, 12, np.uint64)
    noisy = np.array(
        [flip_bits(h, random.choice(64, n % 14, replace=False).tolist())
         for h in base for n in range(14)]
    )  # fmt: skip
    turned = orientation_hashes(noisy)
    distance = np.stack([hash_distance(np.broadcast_to(h, turned.shape), turned) for h in base])
    distance = distance.min(axis=2)
    found = pairs_of(base, noisy)
    for a, row in enumerate(distance):
        for b, bits in enumerate(row):
            pair = (int(base[a]), int(noisy[b]))
            assert pair in found or bits > 3
            assert pair not in found or bits <= 10


def test_a_side_may_be_empty_or_full_of_one_hash() -> None:
    nothing, same = np.empty(0, np.uint64), np.full(5000, 7, np.uint64)
    assert len(candidate_pairs(nothing, same).pairs) == 0
    assert len(candidate_pairs(same, same).pairs) == 1


def test_the_same_tile_agrees_in_every_orientation_and_other_tiles_do_not() -> None:
    tile = textured(0)
    stored = tile_detail(grey_of(simplejpeg.encode_jpeg(tile, 90, "RGB", "444")))
    for turned in eight(tile):
        jpeg = simplejpeg.encode_jpeg(turned, 50, "RGB", "420")
        assert agreement(stored, tile_detail(grey_of(jpeg))) > 0.8
    for seed in range(1, 20):
        assert agreement(stored, tile_detail(textured(seed)[..., 0])) < 0.3


def test_shades_alone_are_no_duplicate() -> None:
    """A bright and a dark half: equal hashes, and nothing else in common."""
    random = np.random.default_rng(3)
    halves = np.where(np.arange(64) < 32, 200, 60)[None].repeat(64, 0)
    one, other = (np.clip(halves + random.normal(0, 12, (64, 64)), 0, 255).astype(np.uint8)
                  for _ in range(2))  # fmt: skip
    assert agreement(tile_detail(one), tile_detail(other)) < 0.3
    smooth = halves.astype(np.uint8)
    assert agreement(tile_detail(smooth), tile_detail(smooth)) == 0


def test_only_what_the_pixels_confirm_is_reported() -> None:
    tiles = [textured(seed)[..., 0] for seed in range(8)]
    tiles += [eight(tiles[2])[5], textured(50)[..., 0]]
    hashes = np.array([hash_tile(tile)[0] for tile in tiles])
    hashes[9] = hashes[4]  # a hash that is the same by chance
    found = confirmed_duplicates(hashes, np.arange(8), np.array([8, 9]), tiles.__getitem__)
    assert found.pairs == ((2, 8),)
    assert (found.stopped, found.not_compared) == (False, 0)


def test_a_crowd_of_tiles_with_one_hash_is_not_compared_all_with_all() -> None:
    read = []

    def grey(row: int) -> np.ndarray:
        read.append(row)
        return textured(row)[..., 0]

    hashes = np.full(60, 5, np.uint64)
    found = confirmed_duplicates(hashes, np.arange(50), np.arange(50, 60), grey)
    assert found.pairs == ()
    assert found.not_compared == 10
    assert set(read) == {*range(16), *range(50, 60)}


def test_a_thousand_duplicates_are_enough() -> None:
    tile = textured(0)[..., 0]
    hashes = np.full(1500, hash_tile(tile)[0])
    found = confirmed_duplicates(hashes, np.arange(3), np.arange(3, 1500), lambda _: tile)
    assert len(found.pairs) == 1000
    assert found.stopped
