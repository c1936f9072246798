"""Any network of the user's, by the name package.module:NAME.

NAME is a class or a function that is called with ``classes`` and gives a ``torch.nn.Module``. The
module takes images, float N x 3 x H x W, and gives logits, N x classes. Images come normalised by
ImageNet's mean and standard deviation; the attributes ``input_mean`` and ``input_std`` (for RGB in
[0, 1]) change that, and ``input_px`` asks for images of one size.

A module that has the four attributes ``stem``, ``stages``, ``pool`` and ``classifier`` is taken as
staged: classifier(pool(stages[-1](... stages[0](stem(images))))) must be its logits. Where the
state between stages is no map N x C x h x w, it needs a method ``as_map`` that makes one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medkd.errors import ConfigError
from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InputAdapter,
    Network,
    StagedNetwork,
    WholeNetwork,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = ("stem", "stages", "pool", "classifier")
_TRIAL_PX = 224
_TRIAL_IMAGES = 2


class _AsMap(nn.Module):
    """A user's ``as_map``, without a hold on the module it is a method of.

    As a child the module would be registered, and its weights saved, a second time.
    """

    def __init__(self, as_map: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.as_map = as_map

    def forward(self, state: Tensor) -> Tensor:
        return self.as_map(state)


def build(spec: NetworkSpec) -> Network:
    """Build the network of a spec and try it on two images.

    Raises:
        ConfigError: it cannot be imported or called, or does not keep to the contract.
    """
    module = _call(spec)
    if isinstance(module, StagedNetwork | WholeNetwork):
        _try_whole(module, spec, module.adapter.input_px)
        return module
    input_px = getattr(module, "input_px", None)
    with _told(f"the attributes input_mean, input_std and input_px of '{spec.name}'"):
        adapter = InputAdapter(
            getattr(module, "input_mean", IMAGENET_MEAN),
            getattr(module, "input_std", IMAGENET_STD),
            input_px,
        )
    if not all(hasattr(module, part) for part in _PARTS):
        network = WholeNetwork(adapter, module)
        _try_whole(network, spec, input_px)
        return network
    staged = _staged(module, adapter, spec)
    if type(module).forward is not nn.Module.forward:
        _compare(staged, module, spec)
    return staged


def _call(spec: NetworkSpec) -> nn.Module:
    path, _, name = spec.name.partition(":")
    try:
        found: Any = importlib.import_module(path)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"'{path}' cannot be imported ({error})",
            remedy="Write it as package.module:NAME, and put the folder of the package on "
            "PYTHONPATH or install it.",
        ) from error
    except AttributeError:
        raise ConfigError(
            f"the module '{path}' has no '{name}'", remedy="Name a class or function of it."
        ) from None
    if not callable(found):
        raise ConfigError(
            f"'{spec.name}' cannot be called", remedy="Name a class, or a function that builds one."
        )
    with _told(f"'{spec.name}', called with classes={spec.classes},"):
        module = found(classes=spec.classes)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"'{spec.name}' gives a {type(module).__name__}",
            remedy="It must give a torch.nn.Module.",
        )
    return module


@contextmanager
def _told(subject: str) -> Iterator[None]:
    """Whatever a user's code raises becomes an error that says which part of it failed."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{subject} failed with {type(error).__name__}: {str(error)[:300]}",
            remedy="See docs/networks.md for what is asked of a network; 'medkd --debug' shows "
            "the traceback.",
        ) from error


@torch.no_grad()
def _try_whole(network: Network, spec: NetworkSpec, input_px: int | None) -> None:
    network.eval()
    images = _trial(input_px)
    with _told(f"'{spec.name}' on images of {_shape(images)}"):
        logits = network(images)
    network.train()
    _check_logits(logits, spec)


@torch.no_grad()
def _staged(module: Any, adapter: InputAdapter, spec: NetworkSpec) -> StagedNetwork:
    """Walk through the parts, checking each; the channels after each are counted on the way."""
    stages = module.stages
    if not isinstance(stages, nn.ModuleList | nn.Sequential) or len(stages) == 0:
        raise ConfigError(
            f"the 'stages' of '{spec.name}' are no list of modules",
            remedy="Make it a torch.nn.ModuleList of one stage at least.",
        )
    for part in ("stem", "pool", "classifier"):
        if not isinstance(getattr(module, part), nn.Module):
            raise ConfigError(
                f"the '{part}' of '{spec.name}' is no module",
                remedy="Make it a torch.nn.Module, such as torch.nn.Identity().",
            )
    to_map = _AsMap(module.as_map) if hasattr(module, "as_map") else nn.Identity()
    module.eval()
    images = _trial(adapter.input_px)
    with _told(f"the 'stem' of '{spec.name}' on images of {_shape(images)}"):
        state = module.stem(adapter(images))
    channels = []
    for index, stage in enumerate(stages):
        with _told(f"stage {index} of '{spec.name}' on a state of {_shape(state)}"):
            state = stage(state)
        with _told(f"'as_map' of '{spec.name}' on a state of {_shape(state)}"):
            features = to_map(state)
        _check_shape(features, (_TRIAL_IMAGES, None, None, None), f"stage {index}", spec)
        channels.append(features.shape[1])
    with _told(f"the 'pool' of '{spec.name}' on a state of {_shape(state)}"):
        pooled = module.pool(state)
    _check_shape(pooled, (_TRIAL_IMAGES, None), "the 'pool'", spec)
    with _told(f"the 'classifier' of '{spec.name}' on {_shape(pooled)}"):
        logits = module.classifier(pooled)
    _check_logits(logits, spec)
    module.train()
    return StagedNetwork(
        adapter=adapter,
        stem=module.stem,
        stages=stages,
        pool=module.pool,
        classifier=module.classifier,
        stage_channels=channels,
        pooled_channels=pooled.shape[1],
        to_map=to_map,
    )


@torch.no_grad()
def _compare(staged: StagedNetwork, module: nn.Module, spec: NetworkSpec) -> None:
    """A module's own forward, where it has one, must say what its parts say."""
    module.eval()
    images = _trial(staged.adapter.input_px)
    with _told(f"'{spec.name}' on images of {_shape(images)}"):
        own = module(staged.adapter(images))
    same = isinstance(own, Tensor) and torch.allclose(own, staged(images), rtol=1e-3, atol=1e-4)
    module.train()
    if not same:
        raise ConfigError(
            f"the forward of '{spec.name}' gives other logits than its parts",
            remedy="classifier(pool(stages(stem(images)))) must be the whole network; or rename "
            "one of the four parts, to have it taken as a network without stages.",
        )


def _trial(input_px: int | None) -> Tensor:
    side = input_px or _TRIAL_PX
    # A generator of its own: the draws of the experiment stay what they were.
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_TRIAL_IMAGES, 3, side, side, generator=generator)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return " x ".join(map(str, value.shape)) or "a scalar"
    return f"a {type(value).__name__}"


def _check_logits(logits: object, spec: NetworkSpec) -> None:
    _check_shape(logits, (_TRIAL_IMAGES, spec.classes), "its logits", spec)


def _check_shape(
    value: object, expected: tuple[int | None, ...], subject: str, spec: NetworkSpec
) -> None:
    fits = (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == len(expected)
        and all(e is None or e == v for e, v in zip(expected, value.shape, strict=True))
    )
    if fits:
        return
    letters = iter("NCHW"[-len(expected) :] if len(expected) == 4 else "NC")
    wanted = " x ".join(
        letter if e is None else str(e) for letter, e in zip(letters, expected, strict=False)
    )
    raise ConfigError(
        f"{subject} of '{spec.name}' has the shape {_shape(value)}, not {wanted}",
        remedy=f"For {_TRIAL_IMAGES} images it must be a float tensor of that shape; see "
        "docs/networks.md.",
    )
