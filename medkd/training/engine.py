"""What trains a cohort, set up for its device: precision, compilation, optimizer, averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medkd.config import TrainConfig
from medkd.distill.cohort import Cohort
from medkd.errors import TrainingError
from medkd.networks.staged import StagedNetwork, Tail
from medkd.training.devices import Ranks
from medkd.training.ema import MovingAverage
from medkd.training.optimization import make_optimizer, make_schedule, parameter_groups
from medkd.training.recompute import recompute_stages

# Every stage, in training and in evaluation, is a variant of torch's one compiled function.
_COMPILED_VARIANTS = 512


@dataclass
class Engine:
    """What a step needs.

    Attributes:
        fabric: moves, casts, and goes backward.
        cohort: the networks.
        forward: the cohort as it is called in training: compiled, over all processes, in the
            chosen precision.
        optimizer: of every parameter that is trained.
        schedule: of its learning rates.
        config: of the run.
        seed: what networks draw at random (dropout) depends on it, the step and the process alone.
        ranks: the processes.
        average: of the weights; None: they ship themselves.
        parameters: those that are trained, by the node that owns them.
    """

    fabric: Fabric
    cohort: Cohort
    forward: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    config: TrainConfig
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    average: MovingAverage | None = None
    parameters: dict[str, list[nn.Parameter]] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = self.cohort.parameters_by_node()

    @property
    def shown(self) -> Cohort:
        """The cohort that is validated and ships."""
        return self.cohort if self.average is None else self.average.cohort

    def state(self) -> dict[str, Any]:
        """Everything that a resume needs of it."""
        state = {
            "cohort": self.cohort.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.cohort.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.cohort.load_state_dict(state["cohort"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.average is not None:
            self.average.cohort.load_state_dict(state["average"])


def set_up(
    cohort: Cohort,
    config: TrainConfig,
    steps_per_epoch: int,
    fabric: Fabric,
    *,
    ranks: Ranks | None = None,
    seed: int = 0,
    learning_rates: Mapping[str, float] | None = None,
) -> Engine:
    """Move the cohort to the device and make all that trains it there.

    Args:
        cohort: see there.
        config: of the run.
        steps_per_epoch: for the schedule.
        fabric: of :func:`medkd.training.devices.make_fabric`.
        ranks: from there, too; None: one process.
        seed: of the experiment.
        learning_rates: see :func:`medkd.training.optimization.parameter_groups`.

    Raises:
        TrainingError: settings that the method cannot be trained with.
    """
    ranks = ranks or Ranks()
    if cohort.graph.update == "alternating" and config.accumulate * ranks.count > 1:
        raise TrainingError(
            f"the method '{cohort.graph.method}' updates its networks one after another, with all "
            "tiles of a step at once",
            where="train.accumulate" if config.accumulate > 1 else "train.devices",
            remedy="Set it to 1, or choose a method that updates them together.",
        )
    if config.channels_last:
        cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fabric.to_device(cohort)
    average = MovingAverage(cohort, config.ema_decay) if config.ema_decay is not None else None
    if config.recompute:
        recompute_stages(cohort)
    optimizer = make_optimizer(parameter_groups(cohort, config, learning_rates), config)
    forward, wrapped = fabric.setup(_compiled(cohort, config), optimizer)
    schedule = make_schedule(optimizer, config, steps_per_epoch)
    return Engine(fabric, cohort, forward, wrapped, schedule, config, seed, ranks, average)


def _compiled(cohort: Cohort, config: TrainConfig) -> nn.Module:
    """The cohort as training calls it."""
    mode = "reduce-overhead" if config.cuda_graphs else "default"
    if config.compile == "joint":
        return torch.compile(cohort, mode=mode)  # type: ignore[return-value]
    if config.compile == "networks":
        torch._dynamo.config.recompile_limit = _COMPILED_VARIANTS
        for network in (*cohort.nodes.values(), *cohort.averages.networks.values()):
            if isinstance(network, StagedNetwork | Tail):
                for stage in network.stages:
                    stage.compile(mode=mode)
            else:
                network.compile(mode=mode)
    return cohort
