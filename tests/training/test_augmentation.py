"""Augmentation of batches: random numbers, pixels and distributions, held against MONAI's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffine
from scipy import stats
from torch import Tensor

from medkd.config import AugmentConfig
from medkd.datasets import colour_transforms
from medkd.datasets.augmentation import monai_transforms
from medkd.datasets.colour_transforms import RandColourJitterd
from medkd.datasets.patches import seed_of
from medkd.training import augmentation
from medkd.training.augmentation import BatchAugmentation, stream_places, uniform_numbers

# Strong enough that each shows in few draws.
STRONG: dict[str, dict[str, Any]] = {
    "flip": {"flip_p": 0.5},
    "turn": {"turn_p": 0.75},
    "affine": {"affine_p": 0.6, "affine_degrees": 40, "affine_shear": 0.2, "affine_shift_px": 4},
    "colour": {"colour_p": 0.7, "colour_scale": 0.3, "colour_shift": 20},
    "photometric": {"photometric_p": 0.7, "contrast": 0.5, "saturation": 0.6, "hue": 0.2},
    "stain": {"stain_p": 0.7, "stain_scale": 0.3, "stain_shift": 0.1},
    "blur": {"blur_p": 0.7, "blur_sigma_px": (0.4, 2.0)},
    "cutout": {"cutout_p": 0.7, "cutout_holes": 2, "cutout_px": (3, 12), "cutout_fill": 200},
}
OFF = {f"{name}_p": 0.0 for name in STRONG}
ALL = {name: value for options in STRONG.values() for name, value in options.items()}
each_operation = pytest.mark.parametrize("operation", [*STRONG, "all"])


def chosen(operation: str) -> AugmentConfig:
    return AugmentConfig(**{**OFF, **(ALL if operation == "all" else STRONG[operation])})


def tile(side: int = 24) -> Tensor:
    """Noise on a slope: each pixel has a neighbourhood of its own. uint8 3 x side x side."""
    random = np.random.default_rng(1)
    slope = np.linspace(40, 200, side)[:, None] + np.linspace(0, 40, side)
    image = slope + random.integers(-30, 30, (3, side, side))
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8))


def tiles(count: int, side: int = 24) -> Tensor:
    """Different ones."""
    return torch.stack([tile(side).roll(5 * i, 1) for i in range(count)])


def seeds(count: int, epoch: int = 0) -> Tensor:
    return torch.tensor([seed_of(7, epoch, index) for index in range(count)])


def numbers_of(of: Tensor, count: int) -> Tensor:
    return uniform_numbers(of, stream_places(count))


def unit(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def around(centre: float, reach: float, *shape: int) -> Tensor:
    return centre + reach * (2 * unit(*shape) - 1)


# Random numbers


def splitmix64(state: int, count: int) -> list[int]:
    """In Python's own integers."""
    mask, out = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_the_stream_is_splitmix64() -> None:
    # As published for the seed 1234567.
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    for seed in (0, 1, 2**32 - 1, -1, 2**63 - 1):
        z = (seed ^ ((seed & (2**64 - 1)) >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected = [(number >> 40) / 2**24 for number in splitmix64(z ^ (z >> 31), 6)]
        assert numbers_of(torch.tensor([seed]), 6)[0].tolist() == expected


@pytest.mark.parametrize("made", ["neighbours", "far apart"])
def test_numbers_are_uniform_over_seeds_and_over_draws(made: str) -> None:
    of = torch.arange(20_000) if made == "neighbours" else seeds(20_000)
    numbers = numbers_of(of, 12).numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for one_draw in numbers.T:
        assert stats.kstest(one_draw, "uniform").pvalue > 1e-3
    long = numbers_of(of[:8], 20_000).numpy()
    for one_seed in long:
        assert stats.kstest(one_seed, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("made", ["neighbours", "far apart"])
def test_draws_and_neighbouring_seeds_are_independent(made: str) -> None:
    """Correlations of 20,000 pairs have a standard deviation of 0.007; squares of 16 x 16 fit."""
    of = torch.arange(20_001) if made == "neighbours" else seeds(20_001)
    numbers = numbers_of(of, 10).numpy()
    now, following = numbers[:-1], numbers[1:]
    correlation = np.corrcoef(np.concatenate([now, following], 1).T)
    assert np.abs(correlation - np.eye(20)).max() < 0.03
    pairs = [(now[:, 0], now[:, 1]), (now[:, 4], now[:, 9]), (now[:, 3], following[:, 3])]
    for first, second in pairs:
        counts = np.histogram2d(first, second, 16, [[0, 1], [0, 1]])[0]
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_one_operation_more_changes_no_other_draw() -> None:
    plain, more = {"colour_p": 0}, {"colour_p": 0, "cutout_p": 1, "cutout_px": (4, 4)}
    first, second = (
        BatchAugmentation(AugmentConfig(**options))(tiles(6), seeds(6)) for options in (plain, more)
    )
    assert (first != second).any(1).sum((1, 2)).tolist() == [16] * 6


# Pixels, given what was drawn


def test_flips_and_turns_are_those_of_torch() -> None:
    images, of = tiles(200), seeds(200)
    augmented = BatchAugmentation(AugmentConfig(colour_p=0))(images, of)
    seen = set()
    for image, drawn, done in zip(images, numbers_of(of, 4).tolist(), augmented, strict=True):
        flipped, turns = drawn[0] < 0.5, int(3 * drawn[3]) + 1 if drawn[2] < 0.75 else 0
        expected = image.flip(1 if drawn[1] < 0.5 else 2) if flipped else image
        assert torch.equal(done, torch.rot90(expected, turns, (1, 2)) / 255)
        seen.add((flipped, turns))
    assert len(seen) == 8


def test_the_eight_orientations_come_equally_often() -> None:
    """4000 draws of 1 in 8: 500 each, standard deviation 21."""
    image = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).expand(4000, 3, 2, 2)
    done = BatchAugmentation(AugmentConfig(colour_p=0))(image, torch.arange(4000))
    counts = Counter(tuple(one) for one in (255 * done[:, 0]).round().int().flatten(1).tolist())
    assert len(counts) == 8
    assert all(415 < count < 585 for count in counts.values())


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_warp_is_monais_affine(size: tuple[int, int]) -> None:
    affine = RandAffine(
        prob=1,
        rotate_range=0.5,
        shear_range=(0.2, 0.2),
        translate_range=(5, 5),
        scale_range=(0.3, 0.3),
        padding_mode="reflection",
    )
    image = unit(3, *size)
    for seed in range(10):
        affine.set_random_state(seed=seed)
        expected = torch.as_tensor(np.asarray(affine(image)))
        drawn = affine.rand_affine_grid
        matrix = augmentation.affine_matrices(
            *(torch.tensor([one]) for one in drawn.rotate_params),
            torch.tensor([drawn.shear_params]),
            torch.tensor([drawn.translate_params]),
            torch.tensor([drawn.scale_params]),
        )
        warped = augmentation.warp(image[None], torch.tensor([True]), matrix)[0]
        torch.testing.assert_close(warped, expected, atol=2e-4, rtol=0)
        assert torch.equal(augmentation.warp(image[None], torch.tensor([False]), matrix)[0], image)


def test_channel_jitter_is_the_dictionary_transforms() -> None:
    jitter = RandColourJitterd("image", scale=0.3, shift=40)
    jitter.set_random_state(seed=2)
    expected = jitter({"image": tile().numpy()})["image"]
    used = np.stack([jitter.transform.scales, jitter.transform.shifts / 255]).astype(np.float32)
    drawn = torch.from_numpy(used)[:, None]
    done = augmentation.jitter_channels(tile()[None] / 255, *drawn)[0]
    np.testing.assert_allclose(255 * done.numpy(), expected, atol=1e-4)


def test_light_is_that_of_one_tile() -> None:
    drawn = [around(1, 0.4, 6), around(1, 0.4, 6), around(1, 0.9, 6), around(0, 0.5, 6)]
    mixing = BatchAugmentation().light_mixing(*drawn)
    done = augmentation.mix_light(tiles(6) / 255, *mixing)
    for image, one, *factors in zip(tiles(6), done, *(d.tolist() for d in drawn), strict=True):
        expected = colour_transforms.jitter_photometric(image.numpy(), *factors)
        np.testing.assert_allclose(255 * one.numpy(), expected, atol=2e-3)


def test_stain_jitter_is_that_of_one_tile() -> None:
    scale, shift = around(1, 0.4, 6, 3), around(0, 0.3, 6, 3)
    mixing = BatchAugmentation().density_mixing(scale, shift)
    images = torch.cat([tiles(4), torch.zeros(1, 3, 24, 24), torch.full((1, 3, 24, 24), 255)])
    done = augmentation.mix_densities(images / 255, torch.ones(6, dtype=torch.bool), *mixing)
    for image, one, *drawn in zip(images, done, scale, shift, strict=True):
        expected = colour_transforms.jitter_stains(image.numpy(), *(d.numpy() for d in drawn))
        np.testing.assert_allclose(255 * one.numpy(), expected, atol=5e-3)


def test_blur_is_that_of_one_tile() -> None:
    sigma = 0.3 + 2.2 * unit(6)
    done = augmentation.blur(tiles(6) / 255, augmentation.gaussian_kernels(sigma, 8))
    for image, one, wide in zip(tiles(6), done, sigma.tolist(), strict=True):
        expected = colour_transforms.gaussian_blur(image.numpy().astype(np.float32), wide, 8)
        np.testing.assert_allclose(255 * one.numpy(), expected, atol=1e-3)


def test_rectangles_lie_within_the_tile_and_have_every_side() -> None:
    settings = AugmentConfig(**{**OFF, "cutout_p": 1.0}, cutout_px=(3, 5), cutout_fill=255)
    white = BatchAugmentation(settings)(torch.zeros(600, 3, 9, 30, dtype=torch.uint8), seeds(600))
    assert set(white.unique().tolist()) == {0, 1}
    sides: set[tuple[int, int]] = set()
    for one in white[:, 0]:
        rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
        sides.add((len(rows), len(columns)))
        assert one.sum() == len(rows) * len(columns)
        assert rows[-1] - rows[0] + 1 == len(rows)
    assert sides == {(height, width) for height in (3, 4, 5) for width in (3, 4, 5)}
    assert white.any(0)[0].all()
    larger = settings.model_copy(update={"cutout_px": (64, 64)})
    assert (BatchAugmentation(larger)(torch.zeros_like(white[:2]).byte(), seeds(2)) == 1).all()


def test_white_black_and_pure_colours_stay_finite() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0, 255])] * 3).T.reshape(1, 3, 2, 4)
    images = corners.byte().expand(300, 3, 2, 4)
    settings = AugmentConfig(
        **{**OFF, "stain_p": 1.0, "photometric_p": 1.0}, stain_scale=1, stain_shift=6, hue=0.5
    )
    done = BatchAugmentation(settings)(images, seeds(300))
    assert ((done >= 0) & (done <= 1)).all()  # and no NaN, which is neither


# Distributions


def statistics_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Name to one number for each image; means that differ by rounding alone are made equal."""
    found = {f"mean of {c}": images[:, i].mean((1, 2)) for i, c in enumerate("RGB")}
    for row, column in ((0, 0), (0, 20), (12, 12), (23, 5)):
        found[f"red at {row}, {column}"] = images[:, 0, row, column]
    found["blue at 7, 16"] = images[:, 2, 7, 16]
    found["spread"] = images.std((1, 2, 3))
    found["roughness"] = np.abs(np.diff(images, axis=3)).mean((1, 2, 3))
    return {name: values.astype(np.float64).round(4) for name, values in found.items()}


def by_monai(settings: AugmentConfig, count: int) -> np.ndarray:
    transform = Compose(monai_transforms(settings))
    done = []
    for index in range(count):
        transform.set_random_state(seed=seed_of(3, 0, index))
        done.append(np.asarray(transform({"image": tile().numpy()})["image"]))
    return np.stack(done)


def by_batch(settings: AugmentConfig, count: int) -> np.ndarray:
    return BatchAugmentation(settings)(tile().expand(count, -1, -1, -1), seeds(count)).numpy()


def least_p(some: np.ndarray, others: np.ndarray) -> float:
    pairs = zip(statistics_of(some).values(), statistics_of(others).values(), strict=True)
    return min(stats.ks_2samp(one, other).pvalue for one, other in pairs)


@each_operation
def test_a_batch_is_distributed_as_monais_tiles(operation: str) -> None:
    settings = chosen(operation)
    assert least_p(by_monai(settings, 500), by_batch(settings, 4000)) > 2e-3


def test_the_defaults_are_distributed_as_the_tile_transforms() -> None:
    """Those of MONAI are the same, draw for draw: tests/datasets/test_augmentation.py."""
    settings = AugmentConfig()
    assert least_p(by_monai(settings, 800), by_batch(settings, 4000)) > 2e-3


@pytest.mark.parametrize(
    "other",
    [{"colour_shift": 32}, {"colour_p": 0.85}, {"colour_scale": 0.2}],
    ids=lambda other: next(iter(other)),
)
def test_the_comparison_would_tell_other_settings(other: dict[str, Any]) -> None:
    settings = chosen("colour")
    changed = settings.model_copy(update=other)
    assert least_p(by_monai(settings, 500), by_batch(changed, 4000)) < 2e-3


# Batches, layouts and compilers


@each_operation
def test_a_sample_alone_is_as_in_any_batch(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = BatchAugmentation(chosen(operation))
    images, of = tiles(11), seeds(11)
    whole = augment(images, of)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], of[order]), whole[order])
    for part in (slice(index, index + 1) for index in range(11)):
        assert torch.equal(augment(images[part], of[part]), whole[part])
    monkeypatch.setattr(augmentation, "_PIXELS_AT_ONCE", 3 * 24 * 24)
    assert torch.equal(augment(images, of), whole)
    assert not torch.equal(augment(images, seeds(11, epoch=1)), whole)


@each_operation
def test_layout_is_kept_and_changes_no_pixel(operation: str) -> None:
    augment = BatchAugmentation(chosen(operation))
    images = tiles(5)
    plain = augment(images, seeds(5))
    last = augment(images.contiguous(memory_format=torch.channels_last), seeds(5))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)
    assert plain.dtype == torch.float32
    assert torch.equal(images, tiles(5))  # the input is as it was
    assert augment(images[:0], seeds(5)[:0]).shape == (0, 3, 24, 24)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph(backend: str) -> None:
    """One graph without a break: nothing in it waits for a value on the host."""
    torch._dynamo.reset()
    augment = BatchAugmentation(chosen("all"))
    assert not augment.state_dict()  # nothing of it lies in a checkpoint
    compiled = torch.compile(augment, backend=backend, fullgraph=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = tiles(4).contiguous(memory_format=layout)
        expected = augment(images, seeds(4))
        torch.testing.assert_close(compiled(images, seeds(4)), expected, atol=1e-5, rtol=0)


def test_mixed_precision_leaves_it_alone() -> None:
    augment = BatchAugmentation(chosen("all"))
    plain = augment(tiles(4), seeds(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(tiles(4), seeds(4)), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_and_the_host_does_not_wait() -> None:
    augment = BatchAugmentation(chosen("all"))
    expected = augment(tiles(9), seeds(9))
    augment.cuda()
    images, of = tiles(9).cuda(), seeds(9).cuda()
    augment(images, of)
    torch.cuda.set_sync_debug_mode("error")
    try:
        done = augment(images, of)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    drawn = uniform_numbers(of, stream_places(40).cuda())
    assert torch.equal(drawn.cpu(), numbers_of(seeds(9), 40))
    torch.testing.assert_close(done.cpu(), expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (10, 18)])
def test_nothing_switched_on_is_the_plain_image(shape: tuple[int, int]) -> None:
    images = tiles(3)[:, :, : shape[0], : shape[1]]
    done = BatchAugmentation(AugmentConfig(**OFF))(images, seeds(3))
    assert torch.equal(done, images / 255)


@each_operation
def test_samples_that_are_passed_over_keep_every_level(operation: str) -> None:
    """Each operation is switched on, and chosen so rarely that none of these samples has it."""
    rare = {name: 1e-7 for name in OFF if getattr(chosen(operation), name)}
    settings = chosen(operation).model_copy(update=rare)
    assert torch.equal(BatchAugmentation(settings)(tiles(9), seeds(9)), tiles(9) / 255)


# Refusals


@pytest.mark.parametrize(
    ("images", "of", "message"),
    [
        (torch.rand(2, 3, 4, 4), seeds(2), "float32"),
        (tiles(2)[:, :1], seeds(2), r"\(2, 1, 24, 24\)"),
        (tiles(2)[0], seeds(2), "not uint8 N x 3 x H x W"),
        (tiles(2), seeds(3), "one for each of the 2 images"),
        (tiles(2), seeds(2).float(), "float32"),
        (tiles(2)[..., :20], seeds(2), "quarter turns need square images"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(images: Tensor, of: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchAugmentation()(images, of)
