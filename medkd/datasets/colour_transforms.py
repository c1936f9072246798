"""MONAI transforms of a tile's colour, sharpness and cover, in array and dictionary form.

All take uint8 or float images in 0..255, 3 x H x W, RGB, and give float32 in 0..255; none writes
into its input, which may lie in a cache. ``medkd.training.augmentation`` does the same to whole
batches on the device.

Two of MONAI's own transforms do not fit. ``RandGaussianSmooth`` pads with zeros and so blackens the
rim of a tile; ``RandCoarseDropout`` cuts into the array that it is given, and where several holes
have a range of sizes, each is at least as large as the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from monai.config import KeysCollection
from scipy.ndimage import gaussian_filter1d

from medkd.datasets.random_image import RandImage, RandImaged

# Rows: haematoxylin, eosin, DAB; columns: optical density in red, green, blue. Ruifrok and
# Johnston, Anal. Quant. Cytol. Histol. 23 (2001) 291; the same as skimage.color.rgb_from_hed.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)
# The least transmittance that is told from none, as in skimage.color.rgb2hed: a density of 6.
DARKEST = 1e-6

# Brightness as seen, and the colour coordinates around it: ITU-R BT.601 and NTSC's YIQ.
LUMA = np.array([0.299, 0.587, 0.114])
YIQ_FROM_RGB = np.array(
    [LUMA, [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]]
)


def jitter_channels(image: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Multiply each channel by its ``scale`` and add its ``shift``, levels; float32 3 x H x W."""
    jittered = image * _per_channel(scale) + _per_channel(shift)
    return np.clip(jittered, 0, 255, out=jittered)


def jitter_photometric(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Change light and colour as a whole; cut to 0..255 once, at the end.

    Args:
        image: 3 x H x W, 0..255.
        brightness: factor on all channels.
        contrast: factor on the distance from the tile's mean luma; that is taken of whole levels,
            whose sum does not depend on the order.
        saturation: factor on the distance from each pixel's luma.
        hue: turn in the plane of I and Q, as a share of a full turn; it leaves the luma alone.
    """
    levels = np.floor(image + np.float32(0.5)).astype(np.uint8)
    mean = float(LUMA @ levels.mean((1, 2), dtype=np.float64)) * brightness
    lit = (image * np.float32(brightness) - np.float32(mean)) * np.float32(contrast)
    lit += np.float32(mean)
    luma = _mixed(LUMA, lit)
    luma, i, q = _mixed(YIQ_FROM_RGB, (lit - luma) * np.float32(saturation) + luma)
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turned = np.stack([luma, cosine * i - sine * q, sine * i + cosine * q])
    rgb = _mixed(np.linalg.inv(YIQ_FROM_RGB), turned)
    return np.clip(rgb, 0, 255, out=rgb)


def rgb_to_stains(rgb: np.ndarray) -> np.ndarray:
    """Optical density of haematoxylin, eosin and DAB, 3 x H x W, from RGB in [0, 1], 3 x H x W.

    Density is -log10 of the transmittance, six times the unit of ``skimage.color.rgb2hed``. What
    is negative stays so, or the way back would not give the image again.
    """
    density = -np.log10(np.maximum(rgb, DARKEST))
    return _mixed(HED_FROM_RGB.T, density)


def stains_to_rgb(stains: np.ndarray) -> np.ndarray:
    """The way back from :func:`rgb_to_stains`, cut to [0, 1]."""
    return np.minimum(10 ** -_mixed(RGB_FROM_HED.T, stains), 1)


def jitter_stains(image: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Multiply the density of each stain by its ``scale`` and add its ``shift``, optical density.

    After Tellez et al., IEEE Trans. Med. Imaging 37 (2018) 2126.
    """
    stains = rgb_to_stains(image / np.float32(255))
    return 255 * stains_to_rgb(stains * _per_channel(scale) + _per_channel(shift))


def blur_radius(largest_sigma: float) -> int:
    """Reach of the kernel, pixels: three times the largest sigma that may be drawn."""
    return math.ceil(3 * largest_sigma)


def gaussian_blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """Smooth with a sampled Gaussian of ``sigma`` pixels; the rim is repeated outwards."""
    blurred = image
    for axis in (1, 2):
        blurred = gaussian_filter1d(blurred, sigma, axis, mode="nearest", radius=radius)
    return blurred


def cut_out(
    image: np.ndarray, holes: Sequence[tuple[int, int, int, int]], fill: float
) -> np.ndarray:
    """Fill rectangles (top, left, height, width), pixels, with the level ``fill``."""
    covered = image.copy()
    for top, left, height, width in holes:
        covered[:, top : top + height, left : left + width] = fill
    return covered


class RandColourJitter(RandImage):
    """Scale and shift each channel at random.

    Args:
        prob: of doing so.
        scale: factors come from 1 ± this.
        shift: shifts come from 0 ± this, levels.
    """

    def __init__(self, prob: float = 1.0, scale: float = 0.1, shift: float = 12.0) -> None:
        super().__init__(prob)
        self._scale, self._shift = scale, shift

    def _draw(self) -> None:
        self.scales = self._around(1, self._scale, 3)
        self.shifts = self._around(0, self._shift, 3)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return jitter_channels(image, self.scales, self.shifts)


class RandPhotometricJitter(RandImage):
    """Change brightness, contrast, saturation and hue at random.

    Args:
        prob: of doing so.
        brightness: factors come from 1 ± this; so do the next two.
        contrast: see :func:`jitter_photometric`.
        saturation: see there.
        hue: turns come from 0 ± this share of a full turn.
    """

    def __init__(
        self,
        prob: float = 1.0,
        brightness: float = 0.1,
        contrast: float = 0.1,
        saturation: float = 0.1,
        hue: float = 0.02,
    ) -> None:
        super().__init__(prob)
        self._reaches = (brightness, contrast, saturation, hue)

    def _draw(self) -> None:
        self.factors = [
            self._around(centre, reach)
            for centre, reach in zip((1, 1, 1, 0), self._reaches, strict=True)
        ]

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return jitter_photometric(image, *self.factors)


class RandStainJitter(RandImage):
    """Scale and shift the density of haematoxylin, eosin and DAB at random.

    Args:
        prob: of doing so.
        scale: factors come from 1 ± this.
        shift: shifts come from 0 ± this, optical density.
    """

    def __init__(self, prob: float = 1.0, scale: float = 0.05, shift: float = 0.02) -> None:
        super().__init__(prob)
        self._scale, self._shift = scale, shift

    def _draw(self) -> None:
        self.scales = self._around(1, self._scale, 3)
        self.shifts = self._around(0, self._shift, 3)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return jitter_stains(image, self.scales, self.shifts)


class RandGaussianBlur(RandImage):
    """Blur with a Gaussian whose sigma, pixels, comes from the interval ``sigma``."""

    def __init__(self, prob: float = 0.1, sigma: tuple[float, float] = (0.25, 1.5)) -> None:
        super().__init__(prob)
        self._interval = sigma

    def _draw(self) -> None:
        self.sigma = self.R.uniform(*self._interval)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return gaussian_blur(image, self.sigma, blur_radius(self._interval[1]))


class RandCutout(RandImage):
    """Cover rectangles anywhere within the tile; DeVries and Taylor, arXiv 1708.04552.

    Args:
        prob: of doing so.
        holes: how many rectangles; they may overlap.
        side_px: least and largest height and width, both drawn for each rectangle; a smaller tile
            is covered over its whole side.
        fill: level of what is covered, 0..255.
    """

    def __init__(
        self,
        prob: float = 0.1,
        holes: int = 1,
        side_px: tuple[int, int] = (16, 64),
        fill: float = 0.0,
    ) -> None:
        super().__init__(prob)
        self._count, self._side_px, self._fill = holes, side_px, fill

    def _draw(self) -> None:
        least, largest = self._side_px
        self.holes = []
        for _ in range(self._count):
            sides = [min(self.R.randint(least, largest + 1), room) for room in self._size]
            corner = [
                self.R.randint(room - side + 1)
                for room, side in zip(self._size, sides, strict=True)
            ]
            self.holes.append((corner[0], corner[1], sides[0], sides[1]))

    def _apply(self, image: np.ndarray) -> np.ndarray:
        return cut_out(image, self.holes, self._fill)


class RandColourJitterd(RandImaged):
    """Dictionary form of :class:`RandColourJitter`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        scale: float = 0.1,
        shift: float = 12.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandColourJitter(prob, scale, shift), allow_missing_keys)


class RandPhotometricJitterd(RandImaged):
    """Dictionary form of :class:`RandPhotometricJitter`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        brightness: float = 0.1,
        contrast: float = 0.1,
        saturation: float = 0.1,
        hue: float = 0.02,
        allow_missing_keys: bool = False,
    ) -> None:
        array = RandPhotometricJitter(prob, brightness, contrast, saturation, hue)
        super().__init__(keys, array, allow_missing_keys)


class RandStainJitterd(RandImaged):
    """Dictionary form of :class:`RandStainJitter`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        scale: float = 0.05,
        shift: float = 0.02,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandStainJitter(prob, scale, shift), allow_missing_keys)


class RandGaussianBlurd(RandImaged):
    """Dictionary form of :class:`RandGaussianBlur`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        sigma: tuple[float, float] = (0.25, 1.5),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandGaussianBlur(prob, sigma), allow_missing_keys)


class RandCutoutd(RandImaged):
    """Dictionary form of :class:`RandCutout`."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        holes: int = 1,
        side_px: tuple[int, int] = (16, 64),
        fill: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandCutout(prob, holes, side_px, fill), allow_missing_keys)


def _mixed(matrix: np.ndarray, image: np.ndarray) -> np.ndarray:
    """``matrix`` times each pixel, in the image's own precision."""
    return np.tensordot(matrix.astype(image.dtype), image, 1)


def _per_channel(values: np.ndarray) -> np.ndarray:
    return np.reshape(np.asarray(values, np.float32), (3, 1, 1))
