"""Processes that load tiles, and what is told when one dies or a tile cannot be read."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate
from torch.utils.data._utils import signal_handling

from medkd.errors import MedkdError, TrainingError

# So long a dying process may take to be seen dead: what it sent may be found broken before.
_DYING_S = 2.0
# So long a process loads on after SIGTERM.
_GRACE_S = 10

# Forked processes share the cache of decoded tiles; others would each be sent a copy. Nothing that
# is open is shared: stores and slides are opened anew in each process, and torch keeps to one
# thread there.
_CONTEXT = "fork" if sys.platform == "linux" else None

_GO_ON = "Then start the same command again; a training goes on from its last checkpoint."


class Order(Sized, Iterable[Any], Protocol):
    """Items of a dataset in the order in which they are wanted."""


class Images(Sized, Protocol):
    """A dataset whose items are dictionaries of tensors."""

    def __getitem__(self, draw: Any) -> Any:
        """The item of an index, or of (epoch, index)."""


class TileLoader:
    """Loads batches of a dataset, in processes that stay from one epoch to the next.

    A process keeps the stores or slides open that it read from last.

    Args:
        dataset: of the tiles.
        workers: processes beside this one; 0: none.
        pin_memory: for the way to a CUDA device.
    """

    def __init__(self, dataset: Images, *, workers: int, pin_memory: bool) -> None:
        self._order = _Replaceable()
        self._processes: list[BaseProcess] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Telling(dataset),
            batch_sampler=self._order,
            collate_fn=_collated,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            multiprocessing_context=_CONTEXT if workers else None,
            worker_init_fn=_begin if workers else None,
        )

    def load(self, batches: Iterable[list[Any]]) -> Iterator[dict[str, Tensor]]:
        """Load these batches of items; one epoch at a time.

        Raises:
            TrainingError: a tile cannot be read, or a process that loads tiles is gone.
        """
        self._order.batches = batches
        try:
            for batch in self._begun():
                if isinstance(batch, MedkdError):
                    raise TrainingError(
                        batch.what, where=batch.where, remedy=f"{batch.remedy} {_GO_ON}"
                    )
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            # torch's words differ with the moment: who is gone says what it was.
            ended = wait([process.sentinel for process in self._processes], _DYING_S)
            lost = [process for process in self._processes if process.sentinel in ended]
            if not lost:
                raise
            raise self._gone(lost) from error

    def _begun(self) -> Iterator[Any]:
        before = set(multiprocessing.active_children())
        with _own_child_signal():
            loaded = iter(self._loader)
        started = set(multiprocessing.active_children()) - before
        self._processes += sorted(started, key=lambda process: process.pid or 0)
        return loaded

    def _gone(self, lost: list[BaseProcess]) -> TrainingError:
        for process in lost:
            process.join()  # its end of the sentinel closes before its exit code can be read
        for process in self._processes:
            process.kill()
            process.join()
        told = ", ".join(f"{process.pid}{_manner(process.exitcode)}" for process in lost)
        remedy = (
            "Mostly that is the system, short of memory: lower train.loader_workers, "
            "train.cache_mb or train.batch_size."
        )
        if any(process.exitcode == -signal.SIGBUS for process in lost):
            remedy = (
                "Shared memory (/dev/shm) is full: give the machine or container more of it, or "
                "lower train.loader_workers or train.batch_size."
            )
        return TrainingError(
            f"a process that loads tiles is gone ({told})",
            where="train.loader_workers",
            remedy=f"{remedy} {_GO_ON}",
        )


@dataclass(frozen=True)
class Batches:
    """Batches of one epoch, loaded anew each time that they are gone through.

    Attributes:
        loader: brings them.
        order: items of its dataset.
        size: items of a batch; the last one may have fewer.
    """

    loader: TileLoader
    order: Order | Sequence[Any]
    size: int

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Load them; see :meth:`TileLoader.load`."""
        return self.loader.load(self._sampler)

    @property
    def _sampler(self) -> BatchSampler:
        return BatchSampler(self.order, self.size, drop_last=False)


class _Replaceable:
    """The batches that torch asks for, whatever they are at present."""

    def __init__(self) -> None:
        self.batches: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)


class _Telling(Dataset[Any]):
    """Items of a dataset; an error comes as a value, as torch would hand on its text alone."""

    def __init__(self, dataset: Images) -> None:
        self._dataset = dataset

    def __getitems__(self, wanted: list[Any]) -> list[Any] | MedkdError:
        try:
            return [self._dataset[item] for item in wanted]
        except MedkdError as error:
            return error


def _collated(items: list[Any] | MedkdError) -> Any:
    return items if isinstance(items, MedkdError) else default_collate(items)


def _begin(_: int) -> None:
    """Signals to all processes of a terminal or job are for the training, which stops cleanly.

    It may wait for a batch at that moment, so this process ends a little later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


@contextmanager
def _own_child_signal() -> Iterator[None]:
    """Keep torch from raising, when a process dies, in whatever line is being run.

    It finds out as well, within seconds, when it waits for that process's next batch.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) == signal_handling.__name__:
        before = signal.SIG_DFL  # torch's, of another loader in this process
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _manner(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f", status {exit_code}"
    return f", {signal.Signals(-exit_code).name}"


def pins_memory(device: str) -> bool:
    """Whether tiles go to a CUDA device, where ``train.device`` is ``device``."""
    return device != "cpu" and torch.cuda.is_available()
