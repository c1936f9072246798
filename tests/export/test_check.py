from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medkd.errors import ModelPackageError
from medkd.export.check import drawn_tiles, largest_difference, reference
from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage
from medkd.files import sha256_of_file
from medkd.inference.package import load_package


def said(*values, embeddings=None):
    one = {"probabilities": np.array([values], np.float32)}
    return {"a": one if embeddings is None else one | {"embeddings": np.array([embeddings])}}


@pytest.mark.parametrize(
    ("expected", "found", "apart"),
    [
        (said(0.25, 0.75), said(0.25, 0.75), 0),
        (said(0.25, 0.75), said(0.375, 0.625), 0.125),
        # A tenth of the largest embedding, 20.
        (said(0.5, embeddings=[20.0, 1]), said(0.5, embeddings=[18.0, 1]), 0.1),
        (said(0.5), said(math.nan), math.inf),
        (said(0.5), said(0.5, 0.5), math.inf),
        (said(0.5), said(0.5, embeddings=[1.0]), math.inf),
        (said(0.5), {"b": said(0.5)["a"]}, math.inf),
    ],
)
def test_largest_difference(expected, found, apart):
    assert largest_difference(expected, found) == pytest.approx(apart)


def test_tiles_are_always_the_same_and_differ_from_one_another():
    tiles = drawn_tiles(64, 1.0)
    assert tiles.shape == (20, 64, 64, 3)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, drawn_tiles(64, 1.0))
    assert len({tile.tobytes() for tile in tiles}) == 20


@pytest.mark.parametrize(("size_px", "mpp"), [(96, 0.5), (32, 4.0)])
def test_tiles_are_of_the_model_s_size(size_px, mpp):
    assert drawn_tiles(size_px, mpp).shape == (20, size_px, size_px, 3)


def test_the_reference_is_torch(model, trained):
    held = reference(load_package(model))
    assert held.of == "torch"
    expected = trained.probabilities(held.tiles)
    for name, values in expected.items():
        np.testing.assert_allclose(held.said[name]["probabilities"], values, atol=1e-6)


def test_what_torch_cannot_build_is_held_against_its_own_onnx(make_model, trained, tmp_path):
    folder = make_model(tmp_path / "model")
    package = load_package(folder)
    students = [s.model_dump() | {"network": "mean of a and b"} for s in package.manifest.students]
    held = reference(load_package(make_model(tmp_path / "other", students=students)))
    assert held.of == "the ONNX students of the package"
    expected = trained.probabilities(held.tiles)
    np.testing.assert_allclose(
        held.said["student_1"]["probabilities"], expected["student_1"], atol=1e-4
    )


def test_an_onnx_that_is_not_of_the_weights_is_refused(make_model, model, tmp_path):
    """The reference does not come from the file that is exported."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    path = folder / "students" / "student_0.safetensors"
    weights = {name: value.copy() for name, value in load_file(path).items()}
    bias = next(name for name, value in weights.items() if value.shape == (2,))
    weights[bias] += np.array([0, 1], np.float32)
    before = sha256_of_file(path)
    save_file(weights, path)
    manifest = folder / "model.json"
    manifest.write_text(manifest.read_text().replace(before, sha256_of_file(path)))
    with pytest.raises(ModelPackageError) as error:
        run_export_stage(folder, ExportKind.ONNX, tmp_path / "out")
    assert str(error.value).startswith(
        f"{folder}: as one ONNX model its students differ from torch by up to 0."
    )
    assert "0.0001 is allowed. Nothing was written." in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
