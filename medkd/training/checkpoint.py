"""Checkpoints that are whole or absent, and the state a run resumes from."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from medkd.errors import StageError, TrainingError
from medkd.files import (
    atomic_path,
    make_folder,
    remove_stale_temporaries,
    write_bytes,
    write_json,
)


@dataclass
class Progress:
    """How far a run is: what a resume needs beside the tensors.

    Attributes:
        epochs_done: epochs that are finished.
        steps_done: steps of the epoch after these.
        best_epoch: the epoch (from 1) chosen so far; 0 before the first.
        best_cost: what the deployed ensemble reached on validation images at that epoch, by the
            task's criterion: the lower the better.
        curves: one row per epoch, network and metric.
        seconds: time spent training, all processes together.
        rho: time of a joint step over that of the networks' own; None where it was not measured.
        trained_by: the software of its steps, in order; more than one where it changed on the way.
    """

    epochs_done: int = 0
    steps_done: int = 0
    best_epoch: int = 0
    best_cost: float = float("inf")
    curves: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    rho: float | None = None
    trained_by: list[str] = field(default_factory=list)


def save_checkpoint(folder: Path, identity: str, progress: Progress, state: dict[str, Any]) -> None:
    """Write ``last.pt``; what was last becomes ``previous.pt``.

    Args:
        folder: of the checkpoints.
        identity: of the run's settings and data; a resume compares it.
        progress: see there.
        state: state dictionaries of the cohort, the optimizer and the schedule, and of the epoch.
    """
    make_folder(folder)
    last = folder / "last.pt"
    # In memory first: torch tells a full disk as an internal error, the system tells it plainly.
    content = io.BytesIO()
    torch.save({"identity": identity, "progress": asdict(progress), **state}, content)
    with atomic_path(last) as temporary:
        temporary.write_bytes(content.getbuffer())
        if last.exists():
            last.replace(folder / "previous.pt")


def load_checkpoint(folder: Path, identity: str) -> tuple[Progress, dict[str, Any]] | None:
    """Read the newest whole checkpoint, or None where there is none.

    Raises:
        TrainingError: it belongs to other settings or other data.
    """
    remove_stale_temporaries(folder)
    for name in ("last.pt", "previous.pt"):
        path = folder / name
        if not path.exists():
            continue
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("identity") != identity:
            raise TrainingError(
                "was begun with other settings or other data",
                where=path.parent.parent,
                remedy="Give this run another train.name, or begin anew with --restart.",
            )
        progress = content.pop("progress")
        if "best_log_loss" in progress:  # saved before there was detection
            progress["best_cost"] = progress.pop("best_log_loss")
        return Progress(**progress), content
    return None


def save_networks(folder: Path, networks: dict[str, nn.Module]) -> None:
    """Write each network's weights as safetensors, all of them or none.

    The files are written to a folder of another name, which is then renamed.
    """
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    for name, network in networks.items():
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        write_bytes(temporary / f"{name}.safetensors", save(weights))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def load_network(path: Path, network: nn.Module) -> None:
    """Load weights that :func:`save_networks` wrote into ``network``.

    Raises:
        TrainingError: the file is absent or holds another architecture.
    """
    if not path.exists():
        raise TrainingError(
            "no such weights", where=path, remedy="Run 'medkd train' to its end first."
        )
    weights = load_file(path)
    own = network.state_dict()
    differing = sorted(
        key
        for key in own.keys() | weights.keys()
        if key not in own or key not in weights or own[key].shape != weights[key].shape
    )
    if differing:
        raise TrainingError(
            f"holds another architecture ({len(differing)} tensors differ, such as "
            f"'{differing[0]}')",
            where=path,
            remedy="Set train.teacher and train.students as they were in training.",
        )
    network.load_state_dict(weights)


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Where the weights of an epoch (from 1) lie while it is the best."""
    return folder / f"epoch-{epoch:03d}"


def keep_only(folder: Path, epoch: int) -> None:
    """Remove the weights of every epoch but ``epoch``."""
    for other in folder.glob("epoch-*"):
        if other != epoch_folder(folder, epoch):
            shutil.rmtree(other, ignore_errors=True)


def write_completion(folder: Path, content: dict[str, Any]) -> None:
    """Mark a run as finished."""
    write_json(folder / "training.json", content)


def read_completion(run_folder: Path) -> dict[str, Any]:
    """What a finished run wrote about itself.

    Raises:
        StageError: the run is not finished.
    """
    path = run_folder / "training.json"
    if not path.exists():
        raise StageError(
            "holds no finished training",
            where=run_folder,
            remedy="Run 'medkd train' with the same configuration first; it goes on where it "
            "stopped.",
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def forget(run_folder: Path) -> None:
    """Remove the state of an earlier run, so that the next one begins anew."""
    for name in ("checkpoints", "networks", "model", "predictions.parts", "embeddings"):
        shutil.rmtree(run_folder / name, ignore_errors=True)
    for name in (
        "training.json",
        "mlflow.json",
        "mlflow-outbox.jsonl",
        "curves.csv",
        "predictions.parquet",
    ):
        (run_folder / name).unlink(missing_ok=True)
