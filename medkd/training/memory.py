"""Running out of memory in a step: what would fit."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from medkd.errors import TrainingError
from medkd.training.engine import Engine

# How torch and what it calls tell it, beside OutOfMemoryError; the last one is oneDNN's, whose
# convolutions want memory of their own.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "not enough memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how a lack of memory is told."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def out_of_memory(engine: Engine, images: Tensor, labels: Tensor) -> TrainingError:
    """What to tell after a step that did not fit; tries smaller forwards on its tiles.

    Call it when nothing holds the failed step's tensors any more, the exception least of all. The
    engine is of no use afterwards.

    Args:
        engine: see there.
        images: of the step, on the device.
        labels: of these.
    """
    tiles, config = len(labels), engine.config
    per_forward = -(-tiles // config.accumulate)
    what = f"{per_forward} tiles in a forward do not fit into the memory of {engine.fabric.device}"
    remedy = f"Set train.accumulate to {2 * config.accumulate}: the same step in smaller forwards."
    # Several processes would have to try together, and the others do not know.
    if engine.ranks.count == 1:
        fitting = _fitting(engine, images, labels)
        if fitting is None:
            remedy = "Not even one does: choose smaller networks or train.precision bf16-mixed."
        else:
            forwards = tiles // fitting
            remedy = (
                f"{fitting} fit: set train.accumulate to {forwards} (the same step in {forwards} "
                f"forwards; the run goes on where it was saved), or train.batch_size to {fitting}."
            )
    if not config.recompute:
        remedy += " train.recompute makes a forward smaller, too, at the price of time."
    return TrainingError(what, where="train.batch_size", remedy=remedy)


def _fitting(engine: Engine, images: Tensor, labels: Tensor) -> int | None:
    """The most tiles of a forward that fit, of those that divide the step evenly."""
    tiles = len(labels)
    largest = tiles // engine.config.accumulate
    for size in range(largest // 2, 0, -1):
        if tiles % size:
            continue
        engine.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        several_views = images.ndim == 5
        part = images[:, :size] if several_views else images[:size]
        try:
            for _ in range(2):  # the second one with the gradients of the first at hand
                outputs = engine.forward(part, labels[:size])
                engine.fabric.backward(torch.stack(list(outputs.terms.values())).sum())
                del outputs
            engine.optimizer.step()  # its state takes memory, too
        except (RuntimeError, MemoryError):
            continue  # where memory is known to be short, every failure is for want of it
        return size
    return None
