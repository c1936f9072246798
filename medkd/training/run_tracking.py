"""A training run in MLflow: a parent run for the cohort, a nested run for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkd import __version__
from medkd.config import Config
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, Link
from medkd.networks.zoo import count_parameters
from medkd.progress import warn
from medkd.tracking import (
    TrackedRun,
    connect,
    flatten,
    open_run,
    read_run_ids,
    tracking_uri,
    write_run_ids,
)
from medkd.training.cohorts import node_record
from medkd.training.data import TileTable
from medkd.training.loop import ENSEMBLE


class CohortTracker:
    """Writes parameters, curves and files of a training run; goes on in the same runs on resume."""

    def __init__(self, config: Config, graph: Graph, cohort: Cohort, table: TileTable) -> None:
        run_folder = config.run_folder
        client, experiment = connect(config)
        uri = tracking_uri(config)
        known = read_run_ids(run_folder, uri)
        tags = {
            "medkd.version": __version__,
            "medkd.method": graph.method,
            "medkd.data_digest": table.digest,
            "medkd.synthetic": str(table.synthetic).lower(),
            "medkd.research_use_only": "true",
            "mlflow.source.name": "medkd train",
            "mlflow.source.type": "LOCAL",
        }
        self._parent = open_run(
            client, experiment, config.train.name, run_id=known.get("parent"), tags=tags
        )
        self._nested: dict[str, TrackedRun] = {}
        for node in graph.nodes:
            self._nested[node.name] = open_run(
                client,
                experiment,
                f"{config.train.name}: {node.name}",
                run_id=known.get(node.name),
                parent_id=self._parent.run_id,
                tags={
                    "medkd.role": node.role,
                    "medkd.method": graph.method,
                    "mlflow.source.name": "medkd train",
                    "mlflow.source.type": "LOCAL",
                },
            )
        nested = {name: run.run_id for name, run in self._nested.items()}
        write_run_ids(run_folder, uri, {"parent": self._parent.run_id, **nested})
        if not known:
            self._log_beginning(config, graph, cohort, table)

    @property
    def run_id(self) -> str:
        """Id of the parent run."""
        return self._parent.run_id

    def _log_beginning(
        self, config: Config, graph: Graph, cohort: Cohort, table: TileTable
    ) -> None:
        content = config.resolved()
        tiles = table.tiles
        counts = {
            f"{role}.{unit}": int(part[column].nunique()) if column else len(part)
            for role, part in tiles.groupby("role")
            for unit, column in (("patients", "patient_id"), ("slides", "slide_id"), ("tiles", ""))
        }
        self._parent.log_params({**flatten(content), **flatten({"data_counts": counts})})
        for name in ("config.yaml", "method.yaml", "method.svg", "method.png"):
            self._parent.log_file(config.run_folder / name)
        self._parent.log_file(config.splits_file)
        for node in graph.nodes:
            links = [link for link in graph.links if link.learner == node.name]
            self._nested[node.name].log_params(
                {
                    "role": node.role,
                    "deployed": node.name in graph.deployed,
                    "parameters": count_parameters(cohort.alone(node.name)),
                    "learns_from": ", ".join(
                        f"{target} ({_told(link)})" for link in links for target in link.targets
                    )
                    or ("labels alone" if node.supervised or node.frozen else "nothing"),
                    **node_record(config, graph, node),
                }
            )

    def log_epoch(self, epoch: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log one epoch: each network's curves to its own run, and all of them to the parent."""
        parent: dict[str, float] = {}
        nested: dict[str, dict[str, float]] = {}
        for row in rows:
            metric, value = str(row["metric"]), float(row["value"])
            parent[f"{metric}/{row['network']}"] = value
            if row["network"] != ENSEMBLE:
                nested.setdefault(str(row["network"]), {})[metric] = value
        self._parent.log_metrics(parent, epoch)
        for name, metrics in nested.items():
            self._nested[name].log_metrics(metrics, epoch)

    def log_result(self, best_epoch: int, best: Mapping[str, Mapping[str, float]]) -> None:
        """Log what the chosen epoch reached on validation tiles."""
        self._parent.log_metrics({"best_epoch": best_epoch}, best_epoch)
        for name, values in best.items():
            metrics = {f"best/{metric}": value for metric, value in values.items()}
            run = self._nested.get(name)
            if run is not None:
                run.log_metrics(metrics, best_epoch)
            self._parent.log_metrics(
                {f"{metric}/{name}": value for metric, value in metrics.items()}, best_epoch
            )

    def finish(self, status: str) -> None:
        """End every run. A store that is away by now does not undo a training."""
        from mlflow.exceptions import MlflowException

        for run in (*self._nested.values(), self._parent):
            try:
                run.finish(status)
            except (MlflowException, OSError) as error:
                warn(f"the MLflow run {run.run_id} stays open: {str(error)[:200]}")


def _told(link: Link) -> str:
    on = "" if link.learner_place == "logits" else f" on {link.learner_place}"
    temperature = "" if link.temperature is None else f", T={link.temperature:g}"
    ramp = "" if link.ramp is None else f", {link.ramp}"
    return f"{link.loss}{on}{temperature}, weight {link.weight:g}{ramp}"
