"""Stain normalisation of a tile to a reference: Macenko's and Reinhard's.

Tiles are 3 x H x W, RGB, uint8 or float in 0..255. Neither torch nor MONAI is needed here, so that
one slide can be normalised where neither is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field
from skimage.color import lab2rgb, rgb2lab

from medkd.schema import Strict

Method = Literal["macenko", "reinhard"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotBelow = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Triple: TypeAlias = tuple[float, float, float]
_Triple = Annotated[tuple[_Finite, _Finite, _Finite], Field(strict=False)]

# The light that glass lets through, level, and the optical density (natural logarithm) from which
# on a pixel is stained in all channels; both as in the implementation by Macenko's group.
GLASS_LEVEL = 240.0
STAINED_DENSITY = 0.15
# The share of stained pixels, in percent, that lies outside the two stains on either side; what a
# stain's density is measured by, percentile.
ANGLE_PERCENT = 1.0
DENSITY_PERCENTILE = 99.0

# Below these a tile says too little about its stains. Of 73 real tiles those full of tissue have
# at least 25% stained pixels, adipose and sparse tissue 3 to 15%, blank ones up to 1%. Stains of
# tissue are 10 to 25 degrees apart, those of green pen ink 6.
LEAST_STAINED_SHARE = 0.1
LEAST_ANGLE_DEGREES = 5.0


class MacenkoStains(Strict):
    """Haematoxylin and eosin of a tile, or of a reference."""

    method: Literal["macenko"] = "macenko"
    haematoxylin: _Triple = Field(
        description="Its optical density in red, green and blue, natural logarithm, of length 1."
    )
    eosin: _Triple = Field(description="The same.")
    densities: Annotated[tuple[_Above, _Above], Field(strict=False)] = Field(
        description="How much there is of each: the 99th percentile of the pixels, optical density."
    )

    @property
    def mixing(self) -> np.ndarray:
        """From densities of the stains to those of RGB, 3 x 2."""
        return np.array([self.haematoxylin, self.eosin]).T


class ReinhardColour(Strict):
    """Mean and standard deviation of a tile, or of a reference, in CIELAB (D65, L in 0..100)."""

    method: Literal["reinhard"] = "reinhard"
    mean: _Triple
    std: Annotated[tuple[_NotBelow, _NotBelow, _NotBelow], Field(strict=False)]


StainReference: TypeAlias = MacenkoStains | ReinhardColour

PUBLISHED_MACENKO = MacenkoStains(
    haematoxylin=(0.5626, 0.7201, 0.4062),
    eosin=(0.2159, 0.8012, 0.5581),
    densities=(1.9705, 1.0308),
)
"""The reference that the implementation by Macenko's group, and most after it, comes with."""


def optical_density(tile: np.ndarray) -> np.ndarray:
    """Natural logarithm of what glass lets through over what each pixel does; float64, as shaped.

    One level is added, so that black is finite.
    """
    return np.log(GLASS_LEVEL) - np.log(np.asarray(tile, np.float64) + 1)


def measure_macenko(tile: np.ndarray) -> MacenkoStains | None:
    """The two stains of a tile.

    Macenko et al., ISBI 2009, 1107: the plane of the two leading eigenvectors of the stained
    pixels' densities; in it, the directions beside which 1% of them lie.

    Returns:
        None where they cannot be told: fewer than :data:`LEAST_STAINED_SHARE` of the pixels are
        stained, the two are less than :data:`LEAST_ANGLE_DEGREES` apart, or one is fainter than
        :data:`STAINED_DENSITY`.
    """
    density = optical_density(tile).reshape(3, -1)
    stained = density[:, (density >= STAINED_DENSITY).all(0)]
    if stained.shape[1] < LEAST_STAINED_SHARE * density.shape[1]:
        return None
    # In ascending order of the eigenvalues.
    plane = np.linalg.eigh(np.cov(stained))[1][:, 1:]
    along, most = plane.T @ stained
    angles = np.percentile(np.arctan2(most, along), [ANGLE_PERCENT, 100 - ANGLE_PERCENT])
    if math.degrees(angles[1] - angles[0]) < LEAST_ANGLE_DEGREES:
        return None
    stains = (plane @ [np.cos(angles), np.sin(angles)]).T
    # Haematoxylin takes more of the red light than eosin does.
    eosin, haematoxylin = stains[np.argsort(stains[:, 0])]
    amounts = np.linalg.pinv(np.stack([haematoxylin, eosin], 1)) @ density
    densities = np.percentile(amounts, DENSITY_PERCENTILE, axis=1)
    if densities.min() < STAINED_DENSITY:
        return None
    return MacenkoStains(
        haematoxylin=_triple(haematoxylin),
        eosin=_triple(eosin),
        densities=(float(densities[0]), float(densities[1])),
    )


def measure_reinhard(tile: np.ndarray) -> ReinhardColour | None:
    """Mean and standard deviation of all pixels of a tile in CIELAB.

    Returns:
        None where fewer than :data:`LEAST_STAINED_SHARE` of the pixels are stained.
    """
    stained = (optical_density(tile) >= STAINED_DENSITY).all(0)
    if stained.mean() < LEAST_STAINED_SHARE:
        return None
    lab = _lab(tile)
    return ReinhardColour(mean=_triple(lab.mean((0, 1))), std=_triple(lab.std((0, 1))))


def map_macenko(tile: np.ndarray, source: MacenkoStains, target: MacenkoStains) -> np.ndarray:
    """Take the stains ``source`` out of a tile and put ``target`` in; float32 3 x H x W, 0..255.

    What of a colour lies outside the plane of the two stains is lost.
    """
    change = np.divide(target.densities, source.densities)[:, None]
    mapping = target.mixing @ (change * np.linalg.pinv(source.mixing))
    density = np.tensordot(mapping, optical_density(tile), 1)
    return np.clip(GLASS_LEVEL * np.exp(-density) - 1, 0, 255).astype(np.float32)


def map_reinhard(tile: np.ndarray, source: ReinhardColour, target: ReinhardColour) -> np.ndarray:
    """Move mean and deviation from ``source`` to ``target``; float32 3 x H x W, 0..255.

    Reinhard et al., IEEE Comput. Graph. Appl. 21 (2001) 34, in CIELAB instead of their own space,
    as is usual for histology. A channel without deviation keeps to the mean.
    """
    deviation = np.asarray(source.std)
    change = np.divide(target.std, deviation, out=np.zeros(3), where=deviation > 0)
    lab = (_lab(tile) - source.mean) * change + target.mean
    # A yellow with less than no blue light: lab2rgb cuts it off too, but warns of every tile.
    lab[..., 2] = np.minimum(lab[..., 2], 200 / 116 * (lab[..., 0] + 16) - 1e-9)
    return np.moveaxis(255 * lab2rgb(lab), -1, 0).astype(np.float32)


def normalise(tile: np.ndarray, reference: StainReference) -> np.ndarray:
    """Give a tile the colours of ``reference``, by the reference's own method.

    Args:
        tile: 3 x H x W, RGB, uint8 or float in 0..255.
        reference: such as :func:`fit` gives.

    Returns:
        3 x H x W, 0..255: uint8, rounded, of uint8, otherwise float32. A tile whose colours cannot
        be measured, such as a blank one, as it was: there is nothing in it to normalise, and to
        stretch it would make stain of noise.
    """
    done = _normalised(tile, reference)
    if done is None:
        return tile if tile.dtype == np.uint8 else np.array(tile, np.float32)
    return np.rint(done).astype(np.uint8) if tile.dtype == np.uint8 else done


def _normalised(tile: np.ndarray, reference: StainReference) -> np.ndarray | None:
    if isinstance(reference, MacenkoStains):
        stains = measure_macenko(tile)
        return None if stains is None else map_macenko(tile, stains, reference)
    colour = measure_reinhard(tile)
    return None if colour is None else map_reinhard(tile, colour, reference)


def recorded(reference: StainReference | None) -> dict[str, Any] | None:
    """A reference in JSON's types."""
    return reference.model_dump(mode="json") if reference is not None else None


def fit(tiles: Iterable[np.ndarray], method: Method) -> StainReference | None:
    """The reference that stands for ``tiles``: the median of what each of them measures.

    Each tile is normalised by its own measures, so these are compared, not those of all pixels
    together: a deviation over several tiles is larger than that of any of them.

    Args:
        tiles: each 3 x H x W, RGB, 0..255.
        method: ``macenko`` or ``reinhard``.

    Returns:
        None where no tile could be measured.
    """
    if method == "macenko":
        stains = [one for one in map(measure_macenko, tiles) if one is not None]
        if not stains:
            return None
        amounts = np.median([one.densities for one in stains], 0)
        return MacenkoStains(
            haematoxylin=_unit(np.median([one.haematoxylin for one in stains], 0)),
            eosin=_unit(np.median([one.eosin for one in stains], 0)),
            densities=(float(amounts[0]), float(amounts[1])),
        )
    colours = [one for one in map(measure_reinhard, tiles) if one is not None]
    if not colours:
        return None
    return ReinhardColour(
        mean=_triple(np.median([one.mean for one in colours], 0)),
        std=_triple(np.median([one.std for one in colours], 0)),
    )


def _lab(tile: np.ndarray) -> np.ndarray:
    """H x W x 3, float64."""
    return rgb2lab(np.moveaxis(np.asarray(tile, np.float64) / 255, 0, -1))


def _unit(vector: np.ndarray) -> Triple:
    return _triple(vector / np.linalg.norm(vector))


def _triple(values: np.ndarray) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
