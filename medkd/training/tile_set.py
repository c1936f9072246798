"""Tiles of slides to train on, with the labels of their patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from medkd.config import Config
from medkd.datasets.leakage import check_leakage
from medkd.datasets.patches import EpochSampler
from medkd.datasets.stain import StainReference, recorded
from medkd.datasets.stain_reference import stain_reference
from medkd.datasets.tables import SlideRow
from medkd.training.cohorts import weight_files
from medkd.training.data import TileTable, evaluation_batches, load_tile_table, training_loader
from medkd.training.dataset_tracking import dataset_input
from medkd.training.devices import Ranks
from medkd.training.loading import Batches, TileLoader
from medkd.training.packaging import write_model_package
from medkd.training.training_set import Shipped

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


@dataclass(frozen=True)
class TileSet:
    """Tiles of a cohort of slides; a :class:`medkd.training.training_set.TrainingSet`.

    Attributes:
        config: of the experiment.
        rows: of slides.csv.
        table: all tiles with their roles.
        stain: that tiles are normalised to; None: they are not.
    """

    config: Config
    rows: Sequence[SlideRow]
    table: TileTable
    stain: StainReference | None = None

    @property
    def digest(self) -> str:
        """See :class:`medkd.training.data.TileTable`."""
        return self.table.digest

    @property
    def decided(self) -> Sequence[Any]:
        """The stain that tiles are normalised to, if they are."""
        return [] if self.stain is None else [recorded(self.stain)]

    @property
    def described(self) -> Mapping[str, Any]:
        """The stain."""
        return {"stain": recorded(self.stain)}

    @property
    def synthetic(self) -> bool:
        """Whether some slide was drawn, not scanned."""
        return self.table.synthetic

    @property
    def image_px(self) -> int:
        """Side of a tile."""
        return self.config.tile.size_px

    def check(self) -> None:
        """The audit of leakage, see :func:`medkd.datasets.leakage.check_leakage`."""
        check_leakage(self.config, self.rows, self.table.tiles, weight_files(self.config))

    def training_loader(self, views: int) -> tuple[TileLoader, EpochSampler]:
        """See :func:`medkd.training.data.training_loader`."""
        return training_loader(self.config, self._of("train"), views=views, stain=self.stain)

    def validation_batches(self, ranks: Ranks) -> Batches:
        """See :func:`medkd.training.data.evaluation_batches`."""
        held_out = self._of("validation")
        return evaluation_batches(self.config, held_out, cache=True, ranks=ranks, stain=self.stain)

    def counts(self) -> Mapping[str, int]:
        """Patients, slides and tiles of each role."""
        return {
            f"{role}.{unit}": int(part[column].nunique()) if column else len(part)
            for role, part in self.table.tiles.groupby("role")
            for unit, column in (("patients", "patient_id"), ("slides", "slide_id"), ("tiles", ""))
        }

    def mlflow_dataset(self) -> DatasetInput:
        """See :func:`medkd.training.dataset_tracking.dataset_input`."""
        return dataset_input(self.config, self.table)

    def write_package(self, shipped: Shipped) -> None:
        """See :func:`medkd.training.packaging.write_model_package`."""
        write_model_package(self.config, self.table, self.stain, shipped)

    def _of(self, role: str) -> pd.DataFrame:
        tiles = self.table.tiles
        return tiles[tiles["role"] == role].reset_index(drop=True)


def load_tile_set(config: Config, rows: Sequence[SlideRow]) -> TileSet:
    """Read the tiles of the experiment; see :func:`medkd.training.data.load_tile_table`."""
    table = load_tile_table(config, rows)
    return TileSet(config, rows, table, stain_reference(config, table.tiles))
