"""What a slide looks like in few numbers: its stain, and what the networks see, on average.

Prediction and inference take them by the same code, so that slides of both can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medkd.datasets.stain import optical_density

STAIN = "stain"

# Every fourth pixel of every fourth row: some hundreds of each tile, which takes no time.
_STEP = 4

# Optical densities below this are the camera's noise on glass.
_LEAST_DENSITY = 0.01

_DENSITY_OF_LEVEL = optical_density(np.arange(256))

# From red, green and blue to their sum and two differences; orthonormal.
_STRENGTH_AND_HUES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class TileSums:
    """Sums over the tiles of a slide, of what is measured of each.

    Attributes:
        tiles: how many.
        sums, squares: sums of values and of their squares, float64 (D,), by what is measured:
            ``stain`` (see :func:`tile_stains`), and the pooled features by the network's name.
    """

    tiles: int
    sums: Mapping[str, np.ndarray]
    squares: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, tiles: np.ndarray, embeddings: Mapping[str, np.ndarray]) -> TileSums:
        """Sums over some tiles.

        Args:
            tiles: uint8 N x H x W x 3, RGB, in the colours that the networks are given.
            embeddings: pooled features of the networks that have them, floats, N x D.
        """
        measured = {STAIN: tile_stains(tiles), **embeddings}
        return cls(
            len(tiles),
            {name: values.sum(0, dtype=np.float64) for name, values in measured.items()},
            {name: np.square(values, dtype=np.float64).sum(0) for name, values in measured.items()},
        )

    @classmethod
    def together(cls, parts: Sequence[TileSums]) -> TileSums:
        """Sums over the tiles of several, one at least."""
        names = parts[0].sums
        return cls(
            sum(part.tiles for part in parts),
            {name: np.sum([part.sums[name] for part in parts], axis=0) for name in names},
            {name: np.sum([part.squares[name] for part in parts], axis=0) for name in names},
        )

    def features(self) -> SlideFeatures:
        """What the slide looks like.

        Raises:
            ValueError: there is no tile.
        """
        if not self.tiles:
            raise ValueError("a slide without tiles looks like nothing")
        means = {name: values / self.tiles for name, values in self.sums.items()}
        # In float32, so that the order in which tiles were added is lost.
        return SlideFeatures(
            self.tiles,
            {name: values.astype(np.float32) for name, values in means.items()},
            {
                name: np.maximum(self.squares[name] / self.tiles - values**2, 0).astype(np.float32)
                for name, values in means.items()
            },
        )


@dataclass(frozen=True)
class SlideFeatures:
    """Of a slide's used tiles.

    Attributes:
        tiles: how many.
        means, variances: over them, float32 (D,), by what is measured, as in :class:`TileSums`.
    """

    tiles: int
    means: Mapping[str, np.ndarray]
    variances: Mapping[str, np.ndarray]


def tile_stains(tiles: np.ndarray) -> np.ndarray:
    """How strongly tiles are stained, and in which hue: float64 (N, 6).

    Natural logarithms of the mean, and then of the standard deviation, of the optical density of a
    tile's pixels. Of red, green and blue, in which a stronger stain adds the same to each, are
    taken their sum over the root of 3 (the strength), and two contrasts that strength leaves as
    they are: (red - green) / sqrt 2 and (red + green - 2 blue) / sqrt 6.

    Args:
        tiles: uint8 N x H x W x 3, RGB.
    """
    some = tiles[:, ::_STEP, ::_STEP]
    # How many pixels of each tile and colour have each level: faster than a look-up of them all.
    first = 256 * np.arange(3 * len(some), dtype=np.int32).reshape(len(some), 1, 1, 3)
    counts = np.bincount((some + first).ravel(), minlength=256 * first.size)
    levels = counts.reshape(len(some), 3, 256)
    pixels = some.shape[1] * some.shape[2]
    means = levels @ _DENSITY_OF_LEVEL / pixels
    squares = levels @ _DENSITY_OF_LEVEL**2 / pixels
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    logarithms = [np.log(np.maximum(values, _LEAST_DENSITY)) for values in (means, deviations)]
    return np.concatenate([values @ _STRENGTH_AND_HUES.T for values in logarithms], axis=1)
