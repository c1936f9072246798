"""Where a training runs: one device, or several processes with a device each."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, distributed

from medkd.config import TrainConfig
from medkd.errors import TrainingError

T = TypeVar("T")

# A process that died is noticed by who started it, at once. This is for one that hangs.
_LONGEST_SILENCE = timedelta(minutes=30)
_SECONDS_BEFORE_TELLING = 15


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and what they agree on through the CPU.

    Attributes:
        rank: of this process, from 0.
        count: how many there are.
        group: of all of them on the CPU, where there are several: agreeing waits for no device.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def largest(self, values: Iterable[int]) -> list[int]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return list(values)
        agreed = torch.tensor(list(values))
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=self.group)
        return agreed.tolist()

    def gathered(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks, on every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier(group=self.group)


def launched_by() -> int | None:
    """How many processes this one was started among by torchrun, or by 'medkd train'."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def make_fabric(config: TrainConfig) -> tuple[Fabric, Ranks]:
    """Set up the configured device, precision and processes.

    Raises:
        TrainingError: what is asked for is not here.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "no CUDA device is here",
            where="train.device",
            remedy="Set it to auto or cpu; 'medkd doctor' shows what torch finds.",
        )
    accelerator = _accelerator(config)
    if accelerator == "cpu" and config.precision == "16-mixed":
        raise TrainingError(
            "16-mixed needs a GPU",
            where="train.precision",
            remedy="Set it to bf16-mixed or 32-true.",
        )
    processes = launched_by() or 1
    if config.devices not in (1, processes) or (config.devices == 1 and processes > 1):
        raise TrainingError(
            f"is {config.devices}, and {processes} process{'es' * (processes > 1)} were started",
            where="train.devices",
            remedy="Let 'medkd train' start them, or give torchrun the same number.",
        )
    if processes == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=config.precision), Ranks()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if accelerator == "cuda" and torch.cuda.device_count() < local:
        raise TrainingError(
            f"is {config.devices}, and {torch.cuda.device_count()} CUDA devices are here",
            where="train.devices",
            remedy="Lower it, or set train.device to cpu.",
        )
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=processes // local,
        precision=config.precision,
        strategy=DDPStrategy(timeout=_LONGEST_SILENCE, gradient_as_bucket_view=True),
    )
    fabric.launch()
    group = distributed.new_group(backend="gloo", timeout=_LONGEST_SILENCE)
    return fabric, Ranks(fabric.global_rank, fabric.world_size, group)


@contextmanager
def peers_expected(ranks: Ranks) -> Iterator[None]:
    """Turn what is raised when another process is gone into one line.

    Raises:
        TrainingError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
        if ranks.count == 1 or not lost:
            raise
        # Whoever started the processes tells of the one that failed, and ends this one. If this one
        # were quicker, it would be told of instead.
        time.sleep(_SECONDS_BEFORE_TELLING)
        raise TrainingError(
            f"process {ranks.rank} of {ranks.count} lost another one",
            where="train.devices",
            remedy="The same command goes on from the last saved state, on any number of devices.",
        ) from error


def same_buffers(module: torch.nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's buffers: each gathers batch norm's statistics alone."""
    if ranks.count > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def mean_over_ranks(values: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The mean of each value over all processes; they hold the same names."""
    if ranks.count == 1 or not values:
        return values
    names = sorted(values)
    together = torch.stack([values[name].double() for name in names])
    distributed.all_reduce(together)
    return dict(zip(names, (together / ranks.count).unbind(), strict=True))


def _accelerator(config: TrainConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
