"""What a training must know of its images, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from medkd.datasets.patches import EpochSampler
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph
from medkd.training.devices import Ranks
from medkd.training.loading import Batches, TileLoader

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


@dataclass(frozen=True)
class Shipped:
    """What of a finished training ships.

    Attributes:
        graph: of the method.
        cohort: with the weights of the chosen epoch.
        deployed: names of the nodes that ship.
        best_epoch: the chosen one, from 1.
        run_id: of MLflow.
    """

    graph: Graph
    cohort: Cohort
    deployed: Sequence[str]
    best_epoch: int
    run_id: str


class TrainingSet(Protocol):
    """Images with their labels and roles."""

    @property
    def digest(self) -> str:
        """Of images, labels and roles; two runs with one digest trained on the same data."""

    @property
    def decided(self) -> Sequence[Any]:
        """What else of the data decides what is computed, in types that JSON has."""

    @property
    def described(self) -> Mapping[str, Any]:
        """What a finished run tells of its data, in types that JSON has."""

    @property
    def synthetic(self) -> bool:
        """Whether some of it was drawn, not taken."""

    @property
    def image_px(self) -> int:
        """Side of the images that networks see, pixels."""

    def check(self) -> None:
        """Refuse data whose roles share what they must not share; the report goes to the run."""

    def training_loader(self, views: int) -> tuple[TileLoader, EpochSampler]:
        """The loader and the sampler of the training role.

        Its batches have ``image`` and ``label``, and ``seed`` where they are to be augmented on the
        device: what :func:`medkd.training.images.device_images` takes.

        Args:
            views: how many augmentations of each image.
        """

    def validation_batches(self, ranks: Ranks) -> Batches:
        """All images of the validation role, not augmented; every n-th batch for n ranks."""

    def counts(self) -> Mapping[str, int]:
        """Such as ``train.patients``: what each role has of each."""

    def mlflow_dataset(self) -> DatasetInput:
        """The data as MLflow's dataset, in the context ``training``."""

    def write_package(self, shipped: Shipped) -> None:
        """Write the model package of a finished training."""
