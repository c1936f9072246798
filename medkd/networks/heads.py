"""Networks of which the head alone is trained: a linear probe on a backbone that stays as it is."""

from __future__ import annotations

from torch import nn

from medkd.errors import ConfigError
from medkd.networks.staged import StagedNetwork, WholeNetwork
from medkd.networks.timm_models import PooledNetwork


def train_head_only(network: nn.Module, where: str) -> None:
    """Mark a network: whoever trains it is to train its classifier and nothing else.

    Args:
        network: of :func:`medkd.networks.zoo.build_network`.
        where: the key of the configuration that errors tell of.

    Raises:
        ConfigError: it is not known which part of it is the classifier.
    """
    assert isinstance(network, StagedNetwork | WholeNetwork)
    network.head_only = True
    head = _head_of(network)
    if head is None or not any(True for _ in head.parameters()):
        name = f"'{network.spec.name}'" if network.spec is not None else type(network).__name__
        raise ConfigError(
            f"the network {name} has no classifier that could be trained alone",
            where=where,
            remedy="Leave 'train_only' out, or give your module the parts stem, stages, pool and "
            "classifier.",
        )


def is_head_only(network: nn.Module) -> bool:
    """Whether the network was marked by :func:`train_head_only`."""
    return isinstance(network, StagedNetwork | WholeNetwork) and network.head_only


def freeze_backbone(network: nn.Module) -> None:
    """Let gradients reach the head alone, if the network is marked."""
    if is_head_only(network):
        head = _head_of(network)
        assert head is not None
        network.requires_grad_(False)
        head.requires_grad_(True)


def hold_backbone(network: nn.Module) -> None:
    """All but the head to evaluation mode, if the network is marked.

    Batch norm in training mode would go on collecting statistics, and dropout would go on dropping.
    """
    if is_head_only(network):
        head = _head_of(network)
        assert head is not None
        kept = set(head.modules())
        # Looked at first: a compiled forward must not be told anew what it knows.
        if any(part.training for part in network.modules() if part not in kept):
            training = head.training
            network.eval()
            head.train(training)


def _head_of(network: nn.Module) -> nn.Module | None:
    if isinstance(network, StagedNetwork | PooledNetwork):
        head = network.classifier
        return head if isinstance(head, nn.Module) else None
    return None
