from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from medkd.errors import ModelPackageError
from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage
from medkd.inference.infer_stage import infer_slides
from medkd.inference.mlflow_model import SIGNATURE
from medkd.inference.package import load_package

# Prints what the model says of a slide, whose code that was, and what it needed.
CALL = """
import json, sys
from importlib.metadata import packages_distributions
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
calls = model.predict({"slide": sys.argv[2]}).to_dict("records")
import medkd
needed = {name.partition(".")[0] for name in sys.modules}
known = packages_distributions()
print(json.dumps({
    "calls": calls,
    "medkd": medkd.__file__,
    "modules": sorted(needed),
    "distributions": sorted({d for name in needed for d in known.get(name, [])}),
}))
"""


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return run_export_stage(model, ExportKind.MLFLOW, tmp_path_factory.mktemp("mlflow") / "out")


@pytest.fixture(scope="module")
def probability(model, slide, tmp_path_factory):
    """What ``medkd infer`` says."""
    summary = infer_slides([slide], load_package(model), tmp_path_factory.mktemp("infer"))
    assert summary.rows[0].probability is not None
    return summary.rows[0].probability


def test_it_calls_a_slide_elsewhere_with_its_own_code(exported, slide, probability, tmp_path):
    """In a process that does not see this checkout, as where medkd is not installed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", CALL, exported.folder, slide],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    [call] = told["calls"]
    assert call["probability_msi"] == pytest.approx(probability, abs=1e-6)
    assert call["slide_id"] == "drawn"
    assert call["error"] == ""
    assert told["medkd"] == str(exported.folder / "code" / "medkd" / "__init__.py")
    assert not {"torch", "monai"} & set(told["modules"])
    # Of what medkd asks for, all that a call imported must be installed where the model goes.
    asked = {plain(re.match(r"[A-Za-z0-9_.-]+", line)[0]) for line in metadata.requires("medkd")}
    needed = asked & {plain(name) for name in told["distributions"]}
    assert {"onnxruntime", "numpy", "openslide-python"} <= needed
    assert needed <= requirements(exported.folder)


def plain(name):
    return name.lower().replace("_", "-")


def requirements(folder):
    lines = (folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==\d[\w.+]*", line) for line in lines)
    return {plain(line.partition("==")[0]) for line in lines}


def test_requirements_are_pinned_and_without_torch(exported):
    names = requirements(exported.folder)
    assert {"mlflow", "onnxruntime", "openslide-python", "openslide-bin", "pydantic"} <= names
    assert not {"torch", "monai", "medkd", "lightning-fabric"} & names


def test_the_signature_is_slides_in_calls_out(exported):
    assert mlflow.models.get_model_info(str(exported.folder)).signature == SIGNATURE


def test_no_path_of_this_machine_is_written_down(exported, model):
    described = yaml.safe_load((exported.folder / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["artifacts"] == {
        "medkd_package": {"path": "artifacts/model", "uri": "artifacts/model"}
    }
    for path in exported.folder.glob("*"):
        if path.is_file():
            assert str(model.parent) not in path.read_text()


def test_a_table_of_slides_and_a_slide_that_cannot_be_used(exported, slide, probability, tmp_path):
    loaded = mlflow.pyfunc.load_model(str(exported.folder))
    table = pd.DataFrame({"slide": [str(slide), str(tmp_path / "none.svs")], "mpp": [0.5, None]})
    calls = loaded.predict(table)
    assert calls["probability_msi"][0] == pytest.approx(probability, abs=1e-6)
    assert calls["call"][1] == "no result"
    assert "none.svs" in calls["error"][1]


def test_a_package_without_operating_point_is_refused(make_model, tmp_path):
    folder = make_model(tmp_path / "model", operating_point=None)
    with pytest.raises(ModelPackageError, match="has no operating point"):
        run_export_stage(folder, ExportKind.MLFLOW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_served_on_loopback_and_queried(exported, slide, probability, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # MLflow starts uvicorn by its name, as in an environment that is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["-m", "mlflow", "models", "serve", "-m", exported.folder, "--env-manager", "local"]
    server = subprocess.Popen(
        [sys.executable, "-P", *command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path, env={**os.environ, "PATH": path}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping")
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.5)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_records": [{"slide": str(slide)}]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            [call] = json.load(answer)["predictions"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert call["probability_msi"] == pytest.approx(probability, abs=1e-6)
    assert call["call"] in {"MSS", "MSI suspected", "indeterminate"}
    assert np.isfinite(call["lower"])
