from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from medkd.errors import ConfigError, ModelPackageError
from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("openvino") / "out"
    return run_export_stage(model, ExportKind.OPENVINO, out)


def test_students_give_torch_s_probabilities(exported, trained, tiles):
    import openvino

    expected = trained.probabilities(tiles)
    for name, values in expected.items():
        model = openvino.Core().compile_model(
            exported.folder / f"{name}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = model(tiles)
        np.testing.assert_allclose(found["probabilities"], values, atol=1e-4)
        assert found["embeddings"].shape == (5, 32)


def test_weights_keep_float32(exported, trained):
    """A ResNet-10 of width 0.0625; batch norms are folded into convolutions, so a little less."""
    parameters = sum(p.numel() for p in trained.networks["student_0"].parameters())
    assert dict(exported.files)["student_0.bin"] > 0.9 * 4 * parameters


def test_the_record(exported):
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["kind"] == "openvino"
    assert record["agreement"]["of"] == "torch"
    assert exported.lines[0] == f"OpenVINO {record['openvino']}, weights in float32."


def test_an_ir_that_differs_too_much_is_refused(model, tmp_path, monkeypatch):
    """OpenVINO adds in another order than torch, so its last digits differ."""
    pytest.importorskip("openvino")
    monkeypatch.setattr("medkd.export.check.TOLERANCE", 0.0)
    with pytest.raises(ModelPackageError, match="as OpenVINO IR its students differ from torch"):
        run_export_stage(model, ExportKind.OPENVINO, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_openvino(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError) as error:
        run_export_stage(model, ExportKind.OPENVINO, tmp_path / "out")
    assert str(error.value) == (
        "--to openvino: OpenVINO is not installed. Install it: pip install 'medkd[openvino]'."
    )
    assert list(tmp_path.iterdir()) == []
