"""Activation checkpointing: a stage keeps its input only, and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medkd.distill.cohort import Cohort
from medkd.networks.staged import StagedNetwork, Tail

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def recompute_stages(cohort: Cohort) -> None:
    """Let the stem and every stage of trained networks be run again instead of remembered.

    Gradients and buffers stay what they were, bit for bit: what is drawn at random is drawn again
    the same, and batch norm counts the first run only.
    """
    done: set[int] = set()
    for node in cohort.nodes.values():
        if not isinstance(node, StagedNetwork | Tail):
            continue
        if isinstance(node, StagedNetwork):
            node.enter = partial(_recomputed, node.stem, node.enter)  # type: ignore[method-assign]
        for stage in node.stages:
            if id(stage) not in done:  # networks may share stages
                stage.forward = partial(_recomputed, stage, stage.forward)
                done.add(id(stage))


def _recomputed(module: nn.Module, forward: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    is_trained = any(parameter.requires_grad for parameter in module.parameters())
    if not (is_trained and module.training and torch.is_grad_enabled()):
        return forward(state)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(module)

    return checkpoint(forward, state, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within, batch norm writes its statistics to copies."""
    own = [
        (norm, name, norm._buffers[name])
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        for name in _STATISTICS
    ]
    for norm, name, buffer in own:
        norm._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for norm, name, buffer in own:
            norm._buffers[name] = buffer
