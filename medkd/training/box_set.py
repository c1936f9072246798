"""Images with boxes to train a detector on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medkd.config import Config
from medkd.datasets.box_members import members
from medkd.datasets.box_split import check_box_leakage
from medkd.datasets.box_transforms import box_dataset
from medkd.datasets.boxes import BoxItems, box_items
from medkd.datasets.patches import EpochSampler, PatchDataset
from medkd.datasets.split import ROLES, read_split
from medkd.errors import MethodError, StageError
from medkd.files import sha256_of_json
from medkd.importers.box_table import BoxTable, read_boxes
from medkd.training.data import batches_of, loader_of
from medkd.training.devices import Ranks
from medkd.training.loading import Batches, TileLoader
from medkd.training.training_set import Shipped

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


class PaddedBoxes(Dataset[dict[str, Tensor]]):
    """Items of images with boxes as batches of one shape: ``image``, and ``label`` of M x 5.

    Args:
        dataset: as :func:`medkd.datasets.box_transforms.box_dataset` makes it.
        most: M, the largest number of boxes of an image.

    A label is float32: class number, x1, y1, x2, y2, pixels; rows of padding have the class -1.
    """

    def __init__(self, dataset: PatchDataset, most: int) -> None:
        self._dataset, self._most = dataset, most

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: int | tuple[int, int]) -> dict[str, Tensor]:
        """The item of an index, or of (epoch, index)."""
        item = self._dataset[draw]
        label = torch.zeros(self._most, 5)
        label[:, 0] = -1
        count = len(item["labels"])
        label[:count, 0] = item["labels"]
        label[:count, 1:] = item["boxes"]
        return {"image": item["image"], "label": label}


@dataclass(frozen=True)
class BoxSet:
    """Images with boxes, by role; a :class:`medkd.training.training_set.TrainingSet`.

    Attributes:
        config: of the experiment.
        table: of all images.
        roles: of each member: patient, sequence or image, see :mod:`medkd.datasets.box_members`.
        items: of each role.
    """

    config: Config
    table: BoxTable
    roles: Mapping[str, str]
    items: Mapping[str, BoxItems]

    @cached_property
    def digest(self) -> str:
        """Of the images' paths and sizes, boxes, labels and roles, and of how they are resized."""
        settings = self.config.detection
        images = self.table.images
        role = members(images).map(dict(self.roles))
        rows = zip(
            images["image"], images["width_px"], images["height_px"], images["boxes"],
            images["labels"], role, strict=True,
        )  # fmt: skip
        return sha256_of_json(
            [
                settings.classes,
                settings.image_px,
                settings.keep_aspect,
                sorted(
                    (name, int(width), int(height), list(map(list, boxes)), list(labels), its_role)
                    for name, width, height, boxes, labels, its_role in rows
                ),
            ]
        )

    @property
    def decided(self) -> Sequence[Any]:
        """The detector's settings."""
        return [self.config.detection.model_dump(mode="json", exclude={"boxes"})]

    @property
    def described(self) -> Mapping[str, Any]:
        """Classes and size of the images."""
        settings = self.config.detection
        return {"classes": list(settings.classes), "image_px": settings.image_px}

    @property
    def synthetic(self) -> bool:
        """No: whoever drew images knows it."""
        return False

    @property
    def image_px(self) -> int:
        """Side of the square that images are resized to."""
        return self.config.detection.image_px

    @property
    def most_boxes(self) -> int:
        """The largest number of boxes of an image, of any role."""
        return max(int(items.counts.max(initial=0)) for items in self.items.values())

    def check(self) -> None:
        """Refuse roles that share images or sequences, see :mod:`medkd.datasets.box_split`."""
        check_box_leakage(self.config, self.table, self.roles)

    def training_loader(self, views: int) -> tuple[TileLoader, EpochSampler]:
        """The loader and the sampler of the training role.

        Raises:
            MethodError: the method gives each network an augmentation of its own.
        """
        if views > 1:
            raise MethodError(
                "the method gives each network a view of its own, and boxes that were turned "
                "differently cannot be compared",
                where=self.config.train.method,
                remedy="Choose a method without 'views' ('medkd methods list').",
            )
        train, items = self.config.train, self.items["train"]
        sampler = EpochSampler(
            np.arange(len(items)),
            (items.counts > 0).astype(int),
            max_tiles_per_slide=None,
            balanced=train.balance != "none",
            seed=self.config.seed,
        )
        augment = train.augment if train.augment.enabled else None
        return loader_of(self.dataset("train", augment=augment), self.config), sampler

    def validation_batches(self, ranks: Ranks) -> Batches:
        """All images of the validation role, in their order."""
        return self.batches("validation", ranks)

    def batches(self, role: str, ranks: Ranks | None = None) -> Batches:
        """All images of a role in their order, not augmented; every n-th batch for n ranks."""
        return batches_of(self.dataset(role), self.config, ranks or Ranks())

    def dataset(self, role: str, **options: Any) -> PaddedBoxes:
        """The images of a role; ``options`` as of :func:`box_dataset`."""
        settings = self.config.detection
        dataset = box_dataset(
            self.items[role],
            size_px=settings.image_px,
            seed=self.config.seed,
            keep_aspect=settings.keep_aspect,
            cache_mb=self.config.train.cache_mb / 2,  # training and validation images
            **options,
        )
        return PaddedBoxes(dataset, self.most_boxes)

    def counts(self) -> Mapping[str, int]:
        """Images, boxes and images without boxes of each role."""
        return {
            f"{role}.{what}": int(number)
            for role, items in self.items.items()
            for what, number in (
                ("images", len(items)),
                ("boxes", items.counts.sum()),
                ("images_without_boxes", (items.counts == 0).sum()),
            )
        }

    def mlflow_dataset(self) -> DatasetInput:
        """The images with boxes and roles as MLflow's dataset, in the context ``training``."""
        from medkd.training.dataset_tracking import training_input

        settings = self.config.detection
        return training_input(
            settings.boxes.resolve(),
            self.digest,
            {
                "classes": list(settings.classes),
                "image_px": settings.image_px,
                "fold": self.config.split.fold,
            },
            {key.replace(".", "_"): value for key, value in self.counts().items()},
        )

    def write_package(self, shipped: Shipped) -> None:
        """See :func:`medkd.training.detector_package.write_detector_package`."""
        from medkd.training.detector_package import write_detector_package

        write_detector_package(self.config, self, shipped)


def load_box_set(config: Config) -> BoxSet:
    """Join the table of boxes with the split.

    Raises:
        StageError: no table, no split, a split of other images, a role without images or, in
            training and validation, without boxes; a box that cannot be.
    """
    table = read_boxes(config.detection.boxes)
    split = read_split(config.splits_file, config.split.fold)
    roles = dict(zip(split["patient_id"], split["role"], strict=True))
    remedy = "Remove the file and run 'medkd split' again; runs trained on it are then void."
    strangers = sorted(set(members(table.images)) - set(roles))
    if strangers:
        raise StageError(
            f"{len(strangers)} images, sequences or patients have no role, such as "
            f"'{strangers[0]}'",
            where=config.splits_file,
            remedy=remedy,
        )
    items = {
        role: box_items(
            table,
            role=role,
            roles=config.splits_file,
            fold=config.split.fold,
            classes=config.detection.classes,
        )
        for role in ROLES
    }
    for role in ("train", "validation"):
        if not items[role].counts.sum():
            raise StageError(
                f"no {role} image has a box",
                where=config.detection.boxes,
                remedy="Change the shares in 'split', or import more images.",
            )
    return BoxSet(config, table, roles, items)
