"""A training's data in MLflow: a dataset with its digest, and the page that tells of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.config import Config
from medkd.tracking import connect, read_run_ids, store_errors, tracking_uri
from medkd.training.data import ROLES, TileTable

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from medkd.training.training_set import TrainingSet

DIGEST_TAG = "medkd.data_digest"

# MLflow's databases hold no more of a digest; the tag of the run has all of it.
_MLFLOW_DIGEST_LETTERS = 36


def training_input(
    source: Path, digest: str, schema: Mapping[str, Any], profile: Mapping[str, int]
) -> DatasetInput:
    """A dataset of MLflow's in the context ``training``.

    Args:
        source: the table that it comes from, which is named, not copied.
        digest: of all that it is.
        schema: what it is.
        profile: how much of it there is.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=source.stem,
        digest=digest[:_MLFLOW_DIGEST_LETTERS],
        source_type="local",
        source=json.dumps({"uri": str(source)}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def dataset_input(config: Config, table: TileTable) -> DatasetInput:
    """The tiles with labels and roles as MLflow's dataset.

    Its profile has patients, slides and tiles of each role, its schema the classes and what a tile
    is. Its source is slides.csv.
    """
    profile: dict[str, int] = {}
    for role in ROLES:
        part = table.tiles[table.tiles["role"] == role]
        profile |= {
            f"{role}_patients": int(part["patient_id"].nunique()),
            f"{role}_slides": int(part["slide_id"].nunique()),
            f"{role}_tiles": len(part),
        }
    schema = {
        "classes": list(config.data.classes),
        "tile_px": config.tile.size_px,
        "mpp": config.tile.mpp,
        "fold": config.split.fold,
        "synthetic": table.synthetic,
    }
    return training_input(config.data.slides.resolve(), table.digest, schema, profile)


def log_summary_page(config: Config, data: TrainingSet, page: Path) -> str | None:
    """Give the page of a dataset, and the dataset, to the training that ran on it.

    Returns:
        The id of its parent run; None where there is no training in this store, or where it trained
        on other data.

    Raises:
        TrackingError: the store does not answer, or does not know the run any more.
    """
    uri = tracking_uri(config)
    run_id = read_run_ids(config.run_folder, uri).get("parent")
    if run_id is None:
        return None
    client, _ = connect(config)
    with store_errors(uri):
        if client.get_run(run_id).data.tags.get(DIGEST_TAG) != data.digest:
            return None
        client.log_inputs(run_id, [data.mlflow_dataset()])
        client.log_artifact(run_id, str(page))
    return run_id
