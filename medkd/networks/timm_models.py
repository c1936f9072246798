"""Any network of timm, by the name timm:NAME; an extra, as timm needs torchvision.

A foundation model as a frozen teacher is named in the same way: timm:hf-hub:OWNER/MODEL, with
pretrained weights. timm gives it a new last layer for the classes of the experiment.
"""

from __future__ import annotations

import difflib
from itertools import pairwise
from typing import Any

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
    sequence,
)
from medkd.networks.vit import TokensToMap

PREFIX = "timm:"
OPTIONS = frozenset({"pretrained"})
_STAGES = 4


class PooledNetwork(WholeNetwork):
    """A network of timm that cannot be taken apart, but for its head.

    Args:
        adapter: takes RGB in [0, 1], float N x 3 x H x W.
        network: has timm's ``forward_features``, ``forward_head`` and ``get_classifier``.
    """

    def __init__(self, adapter: InputAdapter, network: Any) -> None:
        super().__init__(adapter, network)
        # Some heads widen what the layers give before they classify it.
        self.pooled_channels = int(
            getattr(network, "head_hidden_size", None) or network.num_features
        )

    @property
    def classifier(self) -> nn.Module:
        """The last layer."""
        network: Any = self.network
        classifier: nn.Module = network.get_classifier()
        return classifier

    @property
    def classes(self) -> int:
        """Number of logits."""
        network: Any = self.network
        return int(network.num_classes)

    def logits_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and what the classifier sees, N x pooled_channels.

        The layers run once and the head twice: not every head of timm is its pooled features and
        then its classifier.

        Args:
            images: RGB in [0, 1], float N x 3 x H x W.
        """
        network: Any = self.network
        features = network.forward_features(self.adapter(images))
        return network.forward_head(features), network.forward_head(features, pre_logits=True)


class _Tokens(nn.Module):
    """What is left of a vision transformer without layers, norm and head: images to tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        tokens: Tensor = model.forward_features(images)
        return tokens


class _PoolTokens(nn.Module):
    """The class token, or the mean over the patches: N x tokens x C to N x C."""

    def __init__(self, kind: str, prefix: int) -> None:
        super().__init__()
        self.kind = kind
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.kind == "token" else tokens[:, self.prefix :].mean(1)


def build(spec: NetworkSpec) -> Network:
    """Build the network of a spec: in stages if it is a plain vision transformer, else whole.

    Raises:
        ConfigError: timm is not installed, knows no such network, or cannot get its weights.
    """
    model = _create(spec)
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    size = tuple(cfg.get("input_size") or ())
    fixed = bool(cfg.get("fixed_input_size")) or hasattr(model, "patch_embed")
    adapter = InputAdapter(
        tuple(cfg.get("mean") or IMAGENET_MEAN),
        tuple(cfg.get("std") or IMAGENET_STD),
        int(size[-1]) if size and fixed else None,
    )
    if _is_plain_transformer(model):
        return _staged_transformer(model, adapter)
    return PooledNetwork(adapter, model)


def _create(spec: NetworkSpec) -> Any:
    name = spec.name.removeprefix(PREFIX)
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"'{spec.name}' needs timm, which cannot be imported ({error})",
            remedy="Install it: pip install 'medkd[timm]'.",
        ) from None
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"Did you mean '{PREFIX}{close[0]}'?" if close else "timm.list_models() lists them."
        raise ConfigError(f"timm knows no network '{name}'", remedy=hint)
    try:
        return timm.create_model(name, pretrained=spec.pretrained, num_classes=spec.classes)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"timm cannot make '{name}': {type(error).__name__}: {str(error)[:300]}",
            remedy="Check the name, and that this machine may fetch the weights.",
        ) from error


def _is_plain_transformer(model: Any) -> bool:
    blocks = getattr(model, "blocks", None)
    return (
        isinstance(blocks, nn.Sequential)
        and len(blocks) >= _STAGES
        and hasattr(model, "patch_embed")
        and hasattr(model, "embed_dim")
        and isinstance(getattr(model, "norm", None), nn.Module)
        and isinstance(getattr(model, "head", None), nn.Linear)
        and getattr(model, "global_pool", None) in ("token", "avg")
        and getattr(model, "attn_pool", None) is None
    )


def _staged_transformer(model: Any, adapter: InputAdapter) -> StagedNetwork:
    blocks = list(model.blocks)
    bounds = [round(i * len(blocks) / _STAGES) for i in range(_STAGES + 1)]
    prefix, hidden = int(getattr(model, "num_prefix_tokens", 1)), int(model.embed_dim)
    pool = sequence(
        norm=model.norm,
        tokens=_PoolTokens(model.global_pool, prefix),
        fc_norm=getattr(model, "fc_norm", None) or nn.Identity(),
    )
    head = model.head
    dropout = getattr(model, "head_drop", None) or nn.Identity()
    # What the stages, the pool and the classifier now hold must not be run by the stem as well.
    model.blocks = model.norm = nn.Identity()
    model.head = model.fc_norm = model.head_drop = nn.Identity()
    return StagedNetwork(
        adapter=adapter,
        stem=_Tokens(model),
        stages=[nn.Sequential(*blocks[a:b]) for a, b in pairwise(bounds)],
        pool=pool,
        classifier=sequence(dropout=dropout, linear=head),
        stage_channels=(hidden,) * _STAGES,
        pooled_channels=int(head.in_features),
        to_map=TokensToMap(prefix),
    )
