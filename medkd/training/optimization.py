"""The optimizer of a cohort: named groups of parameters, learning rates, clipping."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medkd.config import TrainConfig
from medkd.distill.cohort import Cohort


def parameter_groups(
    cohort: Cohort, config: TrainConfig, learning_rates: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Two named groups per node: weights decay, biases and norms do not.

    Args:
        cohort: see there.
        config: of the run.
        learning_rates: peak learning rate by the owner of the parameters, where it is another than
            ``config.learning_rate``.
    """
    groups: list[dict[str, object]] = []
    for name, parameters in cohort.parameters_by_node().items():
        rate = (learning_rates or {}).get(name, config.learning_rate)
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        for kind, chosen, decay in (
            ("decay", decayed, config.weight_decay),
            ("no_decay", others, 0.0),
        ):
            if chosen:
                groups.append(
                    {
                        "name": f"{name}/{kind}",
                        "params": chosen,
                        "lr": rate,
                        "weight_decay": decay,
                    }
                )
    return groups


def make_optimizer(groups: Iterable[dict[str, object]], config: TrainConfig) -> Optimizer:
    """The configured optimizer of these groups, in torch's fused form."""
    made = list(groups)
    if config.optimizer == "sgd":
        return torch.optim.SGD(made, lr=config.learning_rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(made, lr=config.learning_rate, fused=True)


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """What the peak learning rate is multiplied by at each step, from 0."""
    total = steps_per_epoch * config.epochs
    warmup = max(round(steps_per_epoch * config.warmup_epochs), 1)
    drops = [steps_per_epoch * epoch for epoch in sorted(config.drop_epochs)]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
        if config.schedule == "step":
            return config.drop_factor ** bisect_right(drops, step)
        return 1.0

    return factor


def make_schedule(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """The configured course of every group's learning rate, told after each step."""
    return LambdaLR(optimizer, learning_rate_factor(config, steps_per_epoch))


@torch.no_grad()
def clip_by_node(parameters: Mapping[str, Iterable[nn.Parameter]], max_norm: float) -> None:
    """Shorten each node's gradient to ``max_norm`` where it is longer.

    Each node by itself: a network with large gradients must not slow its peers down. Nothing waits
    for the device.
    """
    for owned in parameters.values():
        gradients: list[Tensor] = [p.grad for p in owned if p.grad is not None]
        if gradients:
            norm = nn.utils.get_total_norm(gradients)
            nn.utils.clip_grads_with_norm_([p for p in owned if p.grad is not None], max_norm, norm)


@torch.no_grad()
def drop_broken_gradients(
    parameters: Mapping[str, Iterable[nn.Parameter]],
) -> dict[str, Tensor]:
    """Set every node's gradient to zero where it is not finite; tells by node where it was.

    A loss can be finite and its gradient not. Nothing waits for the device.
    """
    found = {}
    for name, owned in parameters.items():
        gradients: list[Tensor] = [p.grad for p in owned if p.grad is not None]
        if gradients:
            found[name] = nn.utils.get_total_norm(gradients).isfinite()
            for gradient in gradients:
                gradient.masked_fill_(~found[name], 0)  # a product with zero would keep NaN
    return found
