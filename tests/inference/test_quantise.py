from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from medkd.inference.quantise import quantise
from tests.inference.conftest import student_onnx


def of_red(reds) -> np.ndarray:
    tiles = np.zeros((len(reds), 8, 8, 3), np.uint8)
    tiles[..., 0] = np.asarray(reds, np.uint8)[:, None, None]
    return tiles


@pytest.fixture(scope="module")
def quantised() -> bytes:
    """A student whose probability of MSI is 0.6 * red / 255 + 0.2, its ranges set on 0 to 255."""
    return quantise(student_onnx(0.6, 0.2), [of_red([0, 128]), of_red([255, 40])])


def msi(model: bytes, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model)
    return session.run(["probabilities"], {"tiles": tiles})[0][:, 1]


def test_probabilities_are_within_a_step_of_the_formula(quantised):
    """Means are whole numbers of 0 to 255 and lose nothing; outputs go in steps of 0.8 / 255."""
    reds = np.arange(0, 256, 5)
    found = msi(quantised, of_red(reds))
    np.testing.assert_allclose(found, 0.6 * reds / 255 + 0.2, atol=0.8 / 255)
    steps = found / (0.8 / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_what_lies_outside_the_calibration_is_cut_off():
    narrow = quantise(student_onnx(0.6, 0.2), [of_red([0, 100])])
    np.testing.assert_allclose(msi(narrow, of_red([200])), msi(narrow, of_red([100])), atol=1e-6)


def test_weights_are_int8_and_the_ports_are_the_same(quantised):
    model = onnx.load_from_string(quantised)
    kinds = {one.data_type for one in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert [one.name for one in model.graph.input] == ["tiles"]
    assert [one.name for one in model.graph.output] == ["probabilities"]
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
