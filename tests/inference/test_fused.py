from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from medkd.inference.fused import fused, opsets
from medkd.inference.package import load_package
from medkd.inference.students import Students


def scaled(by: float, *, opset: int = 18, takes: str = "tiles") -> onnx.ModelProto:
    """uint8 N x 1 to ``by`` times it; an initializer and inner names that all models share."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [takes], ["inner"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["inner", "by"], ["probabilities"]),
        ],
        "scaled",
        [helper.make_tensor_value_info(takes, TensorProto.UINT8, ["n", 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("by", TensorProto.FLOAT, [], [by])],
    )
    opset_imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opset_imports, ir_version=10)


def test_each_model_says_what_it_said_alone():
    model = fused({"half": scaled(0.5), "third": scaled(1 / 3)})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert [one.name for one in session.get_inputs()] == ["tiles"]
    assert [one.name for one in session.get_outputs()] == [
        "half_probabilities",
        "third_probabilities",
    ]
    half, third = session.run(None, {"tiles": np.array([[6], [255]], np.uint8)})
    assert half.tolist() == [[3.0], [127.5]]
    np.testing.assert_allclose(third, [[2.0], [85.0]])


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "there is no model"),
        ({"a": scaled(1.0), "b": scaled(1.0, opset=19)}, "different opsets"),
        ({"a": scaled(1.0), "b": scaled(1.0, takes="images")}, "b takes something else"),
    ],
)
def test_what_cannot_be_fused(models, message):
    with pytest.raises(ValueError, match=message):
        fused(models)


def test_students_of_different_opsets_have_sessions_of_their_own(make_package, tmp_path):
    package = load_package(make_package(tmp_path))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    together = Students(package)(tiles)
    path = tmp_path / "students" / "student2.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 19
    path.write_bytes(model.SerializeToString())
    assert opsets(onnx.load(path)) == (("", 19),)
    apart = Students(package)(tiles)
    assert list(apart.probabilities) == ["student1", "student2"]
    for name, values in together.probabilities.items():
        np.testing.assert_array_equal(apart.probabilities[name], values)
