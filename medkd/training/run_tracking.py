"""A training run in MLflow: a parent run for the cohort, a nested run for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkd import __version__
from medkd.config import Config
from medkd.datasets.leakage import REPORT_NAME
from medkd.distill.cohort import Cohort
from medkd.distill.graph import Graph, Link, Node
from medkd.errors import TrackingError
from medkd.networks.zoo import count_parameters
from medkd.progress import warn
from medkd.tracking import (
    SystemMetrics,
    TrackedRun,
    connect,
    flatten,
    open_run,
    open_sender,
    read_beginning_ms,
    read_run_ids,
    store_errors,
    tracking_uri,
    write_run_ids,
)
from medkd.training.cohorts import node_record
from medkd.training.dataset_tracking import DIGEST_TAG
from medkd.training.evaluation import ENSEMBLE
from medkd.training.training_set import TrainingSet

PARENT = "parent"


class CohortTracker:
    """Writes parameters, curves and files of a training run; goes on in the same runs on resume.

    Nothing here waits for the store but the beginning, and the end for some seconds: what is logged
    is handed to a sender, and waits in the run's folder while the store is away.

    Raises:
        TrackingError: the store does not answer, and the run is a new one. A resumed run goes on.
        OutputError: the run's folder cannot be written.
    """

    def __init__(self, config: Config, graph: Graph, cohort: Cohort, data: TrainingSet) -> None:
        self._config = config
        folder, uri = config.run_folder, tracking_uri(config)
        known = read_run_ids(folder, uri)
        run_ids = _open_runs(config, graph, data, known)
        self._sender = open_sender(config)
        self._parent = TrackedRun(run_ids[PARENT], self._sender)
        self._nested = {
            node.name: TrackedRun(run_ids[node.name], self._sender) for node in graph.nodes
        }
        self._system: SystemMetrics | None = None
        try:
            for run in (self._parent, *self._nested.values()):
                run.set_status("RUNNING")
            new = {name for name, run_id in run_ids.items() if known.get(name) != run_id}
            if PARENT in new:
                self._log_experiment(config, data)
            for node in graph.nodes:
                if node.name in new:
                    self._log_network(
                        config, graph, node, count_parameters(cohort.alone(node.name))
                    )
            if new:
                # Only now: a run that is noted is never told of its beginning again.
                write_run_ids(folder, uri, run_ids)
        except BaseException:
            self._sender.close()
            raise
        if config.mlflow.system_metrics:
            self._system = SystemMetrics(self._parent, read_beginning_ms(folder))

    @property
    def run_id(self) -> str:
        """Id of the parent run."""
        return self._parent.run_id

    def _log_experiment(self, config: Config, data: TrainingSet) -> None:
        content = config.resolved()
        counts = {"data_counts": dict(data.counts())}
        self._parent.log_params({**flatten(content), **flatten(counts)})
        for name in ("config.yaml", "method.yaml", "method.svg", "method.png"):
            self._parent.log_file(config.run_folder / name)
        self._parent.log_file(config.splits_file)
        if (config.run_folder / REPORT_NAME).exists():
            self._parent.log_file(config.run_folder / REPORT_NAME)

    def _log_network(self, config: Config, graph: Graph, node: Node, parameters: int) -> None:
        links = [link for link in graph.links if link.learner == node.name]
        self._nested[node.name].log_params(
            {
                "role": node.role,
                "deployed": node.name in graph.deployed,
                "parameters": parameters,
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

    def log_rho(self, rho: float) -> None:
        """Log the time of a joint step over that of all networks alone."""
        self._parent.log_metrics({"rho": rho}, 0)

    def log_result(self, best_epoch: int, best: Mapping[str, Mapping[str, float]]) -> None:
        """Log what the chosen epoch reached on validation images, and the networks' weights."""
        self._parent.log_metrics({"best_epoch": best_epoch}, best_epoch)
        for name, values in best.items():
            metrics = {f"best/{metric}": value for metric, value in values.items()}
            run = self._nested.get(name)
            if run is not None:
                run.log_metrics(metrics, best_epoch)
            self._parent.log_metrics(
                {f"{metric}/{name}": value for metric, value in metrics.items()}, best_epoch
            )
        if not self._config.mlflow.log_checkpoints:
            return
        for name, run in self._nested.items():
            weights = self._config.run_folder / "networks" / f"{name}.safetensors"
            # A mean of others' predictions has no weights.
            if weights.exists():
                run.log_file(weights, "checkpoint")

    def log_steps(
        self,
        step: int,
        figures: Mapping[str, float],
        networks: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Log what happened lately within an epoch; these curves are over steps, not epochs.

        Args:
            step: how many steps the run has done, all epochs together.
            figures: of the whole run, such as ``images_per_s``.
            networks: of each network, such as its ``learning_rate`` and its loss terms.

        MLflow gets them as ``step/images_per_s`` and, in the network's own run,
        ``step/learning_rate``; the parent as ``step/learning_rate/student_0``.
        """
        parent = {f"step/{name}": value for name, value in figures.items()}
        for network, values in networks.items():
            own = {f"step/{name}": value for name, value in values.items()}
            parent |= {f"{name}/{network}": value for name, value in own.items()}
            self._nested[network].log_metrics(own, step)
        self._parent.log_metrics(parent, step)

    def finish(self, status: str) -> None:
        """End every run, and wait some seconds for the store to take what was logged."""
        if self._system is not None:
            self._system.stop()
        try:
            for run in (*self._nested.values(), self._parent):
                run.set_status(status)
        finally:
            self._sender.close()


def _open_runs(
    config: Config, graph: Graph, data: TrainingSet, known: Mapping[str, str]
) -> dict[str, str]:
    """Ids of the parent run and of each network's: those ``known``, or of new runs."""
    names = [PARENT, *(node.name for node in graph.nodes)]
    source = {"mlflow.source.name": "medkd train", "mlflow.source.type": "LOCAL"}
    tags = {
        "medkd.version": __version__,
        "medkd.method": graph.method,
        DIGEST_TAG: data.digest,
        "medkd.synthetic": str(data.synthetic).lower(),
        "medkd.research_use_only": "true",
        "medkd.allowed_leakage": ", ".join(config.data.allow_leakage) or "none",
        **source,
    }
    uri = tracking_uri(config)
    try:
        client, experiment = connect(config)
        with store_errors(uri):
            run_ids = {
                PARENT: open_run(
                    client, experiment, config.run_name, run_id=known.get(PARENT), tags=tags
                )
            }
            client.log_inputs(run_ids[PARENT], [data.mlflow_dataset()])
            for node in graph.nodes:
                run_ids[node.name] = open_run(
                    client,
                    experiment,
                    f"{config.run_name}: {node.name}",
                    run_id=known.get(node.name),
                    parent_id=run_ids[PARENT],
                    tags={"medkd.role": node.role, "medkd.method": graph.method, **source},
                )
    except TrackingError as error:
        # A file of one's own that cannot be used is no server that will be back.
        if uri.startswith("sqlite:") or not all(name in known for name in names):
            raise
        warn(f"{error.where}: {error.what}. The run goes on; what is logged waits in its folder.")
        return dict(known)
    return run_ids


def _told(link: Link) -> str:
    on = "" if link.learner_place == "logits" else f" on {link.learner_place}"
    temperature = "" if link.temperature is None else f", T={link.temperature:g}"
    ramp = "" if link.ramp is None else f", {link.ramp}"
    return f"{link.loss}{on}{temperature}, weight {link.weight:g}{ramp}"
