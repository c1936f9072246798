"""From a loaded batch to what networks see: the same numbers as ever, and each view by its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.training.augmentation import BatchAugmentation
from medkd.training.images import device_images

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def tiles(count: int = 5) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 3, 16, 16)).astype(np.uint8))


DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_become_exactly_their_255th(device: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = device_images({"image": levels}, torch.device(device)).cpu()
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert images.dtype == torch.float32
    for channel in images[0]:
        np.testing.assert_array_equal(channel.numpy().ravel(), expected)


def test_a_batch_with_seeds_is_augmented_by_them() -> None:
    seeds = torch.arange(5)[:, None]
    augment = BatchAugmentation()
    images = device_images({"image": tiles(), "seed": seeds}, CPU, augment)
    assert torch.equal(images, augment(tiles(), seeds[:, 0]))


def test_each_view_has_seeds_of_its_own() -> None:
    seeds = torch.tensor([[0, 10], [1, 11], [2, 12], [3, 13], [4, 14]])
    augment = BatchAugmentation()
    images = device_images({"image": tiles(), "seed": seeds}, CPU, augment)
    assert images.shape == (2, 5, 3, 16, 16)
    assert torch.equal(images[0], augment(tiles(), torch.arange(5)))
    assert torch.equal(images[1], augment(tiles(), torch.arange(10, 15)))


def test_what_a_loader_augmented_is_left_as_it_is() -> None:
    one = tiles().float() / 255
    assert torch.equal(device_images({"image": one}, CPU), one)
    two = torch.stack([one, 1 - one], dim=1)
    images = device_images({"image": two}, CPU)
    assert torch.equal(images[0], one)
    assert torch.equal(images[1], 1 - one)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "floats", "floats of views", "seed", "seeds of views"])
def test_every_view_is_laid_out_as_the_networks_are(kind: str, channels_last: bool) -> None:
    batch = {"image": tiles()}
    if kind.startswith("seed"):
        batch["seed"] = torch.arange(15).reshape(5, 3)[:, : 3 if "views" in kind else 1]
    elif kind != "bytes":
        batch["image"] = batch["image"].float()
        if "views" in kind:
            batch["image"] = torch.stack([batch["image"]] * 3, dim=1)
    images = device_images(batch, CPU, BatchAugmentation(), channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    views = images if images.ndim == 5 else images[None]
    assert len(views) == (3 if "views" in kind else 1)
    assert all(view.is_contiguous(memory_format=layout) for view in views)


def test_seeds_that_nothing_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="brings seeds, and nothing augments it"):
        device_images({"image": tiles(), "seed": torch.zeros(5, 1, dtype=torch.int64)}, CPU)


def test_views_of_bytes_without_augmentation_are_scaled_too() -> None:
    """A method with views, and train.augment.enabled false."""
    two = torch.stack([tiles(), tiles().flip(-1)], 1)
    images = device_images({"image": two}, CPU)
    assert images.shape == (2, 5, 3, 16, 16)
    assert torch.equal(images[0], tiles().float() / 255)
    assert torch.equal(images[1], tiles().flip(-1).float() / 255)
