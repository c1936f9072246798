"""From a loaded batch to the images that networks see."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medkd.training.augmentation import BatchAugmentation


def device_images(
    batch: Mapping[str, Tensor],
    device: torch.device,
    augment: BatchAugmentation | None = None,
    *,
    channels_last: bool = True,
) -> Tensor:
    """The images of a batch on the device, augmented there if the batch brings seeds.

    Args:
        batch: with ``image``: uint8, or what a loader augmented, float32 in [0, 1]; N x 3 x H x W
            or N x views x 3 x H x W. With ``seed``, int64 N x views, beside uint8
            that is to be augmented.
        device: where the networks are.
        augment: on the device; a batch without seeds does not need it.
        channels_last: memory format of each view.

    Returns:
        float32 in [0, 1], N x 3 x H x W, or views x N x 3 x H x W where there are several.

    Raises:
        ValueError: there are seeds, and nothing that augments.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = batch["image"]
    if images.ndim == 5:
        views = images.to(device, non_blocking=True).transpose(0, 1)
        together = views.flatten(0, 1).contiguous(memory_format=layout)
        return _scaled(together).unflatten(0, views.shape[:2])
    images = images.to(device, non_blocking=True, memory_format=layout)
    if "seed" in batch:
        if augment is None:
            raise ValueError("the batch brings seeds, and nothing augments it")
        return _augmented(images, batch["seed"].to(device, non_blocking=True), augment)
    return _scaled(images)


def _scaled(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; what is float already stays as it is."""
    if images.dtype != torch.uint8:
        return images
    # By a number on the device: CUDA multiplies by the inverse of one on the host, and rounds.
    return images.float() / torch.full((), 255.0, device=images.device)


def _augmented(images: Tensor, seeds: Tensor, augment: BatchAugmentation) -> Tensor:
    """All views as one batch: the image was sent once, and each has seeds of its own."""
    count, views = seeds.shape
    if views == 1:
        return augment(images, seeds[:, 0])
    return augment(torch.cat([images] * views), seeds.T.flatten()).unflatten(0, (views, count))
