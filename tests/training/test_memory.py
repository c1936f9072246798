"""Memory that does not suffice, for real: the address space of a process is limited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, sys
import torch
from medkd.config import NetworkConfig, TrainConfig
from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import TrainingError
from medkd.networks.zoo import configured_network
from medkd.tasks.classification import Classification
from medkd.training.devices import make_fabric
from medkd.training.engine import set_up
from medkd.training.loop import train_epoch

torch.set_num_threads(1)
MIB = 2**20

def train(accumulate, batch, recompute=False):
    config = TrainConfig(device="cpu", batch_size=batch, accumulate=accumulate, epochs=1,
                         recompute=recompute)
    graph = expand(load_method("kd_ml"), 2)
    network = NetworkConfig(network="resnet10", width=0.25)
    networks = {n.name: configured_network(network, classes=2, where="") for n in graph.nodes}
    engine = set_up(Cohort(graph, networks, Classification()), config, 1, make_fabric(config)[0])
    images, labels = torch.rand(batch, 3, 128, 128), torch.arange(batch) % 2
    try:
        train_epoch(engine, [{"image": images, "label": labels}], epoch=0)
    except TrainingError as error:
        return str(error)
    return "done"

small = train(1, 4)  # what is made once in a process, now
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * MIB,) * 2)
told = train(1, 96)
parts = int(told.split("train.accumulate to ")[1].split()[0]) if "accumulate to" in told else 0
print(json.dumps({"small": small, "told": told, "again": train(parts, 96) if parts else ""}))
"""


def in_little_memory(mebibytes: int) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mebibytes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_what_it_says_would_fit_does() -> None:
    found = in_little_memory(250)
    assert found["small"] == "done"
    assert found["told"].startswith(
        "train.batch_size: 96 tiles in a forward do not fit into the memory of cpu. "
    ), found
    assert found["told"].endswith(
        "train.recompute makes a forward smaller, too, at the price of time."
    )
    assert found["again"] == "done"
