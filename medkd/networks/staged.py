"""Every network seen in the same parts: adapter, stem, stages, pool, classifier.

Distillation methods speak of these parts: peers share all stages but the last (PCL), a bridge is a
fresh copy of the last stage and what follows it (SOKD), attention is compared after a stage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import ConfigError
from medkd.networks.spec import NetworkSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputAdapter(nn.Module):
    """Brings images to the size and the normalisation that a network was made for.

    Args:
        mean: of each channel, for RGB in [0, 1].
        std: likewise.
        input_px: side of the only images that the network takes; None: it takes any.

    Every network of a cohort takes the same RGB images and adapts them itself, so that any teacher
    fits, and what ships needs no preprocessing but a division by 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        input_px: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.input_px = input_px

    def forward(self, images: Tensor) -> Tensor:
        """Adapted images, of RGB images in [0, 1], float N x 3 x H x W."""
        side = self.input_px
        if side is not None and (images.shape[-2] != side or images.shape[-1] != side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std


class Finished(NamedTuple):
    """What a network makes of its states.

    Attributes:
        logits: N x classes; of a detector N x anchors x (classes + 4).
        pooled: what the classifier sees, N x pooled_channels; of a detector the mean over its
            pyramid.
        pyramid: a detector's maps of all levels, flattened, N x channels x cells; None of others.
    """

    logits: Tensor
    pooled: Tensor
    pyramid: Tensor | None = None


class StagedNetwork(nn.Module):
    """A network whose parts can be used one by one.

    Args:
        adapter: takes RGB in [0, 1], float N x 3 x H x W.
        stem: what comes before the first stage.
        stages: called one after another; what passes between them is the network's *state*, which
            a stage must not change in place, as it may be given to several.
        pool: norm, activation and pooling after the last stage; gives N x pooled_channels.
        classifier: gives logits, N x classes.
        stage_channels: channels after each stage.
        pooled_channels: channels after ``pool``.
        to_map: makes N x C x h x w of a state that is none; left out where the state is a map.

    One with ``has_pyramid`` is a detector, see :mod:`medkd.networks.detector`. ``spec`` is what the
    network was built from, if :func:`medkd.networks.zoo.build_network` did; ``head_only``: see
    :mod:`medkd.networks.heads`.
    """

    has_stages: ClassVar[bool] = True
    has_pyramid: ClassVar[bool] = False

    def __init__(
        self,
        *,
        adapter: InputAdapter,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        pool: nn.Module,
        classifier: nn.Module,
        stage_channels: Sequence[int],
        pooled_channels: int,
        to_map: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.pool = pool
        self.classifier = classifier
        self.stage_channels = tuple(stage_channels)
        self.pooled_channels = pooled_channels
        self.to_map = nn.Identity() if to_map is None else to_map
        self.spec: NetworkSpec | None = None
        self.head_only = False
        if not self.stages or len(self.stages) != len(self.stage_channels):
            raise ValueError(
                f"{len(self.stages)} stages with {len(self.stage_channels)} stage_channels"
            )

    def enter(self, images: Tensor) -> Tensor:
        """The state before the first stage, of RGB images in [0, 1], float N x 3 x H x W."""
        state: Tensor = self.stem(self.adapter(images))
        return state

    def as_map(self, state: Tensor) -> Tensor:
        """A state between stages as a map of features, N x C x h x w."""
        features: Tensor = self.to_map(state)
        return features

    @property
    def finish_states(self) -> tuple[int, ...]:
        """The states that :meth:`finish` takes: of each, before which stage it is."""
        return (len(self.stages),)

    def finish(self, states: Mapping[int, Tensor]) -> Finished:
        """From states, those of :attr:`finish_states` among them, to logits.

        Args:
            states: by stage number, the state before that stage; that of as many as there are
                stages is what the last one gave.
        """
        wanted = [states[number] for number in self.finish_states]
        return self.assembled(self.pool, self.classifier, wanted)

    @staticmethod
    def assembled(pool: nn.Module, classifier: nn.Module, states: Sequence[Tensor]) -> Finished:
        """What the head makes of the wanted states, in the order of :attr:`finish_states`."""
        pooled: Tensor = pool(states[-1])
        return Finished(classifier(pooled), pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes, of RGB images in [0, 1], float N x 3 x H x W."""
        return self.logits_and_pooled(images)[0]

    def logits_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, N x classes, and what the classifier sees, N x pooled_channels."""
        state = self.enter(images)
        kept = {0: state} if 0 in self.finish_states else {}
        for number, stage in enumerate(self.stages, start=1):
            state = stage(state)
            if number in self.finish_states:
                kept[number] = state
        return self.finish(kept)[:2]


class WholeNetwork(nn.Module):
    """A network that gives logits and cannot be taken apart.

    Args:
        adapter: takes RGB in [0, 1], float N x 3 x H x W.
        network: takes adapted images; gives logits, N x classes.
    """

    has_stages: ClassVar[bool] = False

    def __init__(self, adapter: InputAdapter, network: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter
        self.network = network
        self.spec: NetworkSpec | None = None
        self.head_only = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes, of RGB images in [0, 1], float N x 3 x H x W."""
        logits: Tensor = self.network(self.adapter(images))
        return logits


Network: TypeAlias = StagedNetwork | WholeNetwork


class Trunk(nn.Module):
    """The early part of a network: from images to the state after its first stages."""

    def __init__(self, network: StagedNetwork, stages: int) -> None:
        super().__init__()
        self.adapter = network.adapter
        self.stem = network.stem
        self.stages = nn.ModuleList(list(network.stages)[:stages])

    def forward(self, images: Tensor) -> Tensor:
        """The state after the trunk, of RGB images in [0, 1], float N x 3 x H x W."""
        state: Tensor = self.stem(self.adapter(images))
        for stage in self.stages:
            state = stage(state)
        return state


class Tail(nn.Module):
    """The late part of a network: from the state before some stage to logits."""

    def __init__(self, network: StagedNetwork, from_stage: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(list(network.stages)[from_stage:])
        self.pool = network.pool
        self.classifier = network.classifier
        self.has_pyramid = network.has_pyramid
        self._assembled = network.assembled
        # Counted from its own first stage: what comes before has a number below 0.
        self.finish_states = tuple(number - from_stage for number in network.finish_states)
        self.to_map = network.to_map
        self.stage_channels = network.stage_channels[from_stage:]
        self.pooled_channels = network.pooled_channels

    def as_map(self, state: Tensor) -> Tensor:
        """A state between stages as a map of features, N x C x h x w."""
        features: Tensor = self.to_map(state)
        return features

    def finish(self, states: Mapping[int, Tensor]) -> Finished:
        """See :meth:`StagedNetwork.finish`; stages are counted from the first one here."""
        wanted = [states[number] for number in self.finish_states]
        return self._assembled(self.pool, self.classifier, wanted)

    def forward(self, state: Tensor) -> Tensor:
        """Logits, N x classes, of the state before the first of these stages.

        Of a network whose head looks at that state and later ones alone.
        """
        states = {0: state}
        for number, stage in enumerate(self.stages, start=1):
            states[number] = state = stage(state)
        return self.finish(states).logits


def trunk(network: Network, stages: int) -> Trunk:
    """The first stages of ``network``; its own modules, not copies.

    Args:
        network: a staged network.
        stages: how many; negative: all but so many.

    Raises:
        ConfigError: the network has no stages, or not so many.
    """
    staged = require_stages(network)
    return Trunk(staged, split_point(staged, stages))


def tail(network: Network, from_stage: int) -> Tail:
    """``network`` from a stage on: its own modules, not copies; see :func:`trunk`.

    Args:
        network: a staged network.
        from_stage: the first stage of the tail; negative: counted from the end.
    """
    staged = require_stages(network)
    return Tail(staged, split_point(staged, from_stage))


def require_stages(network: nn.Module, where: str = "train") -> StagedNetwork:
    """``network``, known to have stages.

    Raises:
        ConfigError: it has none.
    """
    if isinstance(network, StagedNetwork):
        return network
    spec = getattr(network, "spec", None)
    name = f"'{spec.name}'" if spec is not None else type(network).__name__
    raise ConfigError(
        f"the network {name} has no stages",
        where=where,
        remedy="Choose one that has ('medkd networks' says which), or give your module the parts "
        "stem, stages, pool and classifier.",
    )


def split_point(network: StagedNetwork, stage: int, where: str = "train") -> int:
    """``stage`` counted from the front, between 0 and the number of stages less one.

    Raises:
        ConfigError: the network has no such stage.
    """
    count = len(network.stages)
    if not -count <= stage < count:
        raise ConfigError(
            f"there is no stage {stage}: the network has {count}",
            where=where,
            remedy=f"Name a stage from 0 to {count - 1}, or from -{count} to -1.",
        )
    return stage % count


def sequence(**modules: nn.Module) -> nn.Sequential:
    """A sequence of named modules."""
    return nn.Sequential(OrderedDict(modules))


def average_pool() -> nn.Sequential:
    """Mean over a map: N x C x h x w to N x C."""
    return sequence(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1))
