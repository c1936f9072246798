"""The model package of a finished training: students only."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from medkd import __version__
from medkd.config import Config
from medkd.datasets.stain import StainReference, recorded
from medkd.inference.package import write_package
from medkd.networks.zoo import count_parameters
from medkd.training.cohorts import node_record
from medkd.training.data import ROLES, TileTable
from medkd.training.export import embedding_size, export_onnx, export_safetensors
from medkd.training.training_set import Shipped


def write_model_package(
    config: Config, table: TileTable, stain: StainReference | None, shipped: Shipped
) -> None:
    """Write ``<run>/model`` with the deployed nodes as they are now, without operating point."""
    graph = shipped.graph
    files: dict[str, bytes] = {}
    students = []
    for name in shipped.deployed:
        network = shipped.cohort.alone(name)
        paths = {kind: f"students/{name}.{kind}" for kind in ("onnx", "safetensors")}
        files[paths["onnx"]] = export_onnx(network, config.tile.size_px)
        files[paths["safetensors"]] = export_safetensors(network)
        students.append(
            {
                "name": name,
                **node_record(config, graph, graph.node(name)),
                "parameters": count_parameters(network),
                "embedding_size": embedding_size(network, config.tile.size_px),
                **paths,
            }
        )
    by_role = {role: table.tiles[table.tiles["role"] == role] for role in ROLES}
    created = datetime.now(UTC)
    write_package(
        config.model_folder,
        {
            "schema_version": 1,
            "name": config.mlflow.registered_model or config.run_name,
            "version": created.strftime("%Y.%m.%d.%H%M%S"),
            "created": created.isoformat(timespec="seconds"),
            "task": "classification",
            "research_use_only": True,
            "classes": list(config.data.classes),
            "positive": config.data.positive,
            "preprocessing": {"tile": config.tile.packaged(), "stain": recorded(stain)},
            "students": students,
            "slide_head": {"pooling": "mean_probability"},
            "calibration": {"kind": "none"},
            "operating_point": None,
            "gates": config.infer.model_dump(mode="json"),
            "slide_level": config.slide_level.model_dump(mode="json"),
            "provenance": {
                "run_id": shipped.run_id,
                "experiment": config.mlflow.experiment,
                "run_name": config.run_name,
                "method": graph.method,
                "seed": config.seed,
                "epochs": config.train.epochs,
                "best_epoch": shipped.best_epoch,
                "data_digest": table.digest,
                "patients": {r: int(by_role[r]["patient_id"].nunique()) for r in ROLES},
                "tiles": {r: len(by_role[r]) for r in ROLES},
                "trained_on_synthetic": table.synthetic,
                "software": f"medkd {__version__}",
                "torch": torch.__version__,
            },
        },
        files,
    )
