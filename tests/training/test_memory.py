"""Memory that does not suffice, for real: the address space of a process is limited."""

from __future__ import annotations

import json
import os
import re
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

accumulate = int(sys.argv[2])
small = train(1, 4)  # what is made once in a process, now
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * MIB,) * 2)
print(json.dumps({"small": small, "told": train(accumulate, 384)}))
"""


def in_little_memory(mebibytes: int, accumulate: int = 1) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mebibytes), str(accumulate)],
        # Each tensor in pages of its own, which go back when it is freed: what fits must not
        # depend on what lay where before.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_what_it_says_would_fit_does() -> None:
    found = in_little_memory(1000)
    assert found["small"] == "done"
    told = re.fullmatch(
        r"train\.batch_size: 384 tiles in a forward do not fit into the memory of cpu\. "
        r"(\d+) fit: set train\.accumulate to (\d+) \(the same step in (\d+) forwards; the run "
        r"goes on where it was saved\), or train\.batch_size to (\d+)\. train\.recompute makes a "
        r"forward smaller, too, at the price of time\.",
        found["told"],
    )
    assert told, found
    fitting, accumulate, forwards, batch_size = map(int, told.groups())
    assert fitting == batch_size < 384
    assert accumulate == forwards == 384 // fitting
    # As a user goes on: another process, with the setting that was told.
    assert in_little_memory(1000, accumulate) == {"small": "done", "told": "done"}
