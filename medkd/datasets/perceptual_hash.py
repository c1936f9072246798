"""Hashes that stay nearly the same when a tile is encoded again, resized or recoloured.

A tile's hash is the signs of 64 low frequencies of its grey values (discrete cosine transform), as
in pHash (Zauner 2010). Mirroring a tile changes signs of odd frequencies, transposing it swaps the
two axes: the hashes of all eight orientations follow from one, without the pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np

ORIENTATIONS = 8
BANDS = 4
BITS_OF_BAND = 64 // BANDS

_HIGHEST = 10
# Frequencies (rows, columns) nearest to the mean of the image, which is left out; of the diagonal
# one is left out too, so that there are 64 and a transposed tile has the same ones.
_FREQUENCIES = sorted(
    (
        (v, u)
        for v in range(_HIGHEST + 1)
        for u in range(_HIGHEST + 1)
        if 0 < v + u <= _HIGHEST and (v, u) != (5, 5)
    ),
    key=lambda pair: (sum(pair), pair),
)
_V, _U = (np.array(axis) for axis in zip(*_FREQUENCIES, strict=True))
# Each band gets frequencies of every size: the smallest coefficients lose their signs first.
_ORDER = np.argsort(np.arange(64) % BANDS, kind="stable")
_TRANSPOSED = np.array([_FREQUENCIES.index((u, v)) for v, u in _FREQUENCIES])
_ONES_OF_16_BITS = np.array([bin(value).count("1") for value in range(2**16)], np.uint8)


def hash_tile(grey: np.ndarray) -> tuple[np.uint64, float]:
    """The hash of an image, and its contrast.

    Args:
        grey: height x width, at least 32 of each; of another scale, nearly the same hash.

    Returns:
        The hash, and the root mean square of what the 64 frequencies add to the mean, in levels
        of ``grey``. The signs of an image without contrast mean nothing.
    """
    height, width = grey.shape
    values = grey.astype(np.float32)
    coefficients = (_cosines(height) @ values @ _cosines(width).T)[_V, _U] / values.size
    bits = np.packbits((coefficients > 0)[_ORDER], bitorder="little")
    # The mean square of a cosine is 1/2, and 1 for the frequency 0.
    weights = np.where((_V == 0) | (_U == 0), 2.0, 4.0)
    return bits.view("<u8")[0], float(np.sqrt((weights * coefficients**2).sum()))


def orientation_hashes(hashes: np.ndarray) -> np.ndarray:
    """The hashes of each tile in its eight orientations: n -> n x 8, uint64, itself first."""
    stored = np.unpackbits(_as_bytes(hashes), axis=1, bitorder="little")
    bits = np.empty_like(stored)
    bits[:, _ORDER] = stored
    found = []
    for transposed in (bits, bits[:, _TRANSPOSED]):
        for odd in (np.zeros(64, bool), _U % 2 == 1, _V % 2 == 1, (_U + _V) % 2 == 1):
            turned = np.ascontiguousarray((transposed ^ odd)[:, _ORDER])
            found.append(np.packbits(turned, axis=1, bitorder="little").view("<u8")[:, 0])
    return np.stack(found, axis=1)


def hash_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many of the 64 bits differ: uint8, of the shape of both."""
    differing = np.ascontiguousarray(one ^ other).view("<u2").reshape(*one.shape, 4)
    return _ONES_OF_16_BITS[differing].sum(axis=-1, dtype=np.uint8)


def _as_bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes, "<u8").view(np.uint8).reshape(-1, 8)


@cache
def _cosines(size: int) -> np.ndarray:
    """The first cosines over ``size`` pixels: 11 x size."""
    angles = np.pi * np.outer(np.arange(_HIGHEST + 1), 2 * np.arange(size) + 1) / (2 * size)
    return np.cos(angles).astype(np.float32)
