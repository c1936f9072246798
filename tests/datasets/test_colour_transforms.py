"""Colour, blur and cover of a tile: formulas against scikit-image, and MONAI's conventions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose, RandAxisFlipd
from skimage import color

from medkd.datasets.colour_transforms import (
    HED_FROM_RGB,
    LUMA,
    RGB_FROM_HED,
    YIQ_FROM_RGB,
    RandColourJitter,
    RandColourJitterd,
    RandCutout,
    RandCutoutd,
    RandGaussianBlur,
    RandGaussianBlurd,
    RandPhotometricJitter,
    RandPhotometricJitterd,
    RandStainJitter,
    RandStainJitterd,
    blur_radius,
    cut_out,
    gaussian_blur,
    jitter_channels,
    jitter_photometric,
    jitter_stains,
    rgb_to_stains,
    stains_to_rgb,
)
from medkd.datasets.jpeg_transforms import RandJpeg, RandJpegd

ONES, ZEROS = np.ones(3), np.zeros(3)
PAIRS: list[tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = [
    (RandColourJitter, RandColourJitterd, {"prob": 0.5, "scale": 0.2, "shift": 9.0}),
    (RandPhotometricJitter, RandPhotometricJitterd, {"prob": 0.5, "hue": 0.1}),
    (RandStainJitter, RandStainJitterd, {"prob": 0.5, "scale": 0.2, "shift": 0.1}),
    (RandGaussianBlur, RandGaussianBlurd, {"prob": 0.5, "sigma": (0.5, 2.0)}),
    (RandJpeg, RandJpegd, {"prob": 0.5, "quality": (10, 90)}),
    (RandCutout, RandCutoutd, {"prob": 0.5, "holes": 3, "side_px": (2, 6), "fill": 7.0}),
]
each_pair = pytest.mark.parametrize(("array", "dictionary", "options"), PAIRS)


def noise(seed: int = 0, height: int = 20, width: int = 28) -> np.ndarray:
    """Every level in every channel is as likely as any other."""
    return np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(np.uint8)


def stained(seed: int = 0, side: int = 24) -> np.ndarray:
    """Float 3 x H x W in [0, 1], of densities that haematoxylin, eosin and DAB can give."""
    densities = np.random.default_rng(seed).uniform(0.1, 0.6, (side, side, 3))
    return np.moveaxis(10 ** -(densities @ color.rgb_from_hed), -1, 0)


def as_skimage(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image.astype(np.float64), 0, -1)


def test_the_matrices_are_those_of_scikit_image() -> None:
    np.testing.assert_allclose(RGB_FROM_HED, color.rgb_from_hed)
    np.testing.assert_allclose(HED_FROM_RGB, color.hed_from_rgb)
    np.testing.assert_allclose(
        as_skimage(noise()) @ YIQ_FROM_RGB.T, color.rgb2yiq(as_skimage(noise()))
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_stains_are_six_times_those_of_scikit_image(dtype: type) -> None:
    """Its unit is the density of the darkest pixel; it cuts negative stains off."""
    for image in (stained(), noise() / 255):
        ours = rgb_to_stains(image.astype(dtype)) / 6
        theirs = np.moveaxis(color.rgb2hed(as_skimage(image)), -1, 0)
        np.testing.assert_allclose(np.maximum(ours, 0), theirs, atol=1e-5)


def test_stains_give_the_image_again() -> None:
    image = np.maximum(noise(), 1) / 255
    np.testing.assert_allclose(stains_to_rgb(rgb_to_stains(image)), image, atol=1e-9)


def test_jittered_stains_are_those_that_scikit_image_mixes() -> None:
    scale, shift = np.array([1.1, 0.9, 1.05]), np.array([0.02, -0.03, 0.01])
    image = stained()
    stains = color.rgb2hed(as_skimage(image)) * scale + shift / 6
    expected = np.moveaxis(color.hed2rgb(stains), -1, 0)
    np.testing.assert_allclose(jitter_stains(255 * image, scale, shift) / 255, expected, atol=1e-5)


def test_a_stain_that_is_scaled_leaves_the_others() -> None:
    before = rgb_to_stains(stained())
    jittered = jitter_stains(255 * stained(), np.array([1, 1.3, 1]), np.array([0, 0.05, 0]))
    after = rgb_to_stains(jittered / 255)
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(after[1], 1.3 * before[1] + 0.05, atol=1e-5)


def test_stains_left_alone_leave_every_level() -> None:
    image = noise().astype(np.float32)
    np.testing.assert_allclose(jitter_stains(image, ONES, ZEROS), image, atol=1e-3)


def test_white_black_and_pure_colours_stay_finite() -> None:
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 2, 4)
    for image in (corners.astype(np.uint8), corners.astype(np.float32)):
        for scale, shift in ((0.0, 0.0), (2.0, 6.0), (2.0, -6.0)):
            jittered = jitter_stains(image, scale * ONES, shift * ONES)
            assert np.isfinite(jittered).all()
            assert jittered.min() >= 0
            assert jittered.max() <= 255


def test_channels_are_scaled_shifted_and_cut_to_a_byte() -> None:
    image = np.array([0, 100, 255], np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    jittered = jitter_channels(image, np.array([1, 1.5, 1.2]), np.array([-5, 2.5, 9]))
    np.testing.assert_allclose(jittered[:, 0, 0], [0, 152.5, 255])


def test_brightness_multiplies_and_is_cut_at_255() -> None:
    image = noise().astype(np.float32)
    expected = np.minimum(image * 1.25, 255)
    np.testing.assert_allclose(jitter_photometric(image, 1.25, 1, 1, 0), expected, atol=1e-3)


def test_contrast_is_about_the_mean_luma() -> None:
    image = 60 + (noise() // 2).astype(np.float32)
    mean = (LUMA @ image.mean((1, 2))).item()
    expected = (image - mean) * 1.2 + mean
    np.testing.assert_allclose(jitter_photometric(image, 1, 1.2, 1, 0), expected, atol=1e-3)
    flat = jitter_photometric(image, 1, 0, 1, 0)
    np.testing.assert_allclose(flat, mean, atol=1e-3)


def test_no_saturation_is_grey_of_the_same_luma() -> None:
    image = noise().astype(np.float32)
    grey = jitter_photometric(image, 1, 1, 0, 0)
    np.testing.assert_allclose(grey, np.tensordot(LUMA, image, 1)[None].repeat(3, 0), atol=1e-3)


def test_hue_turns_i_and_q_and_leaves_the_luma() -> None:
    image = 110 + noise().astype(np.float32) / 8  # the turned colours stay within a byte
    before = color.rgb2yiq(as_skimage(image))
    after = color.rgb2yiq(as_skimage(jitter_photometric(image, 1, 1, 1, 0.1)))
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=1e-3)
    turned = (before[..., 1] + 1j * before[..., 2]) * np.exp(2j * np.pi * 0.1)
    np.testing.assert_allclose(after[..., 1] + 1j * after[..., 2], turned, atol=1e-3)
    once_round = jitter_photometric(image, 1, 1, 1, 1.0)
    np.testing.assert_allclose(once_round, image, atol=1e-3)


def test_blur_spreads_a_point_by_its_sigma_and_keeps_its_sum() -> None:
    point = np.zeros((3, 41, 41), np.float32)
    point[:, 20, 20] = 100
    blurred = gaussian_blur(point, 1.5, 12)
    assert blurred.sum((1, 2)) == pytest.approx([100] * 3, rel=1e-5)
    place = np.arange(41) - 20
    for axis in (0, 1):
        profile = blurred[0].sum(axis) / 100
        assert (profile * place**2).sum() == pytest.approx(1.5**2, rel=1e-3)


def test_blur_does_not_darken_the_rim() -> None:
    flat = np.full((3, 9, 9), 90, np.float32)
    np.testing.assert_allclose(gaussian_blur(flat, 2.0, blur_radius(2.0)), flat, rtol=1e-5)


def test_rectangles_are_filled_and_nothing_else() -> None:
    image = noise()
    covered = cut_out(image, [(2, 3, 4, 5), (0, 0, 1, 1)], 9)
    inside = np.zeros(image.shape[1:], bool)
    inside[2:6, 3:8] = inside[0, 0] = True
    assert (covered[:, inside] == 9).all()
    np.testing.assert_array_equal(covered[:, ~inside], image[:, ~inside])


def test_rectangles_lie_within_the_tile_and_have_every_side() -> None:
    cutout = RandCutout(prob=1, holes=2, side_px=(3, 5))
    cutout.set_random_state(seed=0)
    holes = []
    for _ in range(400):
        cutout(noise())
        holes += cutout.holes
    top, left, height, width = np.array(holes).T
    assert set(height) == set(width) == {3, 4, 5}
    assert (top.min(), left.min()) == (0, 0)
    assert ((top + height).max(), (left + width).max()) == (20, 28)
    # A hole owes nothing to the one before it.
    assert abs(np.corrcoef(height[::2], height[1::2])[0, 1]) < 0.2


def test_a_rectangle_larger_than_the_tile_covers_it() -> None:
    assert (RandCutout(prob=1, side_px=(64, 64), fill=3)(noise()) == 3).all()


@each_pair
def test_one_seed_gives_the_same_in_both_forms(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    one, other = array(**options), dictionary("image", **options)
    one.set_random_state(seed=3)
    other.set_random_state(seed=3)
    for _ in range(20):
        np.testing.assert_array_equal(one(noise()), other({"image": noise()})["image"])


@each_pair
def test_a_seed_repeats_and_another_differs(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    transform = dictionary("image", **{**options, "prob": 1.0})

    def seen(seed: int) -> np.ndarray:
        transform.set_random_state(seed=seed)
        return np.stack([transform({"image": noise()})["image"] for _ in range(3)])

    first = seen(5)
    np.testing.assert_array_equal(first, seen(5))
    assert not np.array_equal(first, seen(6))
    assert not np.array_equal(first[0], first[1])
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 255


@each_pair
def test_it_acts_as_often_as_its_probability_says(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    """400 tries of one half: 200 with a standard deviation of 10."""
    transform = array(**options)
    transform.set_random_state(seed=0)
    acted = sum(not np.array_equal(transform(noise()), noise()) for _ in range(400))
    assert 160 < acted < 240


@each_pair
def test_it_never_writes_into_its_input(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    for image in (noise(), noise().astype(np.float32)):
        before = image.copy()
        item = {"image": image, "label": 1}
        done = dictionary("image", **{**options, "prob": 1.0})(item)
        np.testing.assert_array_equal(image, before)
        assert item["image"] is image
        assert done["label"] == 1


@each_pair
def test_keys_share_a_draw_and_may_be_missing(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    transform = dictionary(["image", "second"], **{**options, "prob": 1.0})
    done = transform({"image": noise(), "second": noise()})
    np.testing.assert_array_equal(done["image"], done["second"])
    with pytest.raises(KeyError):
        transform({"image": noise()})
    lenient = dictionary("third", **options, allow_missing_keys=True)
    assert lenient({"image": 1}) == {"image": 1}


@each_pair
def test_it_follows_monais_own_and_can_be_sent_to_a_worker(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    chain = Compose([RandAxisFlipd("image", prob=0.5), dictionary("image", **options)])
    sent = pickle.loads(pickle.dumps(chain))
    for seed in range(8):
        seen = []
        for one in (chain, sent):
            one.set_random_state(seed=seed)
            seen.append(np.asarray(one({"image": noise()})["image"]))
        np.testing.assert_array_equal(*seen)


@each_pair
def test_the_last_draw_can_be_repeated(
    array: Any, dictionary: Any, options: dict[str, Any]
) -> None:
    transform = array(**{**options, "prob": 1.0})
    first = transform(noise())
    np.testing.assert_array_equal(transform(noise(), randomize=False), first)
