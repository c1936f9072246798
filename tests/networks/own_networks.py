"""Networks such as a user might name by import path, right ones and wrong ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NOT_CALLABLE = 3


class Whole(nn.Module):
    """No parts; asks for images of 16 pixels as they are."""

    input_px = 16
    input_mean = (0.0, 0.0, 0.0)
    input_std = (1.0, 1.0, 1.0)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


class Staged(nn.Module):
    """The four parts, without a forward of its own."""

    input_px = 16

    def __init__(self, classes: int, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.ModuleList(
            [nn.Conv2d(4, 6, 3, stride=2), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3))]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier = nn.Linear(8, classes)
        for name, part in parts.items():
            setattr(self, name, part)


class StagedTokens(Staged):
    """A state of tokens, with a map of them."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))  # N x 8 x 16
        self.stages = nn.ModuleList([nn.Linear(16, 16)])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(1))

    def as_map(self, state: Tensor) -> Tensor:
        return state.unflatten(2, (4, 4))


class WithForward(Staged):
    def forward(self, images: Tensor) -> Tensor:
        state = self.stem(images)
        for stage in self.stages:
            state = stage(state)
        return self.classifier(self.pool(state))


class AtOdds(WithForward):
    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


class _Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


def no_stages(classes: int) -> nn.Module:
    return Staged(classes, stages=nn.ModuleList())


def failing_stem(classes: int) -> nn.Module:
    return Staged(classes, stem=_Raises())


def failing_stage(classes: int) -> nn.Module:
    return Staged(classes, stages=nn.ModuleList([nn.Identity(), nn.Conv2d(5, 6, 3)]))


def flat_stage(classes: int) -> nn.Module:
    return Staged(classes, stages=nn.ModuleList([nn.Flatten(1)]))


def unpooled(classes: int) -> nn.Module:
    return Staged(classes, pool=nn.Identity())


def failing_classifier(classes: int) -> nn.Module:
    return Staged(classes, classifier=nn.Linear(9, classes))


def wrong_classes(classes: int) -> nn.Module:
    return Staged(classes, classifier=nn.Linear(8, classes + 1))


def whole_wrong_classes(classes: int) -> nn.Module:
    return Whole(classes + 1)


def fixed_size(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(1), nn.Linear(3 * 32 * 32, classes))


def not_a_module(classes: int) -> Any:
    return torch.zeros(classes)


def other_arguments(number: int) -> nn.Module:
    return Whole(number)


def bad_mean(classes: int) -> nn.Module:
    network = Whole(classes)
    network.input_mean = ("a", "b", "c")  # type: ignore[assignment]
    return network
