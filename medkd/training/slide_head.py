"""Training a slide head on the embeddings of patients' tiles.

Patients of the test role are never passed: a head is fitted to training patients, and the epoch
that is kept is chosen on validation patients.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from medkd.config.slide_level import HeadArchitecture, SlideHeadConfig
from medkd.datasets.bags import collate_bags
from medkd.datasets.embedding_bags import EmbeddingBags
from medkd.datasets.patches import EpochSampler
from medkd.errors import MedkdError, StageError, TooFewPatientsError, TrainingError
from medkd.networks.mil import SlideHead

FEWEST_OF_A_CLASS = 2


@dataclass(frozen=True)
class HeadEpoch:
    """Log losses in nats in which both classes count alike; chance is ln 2.

    Attributes:
        training: mean over the epoch's batches, with what was dropped in them.
        validation: after the epoch, of whole bags.
    """

    training: float
    validation: float


@dataclass(frozen=True)
class TrainedSlideHead:
    """A head as it was after its best epoch, in evaluation mode.

    Attributes:
        head: on the CPU.
        best_epoch: from 0, that with the least validation loss, the first of equal ones.
        epochs: all that were trained.
    """

    head: SlideHead
    best_epoch: int
    epochs: tuple[HeadEpoch, ...]


def train_slide_head(
    training: EmbeddingBags,
    validation: EmbeddingBags,
    architecture: HeadArchitecture,
    config: SlideHeadConfig,
    *,
    positive: int = 1,
    seed: int,
    loader_workers: int = 0,
    on_epoch: Callable[[HeadEpoch], None] | None = None,
) -> TrainedSlideHead:
    """Train a head on the CPU. The result is a function of its arguments but for the workers.

    A bag is a patient, with the tiles of all slides. Give ``training`` some hundred ``max_tiles``:
    each epoch then sees other tiles of a patient, which keeps a head from learning single tiles
    by heart. ``validation`` should have all tiles.

    Args:
        training: bags of training patients.
        validation: bags of validation patients.
        architecture: how tiles are weighed, see :class:`medkd.networks.mil.SlideHead`.
        config: its size and its training.
        positive: number of the positive class in ``labels``.
        seed: of the weights, the order of patients and the dropout. Tiles are drawn by the seed
            of ``training``.
        loader_workers: processes beside this one that read bags.
        on_epoch: told of every epoch.

    Raises:
        TooFewPatientsError: fewer than two patients of a class in either role.
        StageError: a patient in both, or embeddings of different lengths or that are not finite.
        TrainingError: the loss is no longer finite.
        ConfigError: a head that cannot be made, see :class:`medkd.networks.mil.SlideHead`.
    """
    is_positive = {role: bags.labels == positive for role, bags in _roles(training, validation)}
    _check(training, validation, is_positive)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SlideHead(
            architecture,
            _dimension(training),
            hidden=config.hidden,
            dropout=config.dropout,
        )
        head.standardise(*_spread(training))
        optimizer = _optimizer(head, config)
        weights = {role: _class_weights(labels) for role, labels in is_positive.items()}
        best, best_epoch, epochs = copy.deepcopy(head.state_dict()), -1, list[HeadEpoch]()
        with _loader(training, config.batch_bags, seed, loader_workers) as load:
            for epoch in range(config.epochs):
                total = 0.0
                head.train()
                for batch in load(epoch):
                    logits, *_ = head(batch["embedding"], batch["mask"])
                    loss = _weighted_losses(
                        logits, batch["label"] == positive, weights["training"]
                    ).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(logits)
                done = HeadEpoch(
                    total / len(training),
                    _validation_loss(head, validation, positive, weights["validation"]),
                )
                if not math.isfinite(done.training + done.validation):
                    raise TrainingError(
                        f"the loss of epoch {epoch} is not finite",
                        where=f"slide head '{architecture}'",
                        remedy="Lower its learning_rate.",
                    )
                epochs.append(done)
                if on_epoch is not None:
                    on_epoch(done)
                if best_epoch < 0 or done.validation < epochs[best_epoch].validation:
                    best, best_epoch = copy.deepcopy(head.state_dict()), epoch
                elif epoch - best_epoch >= config.patience:
                    break
    head.load_state_dict(best)
    return TrainedSlideHead(head.eval(), best_epoch, tuple(epochs))


def train_slide_heads(
    training: Mapping[str, EmbeddingBags],
    validation: Mapping[str, EmbeddingBags],
    architecture: HeadArchitecture,
    config: SlideHeadConfig,
    **options: Any,
) -> dict[str, TrainedSlideHead]:
    """One head for each student, on its own embeddings; their probabilities are averaged.

    Args:
        training, validation: bags by student.
        architecture, config, **options: as for :func:`train_slide_head`.

    Raises:
        StageError: as there, or a student without validation bags.
    """
    if training.keys() != validation.keys():
        raise StageError(
            "training and validation have embeddings of different students "
            f"({', '.join(training)}; {', '.join(validation)})",
            where="embeddings",
            remedy="Run 'medkd predict' again.",
        )
    return {
        student: train_slide_head(bags, validation[student], architecture, config, **options)
        for student, bags in training.items()
    }


@torch.no_grad()
def head_probabilities(head: SlideHead, bags: EmbeddingBags) -> np.ndarray:
    """Probability of the positive class of each bag, float64, (bags,)."""
    return torch.sigmoid(_logits(head, bags).double()).numpy()


def _roles(training: EmbeddingBags, validation: EmbeddingBags) -> list[tuple[str, EmbeddingBags]]:
    return [("training", training), ("validation", validation)]


def _check(
    training: EmbeddingBags, validation: EmbeddingBags, is_positive: Mapping[str, np.ndarray]
) -> None:
    for role, labels in is_positive.items():
        for kind, count in (("positive", labels.sum()), ("negative", (~labels).sum())):
            if count < FEWEST_OF_A_CLASS:
                raise TooFewPatientsError(
                    f"{count} {kind} patients are too few to train a slide head: it takes "
                    f"{FEWEST_OF_A_CLASS} of each class at the least, and tens to mean anything",
                    where=f"{role} patients",
                    remedy="Add patients, or pool by 'mean_probability', which is not trained.",
                )
    both = set(training.bag_ids) & set(validation.bag_ids)
    if both:
        raise StageError(
            f"'{min(both)}' is in training and in validation",
            where="slide head",
            remedy="Give bag_ids of patients, and run 'medkd split' again.",
        )
    lengths = [_dimension(bags) for bags in (training, validation)]
    if lengths[0] != lengths[1]:
        raise StageError(
            f"embeddings have {lengths[0]} channels in training and {lengths[1]} in validation",
            where="slide head",
            remedy="Take the embeddings of one student for both.",
        )


def _dimension(bags: EmbeddingBags) -> int:
    return int(bags[0]["embedding"].shape[1])


def _spread(bags: EmbeddingBags) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (D,); patients count alike."""
    mean = square = torch.zeros(_dimension(bags), dtype=torch.float64)
    for number in range(len(bags)):
        tiles = bags[number]["embedding"].double()
        mean = mean + tiles.mean(0) / len(bags)
        square = square + tiles.square().mean(0) / len(bags)
    # Equal values leave a variance of some 1e-16 of their square by rounding.
    variance = square - mean.square()
    spread = torch.where(variance > 1e-12 * square, variance, 0).sqrt()
    return mean.float(), spread.float()


def _optimizer(head: SlideHead, config: SlideHeadConfig) -> torch.optim.Optimizer:
    matrices = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _class_weights(is_positive: np.ndarray) -> tuple[float, float]:
    """Of negatives and positives: half of all patients each, over their own number."""
    positives = int(is_positive.sum())
    return tuple(len(is_positive) / (2 * n) for n in (len(is_positive) - positives, positives))  # type: ignore[return-value]


def _weighted_losses(logits: Tensor, is_positive: Tensor, weights: tuple[float, float]) -> Tensor:
    negative, positive = weights
    losses = F.binary_cross_entropy_with_logits(
        logits, is_positive.to(logits.dtype), reduction="none"
    )
    return losses * torch.where(is_positive, positive, negative)


@torch.no_grad()
def _logits(head: SlideHead, bags: EmbeddingBags) -> Tensor:
    """Of each bag by itself, (bags,), without padding."""
    head.eval()
    return torch.cat([head(bags[number]["embedding"][None])[0] for number in range(len(bags))])


def _validation_loss(
    head: SlideHead, bags: EmbeddingBags, positive: int, weights: tuple[float, float]
) -> float:
    is_positive = torch.from_numpy(bags.labels == positive)
    return float(_weighted_losses(_logits(head, bags).double(), is_positive, weights).mean())


class _Telling(Dataset[Any]):
    """Gives an error as an item: torch cannot carry those of this project between processes."""

    def __init__(self, bags: EmbeddingBags) -> None:
        self._bags = bags

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        try:
            return self._bags[draw]
        except MedkdError as error:
            return error


def _collated(bags: Sequence[Any]) -> Any:
    return next((bag for bag in bags if isinstance(bag, MedkdError)), None) or collate_bags(bags)


@contextmanager
def _loader(
    bags: EmbeddingBags, batch_bags: int, seed: int, workers: int
) -> Iterator[Callable[[int], Iterator[dict[str, Tensor]]]]:
    """Yield what gives the batches of an epoch."""
    order: Any = EpochSampler(
        bags.bag_ids, bags.labels, max_tiles_per_slide=None, balanced=False, seed=seed
    )
    loader: DataLoader[Any] = DataLoader(
        _Telling(bags),
        batch_sampler=BatchSampler(order, batch_bags, drop_last=False),
        collate_fn=_collated,
        num_workers=workers,
        persistent_workers=workers > 0,
        # As for tiles, see medkd.training.loading.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # The loader draws a seed for its processes; it must not be from that of the dropout.
        generator=torch.Generator().manual_seed(seed),
    )

    def load(epoch: int) -> Iterator[dict[str, Tensor]]:
        order.epoch = epoch
        for batch in loader:
            if isinstance(batch, MedkdError):
                raise batch
            yield batch

    yield load
