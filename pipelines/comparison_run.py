"""One run of compare_methods.py: the tiles of a folder by class, and one method trained on them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medkd.config import Config
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, expand
from medkd.distill.method import Method
from medkd.errors import TableError, TrainingError
from medkd.tasks.classification import tile_metrics
from medkd.training.cohorts import build_cohort, trained_first
from medkd.training.devices import make_fabric
from medkd.training.engine import set_up
from medkd.training.evaluation import ENSEMBLE, best_deployed, evaluate, predict_tiles
from medkd.training.loop import train_epoch

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2
# Colour jitter as medkd.datasets.transforms has it: factors 1 ± 0.1, shifts of 12 levels of 255.
COLOUR_SCALE, COLOUR_SHIFT = 0.1, 12 / 255
# Keeps the draws for the order of tiles and for their augmentation apart.
_ORDER, _AUGMENTATION = 1, 2


@dataclass(frozen=True)
class Tiles:
    """Tiles of one role.

    Attributes:
        images: uint8 N x 3 x H x W, RGB.
        labels: int64 N.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Roles:
    """All tiles, by their roles, and the names of the classes."""

    classes: tuple[str, ...]
    train: Tiles
    validation: Tiles
    test: Tiles
    digest: str


def read_tiles(folder: Path, size_px: int, split_seed: int) -> Roles:
    """Read a folder of images by class, and split each class by the same shares.

    Raises:
        TableError: no such folder, fewer than two classes, or a class with too few tiles.
    """
    remedy = "Give --tiles a folder that has a folder of images for each class."
    if not folder.is_dir():
        raise TableError("no such folder", where=folder, remedy=remedy)
    paths = {
        part.name: sorted(path for path in part.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }
    if len(paths) < 2:
        raise TableError("has fewer than two folders of classes", where=folder, remedy=remedy)
    order = np.random.default_rng(split_seed)
    roles: list[list[tuple[Path, int]]] = [[], [], []]
    for number, (name, found) in enumerate(paths.items()):
        cuts = [
            round(TRAIN_SHARE * len(found)),
            round((TRAIN_SHARE + VALIDATION_SHARE) * len(found)),
        ]
        if not 0 < cuts[0] < cuts[1] < len(found):
            raise TableError(
                f"class {name} has {len(found)} tiles, too few for three roles",
                where=folder,
                remedy="Add tiles, or leave that class out.",
            )
        drawn = [(found[index], number) for index in order.permutation(len(found))]
        for role, part in zip(roles, np.split(np.arange(len(found)), cuts), strict=True):
            role += [drawn[index] for index in part]
    train, validation, test = (_decoded(role, size_px) for role in roles)
    digest = hashlib.sha256(json.dumps(list(paths)).encode())
    for tiles in (train, validation, test):
        digest.update(tiles.images.numpy().tobytes())
        digest.update(tiles.labels.numpy().tobytes())
    return Roles(tuple(paths), train, validation, test, digest.hexdigest())


def _decoded(role: Sequence[tuple[Path, int]], size_px: int) -> Tiles:
    images = torch.empty(len(role), 3, size_px, size_px, dtype=torch.uint8)
    for place, (path, _) in enumerate(role):
        with Image.open(path) as opened:
            # BOX is the mean over the area that a pixel covers.
            small = opened.convert("RGB").resize((size_px, size_px), Image.Resampling.BOX)
        images[place] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return Tiles(images, torch.tensor([label for _, label in role]))


class AugmentedTiles(Dataset):
    """Batches of augmented tiles; an item is asked for by the places of a whole batch.

    What a tile looks like is a function of (seed, epoch, place, view) alone.
    """

    def __init__(self, tiles: Tiles, *, seed: int, epoch: int, views: int) -> None:
        self._tiles = tiles
        self._draws = []
        for view in range(views):
            # Drawn for all tiles at once, in their order: a batch then picks its own.
            random = np.random.default_rng((_AUGMENTATION, seed, epoch, view))
            turns = random.integers(8, size=len(tiles))
            factors = random.uniform(1 - COLOUR_SCALE, 1 + COLOUR_SCALE, (len(tiles), 3, 1, 1))
            shifts = random.uniform(-COLOUR_SHIFT, COLOUR_SHIFT, (len(tiles), 3, 1, 1))
            draws = turns, factors.astype(np.float32), shifts.astype(np.float32)
            self._draws.append(tuple(torch.from_numpy(values) for values in draws))

    def __getitem__(self, places: list[int]) -> dict[str, Tensor]:
        """``image``: float N x 3 x H x W, with several views N x views x 3 x H x W; ``label``."""
        plain = self._tiles.images[places].float() / 255
        seen = [
            (turned(plain, turns[places]) * factors[places] + shifts[places]).clamp_(0, 1)
            for turns, factors, shifts in self._draws
        ]
        image = seen[0] if len(seen) == 1 else torch.stack(seen, dim=1)
        return {"image": image, "label": self._tiles.labels[places]}


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Each image in one of the eight ways that a square falls on itself, 0 to 7; 0 leaves it."""
    out = torch.empty_like(images)
    for turn in range(8):
        chosen = turns == turn
        part = images[chosen].flip(-1) if turn >= 4 else images[chosen]
        out[chosen] = part.rot90(turn % 4, (-2, -1))
    return out


def epoch_batches(
    tiles: Tiles, batch_size: int, *, seed: int, epoch: int, views: int
) -> DataLoader:
    """An epoch: all tiles in a random order; a last batch that is not full is dropped."""
    order = np.random.default_rng((_ORDER, seed, epoch)).permutation(len(tiles))
    size = min(batch_size, len(tiles))
    batches = [order[at : at + size].tolist() for at in range(0, len(tiles) - size + 1, size)]
    dataset = AugmentedTiles(tiles, seed=seed, epoch=epoch, views=views)
    return DataLoader(dataset, sampler=batches, batch_size=None)


def plain_batches(tiles: Tiles, size: int = 128) -> list[dict[str, Tensor]]:
    """All tiles in their order, without augmentation."""
    return [
        {"image": images.float() / 255, "label": labels}
        for images, labels in zip(tiles.images.split(size), tiles.labels.split(size), strict=True)
    ]


@dataclass
class Trained:
    """What a training came to.

    Attributes:
        best_epoch: the one that validation chose, from 1; 0: none yet.
        log_loss: of what ships then, on validation tiles.
        weights: then.
        validation: metrics of all nodes then.
        curve: that log loss in every epoch.
        seconds: of processor time for training and validation.
    """

    best_epoch: int = 0
    log_loss: float = float("inf")
    weights: dict[str, Tensor] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(config: Config, graph: Graph, cohort: Cohort, roles: Roles) -> Trained:
    """Train all epochs, and leave the cohort with the weights of the one that validation chose."""
    batches = partial(
        epoch_batches, roles.train, config.train.batch_size, seed=config.seed, views=graph.views
    )
    fabric, _ = make_fabric(config.train)
    engine = set_up(cohort, config.train, len(batches(epoch=0)), fabric, seed=config.seed)
    held_out = plain_batches(roles.validation)
    done = Trained()
    # Not the clock's: others may use the machine.
    began = time.process_time()
    for epoch in range(config.train.epochs):
        train_epoch(engine, batches(epoch=epoch), epoch=epoch)
        probabilities, labels = predict_tiles(engine.shown, fabric, held_out)
        metrics = evaluate(probabilities, labels, graph, engine.shown.task)
        done.curve.append(round(metrics[ENSEMBLE]["log_loss"], 4))
        if metrics[ENSEMBLE]["log_loss"] < done.log_loss:
            done.best_epoch, done.log_loss = epoch + 1, metrics[ENSEMBLE]["log_loss"]
            done.weights = {
                name: value.clone() for name, value in engine.shown.state_dict().items()
            }
            done.validation = metrics
    done.seconds = time.process_time() - began
    if not done.best_epoch:
        raise TrainingError(
            "no epoch gave finite probabilities on the validation tiles",
            where=graph.method,
            remedy="Lower --learning-rate.",
        )
    cohort.load_state_dict(done.weights)
    return done


class Teachers:
    """Frozen teachers, trained once for a seed and lent to every method that wants one.

    A teacher's first weights, its tiles and their augmentation depend on the seed and not on the
    method, so that training it anew would give the same weights.
    """

    def __init__(self) -> None:
        self._of: tuple[int, Trained] | None = None

    def get(self, config: Config, graph: Graph, roles: Roles) -> Trained:
        """The teacher of the seed; ``graph`` is of it alone."""
        if self._of is None or self._of[0] != config.seed:
            cohort = build_cohort(config, graph)
            done = train(config, graph, cohort, roles)
            (name,) = graph.deployed
            done.weights = cohort.nodes[name].state_dict()
            self._of = config.seed, done
        return self._of[1]


def run(method: Method, config: Config, roles: Roles, teachers: Teachers) -> dict[str, Any]:
    """Train one method with one seed, and measure all its nodes on the test tiles."""
    graph = expand(method, len(config.train.students))
    cohort = build_cohort(config, graph)
    before = {}
    for node in trained_first(config, graph):
        before[node.name] = teachers.get(config, graph.first(node.name), roles)
        cohort.nodes[node.name].load_state_dict(before[node.name].weights)
    done = train(config, graph, cohort, roles)
    fabric, _ = make_fabric(config.train)
    probabilities, labels = predict_tiles(cohort, fabric, plain_batches(roles.test))
    deployed = graph.deployed
    if graph.chosen_by_validation:
        deployed = (best_deployed(done.validation, graph, cohort.task),)
    students = [node.name for node in graph.nodes if node.role == "student" and not node.is_extra]
    shipped = {
        id(parameter): parameter.numel()
        for name in deployed
        for parameter in cohort.alone(name).parameters()
    }
    seconds = done.seconds + sum(teacher.seconds for teacher in before.values())
    return {
        "best_epoch": done.best_epoch,
        "validation_log_loss": done.curve,
        "trained_first": {name: teacher.best_epoch for name, teacher in before.items()},
        "deployed": deployed,
        "parameters": sum(shipped.values()),
        "cpu_seconds": round(seconds, 1),
        "shipped": figures_of(_mean(probabilities, deployed), labels),
        "students_together": figures_of(_mean(probabilities, students), labels),
        "nodes": {
            node.name: {
                "role": "leader" if node.is_extra else node.role,
                "set": node.name.removesuffix(f"_{node.index}"),
                **figures_of(probabilities[node.name], labels),
            }
            for node in graph.nodes
        },
    }


def _mean(probabilities: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([probabilities[name] for name in names]).mean(0)


def figures_of(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Macro accuracy (the mean over classes of the share found) and log loss in nats."""
    right = probabilities.argmax(1) == labels
    of_class = [float(right[labels == label].float().mean()) for label in labels.unique()]
    log_loss = tile_metrics(probabilities, labels, positive=0)["log_loss"]
    return {"accuracy": float(np.mean(of_class)), "log_loss": log_loss}
