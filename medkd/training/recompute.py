"""Activation checkpointing: a stage keeps its input only, and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medkd.distill.cohort import Cohort
from medkd.networks.staged import StagedNetwork, Tail


def recompute_stages(cohort: Cohort) -> None:
    """Let every stage of every trained network be run again instead of remembered.

    Gradients and buffers stay what they were, bit for bit: what is drawn at random is drawn again
    the same, and batch norm counts the first run only.
    """
    # Networks may share stages.
    stages = {
        id(stage): stage
        for node in cohort.nodes.values()
        if isinstance(node, StagedNetwork | Tail)
        for stage in node.stages
    }
    for stage in stages.values():
        if any(parameter.requires_grad for parameter in stage.parameters()):
            stage.forward = partial(_recomputed, stage, stage.forward)


def _recomputed(stage: nn.Module, forward: Any, state: Tensor) -> Tensor:
    if not (stage.training and torch.is_grad_enabled()):
        return forward(state)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(stage)

    return checkpoint(forward, state, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    norms = [
        module
        for module in stage.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    # In training batch norm normalises by the batch; these just say that it counts it, too.
    counting = [norm for norm in norms if norm.training]
    for norm in counting:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in counting:
            norm.track_running_stats = True
