"""How fast polyps are found: students against their teacher, and a joint step against its parts.

    python pipelines/benchmarks/detection.py                            # all cores, wall clock
    python pipelines/benchmarks/detection.py --clock cpu --threads 1    # on a machine in use

Teacher and students of a configuration (configs/polyp.yaml unless --config says otherwise) with
random weights, on noise: what they cost does not depend on what they have learnt. Found boxes are
selected as the package does it. All ways take turns in several rounds, after one that does not
count; figures are medians over the rounds, ratios medians of each round's. A joint step is the
forward and backward of the method's cohort, against the sum of the networks' own with their losses
by labels; the matching of anchors is in both. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor

from medkd.config import Config, load_config
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.inference.detector_package import Selection
from medkd.inference.detector_students import DetectorStudents, together
from medkd.networks.zoo import count_parameters
from medkd.training.allocator import keep_freed_memory
from medkd.training.cohorts import build_cohort
from medkd.training.detector_package import detector_onnx

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "polyp.yaml"


def timed(
    ways: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if number:
                taken[name].append(clock() - began)
    return taken


def ratio(taken: Mapping[str, Sequence[float]], above: str, below: str | Sequence[str]) -> float:
    """Median over the rounds of one way's time over another's, or over the sum of several."""
    parts = [below] if isinstance(below, str) else below
    return statistics.median(
        one / sum(taken[part][number] for part in parts) for number, one in enumerate(taken[above])
    )


def finding(config: Config, cohort: Cohort, batch: int) -> dict[str, Callable[[], Any]]:
    """Teacher and students, by onnxruntime and by torch, from pixels to final boxes."""
    settings = config.detection
    selection = Selection(least_score=settings.least_score, nms_iou=settings.nms_iou, most=100)
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch, settings.image_px, settings.image_px, 3), np.uint8
    )
    students = list(cohort.graph.deployed)

    def in_onnx(names: Sequence[str]) -> Callable[[], Any]:
        models = {
            name: detector_onnx(cohort.alone(name), cohort.task, settings.image_px)
            for name in names
        }
        sessions = DetectorStudents(models, "benchmark")
        return lambda: together(
            sessions(pixels), "dense", selection=selection, fusion_iou=settings.fusion_iou
        )

    def in_torch(names: Sequence[str]) -> Callable[[], Any]:
        networks = [cohort.alone(name).eval() for name in names]

        @torch.no_grad()
        def find() -> Any:
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            found = [cohort.task.predictions(network(images)) for network in networks]
            return together(found, "dense", selection=selection, fusion_iou=settings.fusion_iou)

        return find

    return {
        "students, onnxruntime": in_onnx(students),
        "teacher, onnxruntime": in_onnx(["teacher"]),
        "students, torch": in_torch(students),
        "teacher, torch": in_torch(["teacher"]),
    }


def stepping(config: Config, cohort: Cohort, batch: int) -> dict[str, Callable[[], Any]]:
    """A joint step, and each network's own."""
    cohort = cohort.train()
    side = config.detection.image_px
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = cohort.task.example_labels(batch, torch.device("cpu"))

    def backward(loss: Tensor) -> None:
        cohort.zero_grad(set_to_none=True)
        loss.backward()

    def alone(name: str) -> Callable[[], None]:
        network = cohort.alone(name)

        def step() -> None:
            targets = cohort.task.targets(labels)
            backward(cohort.task.supervised_loss(network(images), targets))

        return step

    networks = [node.name for node in cohort.graph.nodes if node.is_network]
    return {
        "joint step": lambda: backward(
            torch.stack(list(cohort(images, labels).terms.values())).sum()
        ),
        **{f"{name} alone": alone(name) for name in networks},
        "matching": lambda: cohort.task.targets(labels),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, default=CONFIG)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of it")
    add("--rounds", type=int, default=10)
    add("--batch", type=int, default=8, help="images")
    add("--threads", type=int, help="of torch; default: all cores")
    add("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, tuple(arguments.set))
    graph = expand(load_method(config.train.method), len(config.train.students))
    load_before = os.getloadavg()[0]
    keep_freed_memory()  # As the training stage does.
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    batch = arguments.batch
    cohort = build_cohort(config, graph)
    cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = timed(stepping(config, cohort, batch), arguments.rounds, clock)
    found = timed(finding(config, cohort, batch), arguments.rounds, clock)
    for name, seconds in (found | steps).items():
        median = statistics.median(seconds)
        print(f"{name:<26}{1e3 * median / batch:9.1f} ms an image {batch / median:9.1f} images/s")
    parts = [name for name in steps if name.endswith(" alone")]
    figures = {
        "clock": arguments.clock,
        "threads": torch.get_num_threads(),
        "load_before": round(load_before, 1),
        "image_px": config.detection.image_px,
        "parameters": {
            node.name: count_parameters(cohort.alone(node.name)) for node in graph.nodes
        },
        "students_images_per_s": round(
            batch / statistics.median(found["students, onnxruntime"]), 1
        ),
        "teacher_images_per_s": round(batch / statistics.median(found["teacher, onnxruntime"]), 1),
        "students_vs_teacher": round(
            ratio(found, "teacher, onnxruntime", "students, onnxruntime"), 2
        ),
        "students_vs_teacher_in_torch": round(
            ratio(found, "teacher, torch", "students, onnxruntime"), 2
        ),
        "rho": round(ratio(steps, "joint step", parts), 3),
        "matching_share": round(ratio(steps, "matching", "joint step"), 4),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
