"""Augmentation of a whole batch on the device, a function of each sample's own seed.

The same operations as those of :func:`medkd.datasets.augmentation.monai_transforms` but for JPEG,
in the same order and with the same distributions. Here they run over all samples at once: no loop
over samples, and no value that the host waits for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.config import AugmentConfig
from medkd.datasets.colour_transforms import (
    DARKEST,
    HED_FROM_RGB,
    LUMA,
    RGB_FROM_HED,
    YIQ_FROM_RGB,
    blur_radius,
)

Step = tuple[Callable[..., Tensor], tuple[Tensor, ...]]

# Of SplitMix64, the factors as signed 64-bit numbers: Steele, Lea and Flood, OOPSLA 2014.
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
# Where each operation's draws stand, its gate first: what is switched on changes no other draw.
_FLIP, _TURN, _AFFINE, _COLOUR = slice(0, 2), slice(2, 4), slice(4, 12), slice(12, 19)
_LIGHT, _STAIN, _BLUR = slice(19, 24), slice(24, 31), slice(31, 33)
_COVER = slice(33, None)  # and four for each hole
# Pixels that the CPU takes through all operations before the next ones, to stay in its cache.
_PIXELS_AT_ONCE = 2**18


def stream_places(count: int) -> Tensor:
    """What SplitMix64 adds to its first state for each of ``count`` numbers, int64."""
    places = [(place * _GOLDEN) % 2**64 for place in range(1, count + 1)]
    return torch.tensor([place - 2**64 if place >= 2**63 else place for place in places])


def uniform_numbers(seeds: Tensor, places: Tensor) -> Tensor:
    """Numbers in [0, 1): float32 N x places, the same on every device.

    Row i holds the numbers at ``places``, of :func:`stream_places`, of the SplitMix64 stream that
    starts at the hash of ``seeds[i]``, int64 N; their upper 24 bits, all that a float32 holds.
    """
    bits = _hashed(_hashed(seeds)[:, None] + places)
    return _shifted(bits, 40).float() * 2.0**-24


def _hashed(state: Tensor) -> Tensor:
    """SplitMix64's output for a state, int64; products wrap around."""
    state = (state ^ _shifted(state, 30)) * _FACTORS[0]
    state = (state ^ _shifted(state, 27)) * _FACTORS[1]
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, zeros moving in: int64's own shift repeats the sign."""
    return (bits >> places) & (2 ** (64 - places) - 1)


class BatchAugmentation(nn.Module):
    """Augments a batch of tiles where it lies; move it to the device first.

    Args:
        settings: of the operations and their probabilities.
    """

    places: Tensor
    eye: Tensor
    hue_planes: Tensor
    stain_planes: Tensor
    rgb_from_hed: Tensor

    def __init__(self, settings: AugmentConfig | None = None) -> None:
        super().__init__()
        self.settings = settings or AugmentConfig()
        yiq = torch.from_numpy(YIQ_FROM_RGB)
        luma = torch.from_numpy(LUMA).expand(3, 3)
        quarter = torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=yiq.dtype)
        hue_planes = torch.stack([luma, torch.eye(3) - luma, yiq.inverse() @ quarter @ yiq])
        mixing, unmixing = torch.from_numpy(RGB_FROM_HED), torch.from_numpy(HED_FROM_RGB)
        constants = {
            "eye": torch.eye(3),
            "hue_planes": hue_planes,
            # One for each stain, from densities of RGB to those that the stain alone gives.
            "stain_planes": torch.einsum("ko,ik->koi", mixing, unmixing),
            "rgb_from_hed": mixing,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)
        places = stream_places(_COVER.start + 1 + 4 * self.settings.cutout_holes)
        self.register_buffer("places", places, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augment each image as its seed says, whatever batch it is in.

        Args:
            images: uint8 N x 3 x H x W, RGB, contiguous or channels_last.
            seeds: int64 N, such as :func:`medkd.datasets.patches.seed_of` gives.

        Returns:
            float32 N x 3 x H x W in [0, 1], laid out as ``images`` are.

        Raises:
            ValueError: shapes or types do not fit.
        """
        _check(images, seeds, square=self.settings.turn_p > 0)
        height, width = images.shape[2:]
        draws = uniform_numbers(seeds, self.places)
        at_once = max(1, len(images))
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            at_once = max(1, _PIXELS_AT_ONCE // (height * width))
        out = torch.empty_like(images, dtype=torch.float32)
        with torch.autocast(images.device.type, enabled=False):
            steps = self._steps(draws, height, width)
            for start in range(0, len(images), at_once):
                part = slice(start, start + at_once)
                done = images[part]
                for operation, parameters in steps:
                    done = operation(done, *(one[part] for one in parameters))
                out[part] = done
        return out

    def _steps(self, draws: Tensor, height: int, width: int) -> list[Step]:
        """The operations that are switched on, with their parameters for every sample."""
        s = self.settings
        flip, turn, affine, colour = (draws[:, at] for at in (_FLIP, _TURN, _AFFINE, _COLOUR))
        light, stain, soft, cover = (draws[:, at] for at in (_LIGHT, _STAIN, _BLUR, _COVER))
        steps: list[Step] = []
        if s.flip_p or s.turn_p:
            rows, columns, swapped = _orientation(flip, turn, s)
            steps.append((mirror, (rows, columns)))
            if s.turn_p:
                steps.append((swap_axes, (swapped,)))
        steps.append((_to_unit, ()))
        if s.affine_p:
            steps.append((warp, (affine[:, 0] < s.affine_p, _affine_matrices(affine, s))))
        if s.colour_p:
            on = colour[:, :1] < s.colour_p
            scale = torch.where(on, _around(1, s.colour_scale, colour[:, 1:4]), 1)
            shift = torch.where(on, _around(0, s.colour_shift / 255, colour[:, 4:]), 0)
            steps.append((jitter_channels, (scale, shift)))
        if s.photometric_p:
            steps.append((mix_light, self._light(light)))
        if s.stain_p:
            scale = _around(1, s.stain_scale, stain[:, 1:4])
            shift = _around(0, s.stain_shift, stain[:, 4:])
            on = stain[:, 0] < s.stain_p
            steps.append((mix_densities, (on, *self.density_mixing(scale, shift))))
        if s.blur_p:
            low, high = s.blur_sigma_px
            # So narrow a kernel is the pixel alone, exactly.
            sigma = torch.where(soft[:, 0] < s.blur_p, low + (high - low) * soft[:, 1], 1e-3)
            steps.append((blur, (gaussian_kernels(sigma, blur_radius(high)),)))
        if s.cutout_p:
            cut = partial(cut_out, fill=s.cutout_fill / 255)
            steps.append((cut, _rectangles(cover, s, height, width)))
        return steps

    def _light(self, u: Tensor) -> tuple[Tensor, Tensor]:
        s = self.settings
        factors = [
            _around(centre, reach, u[:, 1 + place])
            for place, (centre, reach) in enumerate(
                [(1, s.brightness), (1, s.contrast), (1, s.saturation), (0, s.hue)]
            )
        ]
        matrix, share = self.light_mixing(*factors)
        on = u[:, 0] < s.photometric_p
        return torch.where(on[:, None, None], matrix, self.eye), torch.where(on, share, 0)

    def light_mixing(
        self, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For :func:`mix_light`: all four changes as one matrix N x 3 x 3, and a share, N.

        Brightness and contrast multiply all. Saturation and hue leave the luma, and stretch and
        turn what is left: with L the projection on the luma, K = 1 - L and Q a quarter turn of
        YIQ's I and Q, that is L + saturation (cos(hue) K + sin(hue) Q).
        """
        angle = 2 * math.pi * hue
        weights = [torch.ones_like(hue), saturation * angle.cos(), saturation * angle.sin()]
        matrix = (torch.stack(weights, 1)[:, :, None, None] * self.hue_planes).sum(1)
        return (brightness * contrast)[:, None, None] * matrix, brightness * (1 - contrast)

    def density_mixing(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """For :func:`mix_densities`, from each stain's scale and shift, optical density, N x 3."""
        matrix = (scale[:, :, None, None] * self.stain_planes).sum(1)
        return matrix, (shift[:, :, None] * self.rgb_from_hed).sum(1)


def mirror(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Turn the rows' order round, and the columns', where the flags, bool N, say so; uint8."""
    images = _chosen(columns, images.flip(3), images)
    return _chosen(rows, images.flip(2), images)


def swap_axes(images: Tensor, swapped: Tensor) -> Tensor:
    """Swap rows and columns where the flags, bool N, say so; uint8."""
    return _chosen(swapped, images.transpose(2, 3).contiguous(), images)


def warp(images: Tensor, on: Tensor, matrices: Tensor) -> Tensor:
    """Sample where ``matrices`` say, bilinear, mirrored at the rim; the others stay.

    Args:
        images: float N x 3 x H x W.
        on: bool N.
        matrices: N x 2 x 3, from (row, column, 1) of a pixel of the result to the row and column
            that it comes from, all counted from the centre.
    """
    height, width = images.shape[2:]
    row = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    column = torch.arange(width, device=images.device) - (width - 1) / 2
    # Written out: a matrix product may be cut to TF32, a tenth of a pixel here.
    from_row, from_column = (
        m[:, 0, None, None] * row + m[:, 1, None, None] * column + m[:, 2, None, None]
        for m in matrices.unbind(1)
    )
    grid = torch.stack([from_column * (2 / width), from_row * (2 / height)], -1)
    warped = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    return torch.where(_over_pixels(on), warped, images)


def jitter_channels(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Multiply each channel by its ``scale``, N x 3, and add its ``shift``, in units of [0, 1]."""
    return images.mul(_over_pixels(scale)).add_(_over_pixels(shift)).clamp_(0, 1)


def mix_light(images: Tensor, matrix: Tensor, share: Tensor) -> Tensor:
    """Mix the channels by ``matrix``, N x 3 x 3, and add ``share``, N, of the tile's mean luma."""
    # Of whole levels: their sum is the same in any order, hence in any batch.
    levels = images.mul(255).add_(0.5).to(torch.uint8).sum((2, 3), dtype=torch.int64)
    red, green, blue = (levels / (255 * images.shape[2] * images.shape[3])).unbind(1)
    offset = share * (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
    return _mixed(images, matrix, offset[:, None].expand(-1, 3)).clamp_(0, 1)


def mix_densities(images: Tensor, on: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Mix the optical densities of the channels; images where ``on``, bool N, is not set stay.

    Args:
        images: float N x 3 x H x W in [0, 1].
        on: bool N.
        matrix: N x 3 x 3, from densities to densities.
        offset: N x 3, -log10 of a transmittance, to be added.
    """
    light = images.clamp_min(DARKEST).log_()
    mixed = _mixed(light, matrix, -math.log(10) * offset).exp_().clamp_max_(1)
    return torch.where(_over_pixels(on), mixed, images)


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Sampled Gaussians of ``sigma`` pixels, N, that sum to one: N x (2 radius + 1)."""
    distance = torch.arange(-radius, radius + 1, device=sigma.device)
    kernels = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    return kernels / kernels.sum(1, keepdim=True)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel, N x odd, along both axes; the rim is repeated."""
    count, channels = images.shape[:2]
    radius = kernels.shape[1] // 2
    planes = F.pad(images, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    planes = F.conv2d(planes, weights[:, :, None, :], groups=len(weights))
    planes = F.conv2d(planes, weights[:, :, :, None], groups=len(weights))
    return planes[0].unflatten(0, (count, channels))


def cut_out(images: Tensor, rows: Tensor, columns: Tensor, fill: float) -> Tensor:
    """Fill rectangles: where their rows, bool N x holes x H, and columns, N x holes x W, meet."""
    covered = (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
    return torch.where(covered, fill, images)


def _check(images: Tensor, seeds: Tensor, *, square: bool) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}, not uint8 N x 3 x H x W"
        )
    if seeds.dtype != torch.int64 or seeds.shape != images.shape[:1]:
        raise ValueError(
            f"seeds are {seeds.dtype} {tuple(seeds.shape)}; int64, one for each of the "
            f"{len(images)} images, are needed"
        )
    if square and images.shape[2] != images.shape[3]:
        raise ValueError(
            f"quarter turns need square images, not {tuple(images.shape[2:])}; set turn_p to 0"
        )


def _to_unit(images: Tensor) -> Tensor:
    return images.float().div_(255)


def _around(centre: float, reach: float, u: Tensor) -> Tensor:
    return centre + reach * (2 * u - 1)


def _over_pixels(values: Tensor) -> Tensor:
    """From N or N x 3 to what broadcasts with N x 3 x H x W."""
    return values.reshape(len(values), -1, 1, 1)


def _chosen(flags: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one``, which is overwritten, where the flags are set, else ``other``; uint8.

    By bits: torch.where takes bytes one by one on a CPU, five times as slow.
    """
    mask = _over_pixels(flags).to(torch.uint8).neg()
    return one.bitwise_xor_(other).bitwise_and_(mask).bitwise_xor_(other)


def _mixed(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """``matrix``, N x 3 x 3, times each pixel, and ``offset``, N x 3; never in TF32."""
    red, green, blue = (matrix[:, :, place, None, None] for place in range(3))
    mixed = images[:, 0:1] * red
    mixed.addcmul_(images[:, 1:2], green).addcmul_(images[:, 2:3], blue)
    return mixed.add_(_over_pixels(offset))


def _orientation(flip: Tensor, turn: Tensor, s: AugmentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """A mirror image and quarter turns as: mirror rows, mirror columns, then swap the axes."""
    flipped = flip[:, 0] < s.flip_p
    across = flip[:, 1] < 0.5
    quarters = torch.where(turn[:, 0] < s.turn_p, 1 + (3 * turn[:, 1]).floor(), 0)
    rows = (flipped & across) ^ (quarters >= 2)
    columns = (flipped & ~across) ^ ((quarters == 1) | (quarters == 2))
    return rows, columns, (quarters == 1) | (quarters == 3)


def affine_matrices(turn: Tensor, shear: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """For :func:`warp`, as MONAI's AffineGrid: turn times shear times shift times scale.

    Args:
        turn: radians, N.
        shear: of the rows by the columns, then of the columns by the rows, N x 2.
        shift: of rows and columns, pixels, N x 2.
        scale: of rows and columns, N x 2.
    """
    cos, sin = turn.cos(), turn.sin()
    by_columns, by_rows = shear.unbind(1)
    both = 1 + by_columns * by_rows
    first = torch.stack([cos - sin * by_rows, cos * by_columns - sin * both], 1)
    second = torch.stack([sin + cos * by_rows, sin * by_columns + cos * both], 1)
    turned = torch.stack([first, second], 1)
    moved = (turned * shift[:, None]).sum(2, keepdim=True)
    return torch.cat([turned * scale[:, None], moved], 2)


def _affine_matrices(u: Tensor, s: AugmentConfig) -> Tensor:
    return affine_matrices(
        _around(0, math.radians(s.affine_degrees), u[:, 1]),
        _around(0, s.affine_shear, u[:, 2:4]),
        _around(0, s.affine_shift_px, u[:, 4:6]),
        _around(1, s.affine_scale, u[:, 6:8]),
    )


def _rectangles(u: Tensor, s: AugmentConfig, height: int, width: int) -> tuple[Tensor, Tensor]:
    least, largest = s.cutout_px
    masks = []
    for place, room in enumerate((height, width)):
        draws = u[:, 1:].unflatten(1, (s.cutout_holes, 2, 2))[:, :, place, :, None]
        side = (least + (draws[:, :, 0] * (largest - least + 1)).floor()).clamp_max(room)
        first = (draws[:, :, 1] * (room - side + 1)).floor()
        pixel = torch.arange(room, device=u.device)
        masks.append((pixel >= first) & (pixel < first + side))
    return masks[0] & (u[:, 0] < s.cutout_p)[:, None, None], masks[1]
