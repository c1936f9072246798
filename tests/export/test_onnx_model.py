from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from medkd.errors import ModelPackageError
from medkd.export.kinds import ExportKind
from medkd.export.onnx_model import fused_onnx
from medkd.export.stage import run_export_stage
from medkd.inference.package import load_package


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return run_export_stage(model, ExportKind.ONNX, tmp_path_factory.mktemp("onnx") / "out")


def outputs(folder, tiles):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"tiles": tiles}), strict=True))


def test_students_give_torch_s_probabilities(exported, trained, tiles):
    found = outputs(exported.folder, tiles)
    expected = trained.probabilities(tiles)
    for name, values in expected.items():
        assert np.ptp(values[:, 1]) > 0.01  # a constant would agree with anything
        np.testing.assert_allclose(found[f"{name}_probabilities"], values, atol=1e-4)
    mean = (expected["student_0"] + expected["student_1"]) / 2
    np.testing.assert_allclose(found["probabilities"], mean, atol=1e-4)


def test_one_tile_gives_what_it_gives_among_others(exported, tiles):
    together, alone = outputs(exported.folder, tiles), outputs(exported.folder, tiles[3:4])
    for name, values in together.items():
        np.testing.assert_allclose(alone[name], values[3:4], atol=1e-5)


def test_embeddings_come_along(exported, trained, tiles):
    found = outputs(exported.folder, tiles)
    assert {name for name in found if name.endswith("embeddings")} == {
        "student_0_embeddings",
        "student_1_embeddings",
    }
    assert found["student_0_embeddings"].shape == (5, 32)  # 512 channels of ResNet-10, by 0.0625


def test_the_file_says_its_opset_and_its_model(exported, model):
    read = onnx.load(exported.folder / "model.onnx")
    assert [(one.domain, one.version) for one in read.opset_import] == [("", 18)]
    props = {one.key: one.value for one in read.metadata_props}
    assert props["model"] == "by-hand 1"
    assert props["model_sha256"] == load_package(model).sha256
    assert props["classes"] == "MSS, MSI"
    assert props["tile"] == "64 px at 1 um/px"
    [tiles] = read.graph.input
    assert tiles.name == "tiles"
    assert tiles.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert exported.lines[0] == "ONNX opset 18, IR version 10."


def test_the_record_says_how_tiles_become_a_call(exported, model):
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["model_sha256"] == load_package(model).sha256
    assert record["opset"] == 18
    assert record["manifest"]["operating_point"]["threshold"] == 0.5
    agreement = record["agreement"]
    assert agreement["of"] == "torch"
    assert agreement["tiles"] == 20
    assert 0 <= agreement["largest_difference"] < agreement["tolerance"] == 1e-4


def test_files_and_sizes_are_told(exported):
    assert [name for name, _ in exported.files] == ["export.json", "model.onnx"]
    assert dict(exported.files)["model.onnx"] == (exported.folder / "model.onnx").stat().st_size


def test_students_of_two_opsets_are_refused(model, monkeypatch):
    load = onnx.load
    later = iter([18, 19])

    def of_opset(path):
        read = load(path)
        read.opset_import[0].version = next(later)
        return read

    monkeypatch.setattr("medkd.export.onnx_model.onnx.load", of_opset)
    with pytest.raises(ModelPackageError) as error:
        fused_onnx(load_package(model))
    assert str(error.value) == (
        f"{model}: has students of the opsets 18 and 19, which one ONNX model cannot hold. "
        "Use the students' own ONNX files, in the package's folder 'students'."
    )
