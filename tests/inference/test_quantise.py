from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package, write_package
from medkd.inference.quantise import _take_bytes, quantise
from medkd.networks.zoo import build_network
from medkd.slides.synthetic import SlideSpec, draw_slide
from medkd.training.export import export_onnx
from tests.inference.conftest import STUDENTS, manifest_content, student_onnx

SIDE_PX = 64
MEAN = np.array([0.5, 0.4, 0.3], np.float32)
STD = np.array([0.25, 0.2, 0.1], np.float32)


def of_red(reds) -> np.ndarray:
    tiles = np.zeros((len(reds), 8, 8, 3), np.uint8)
    tiles[..., 0] = np.asarray(reds, np.uint8)[:, None, None]
    return tiles


@pytest.fixture(scope="module")
def red_student() -> bytes:
    """A student whose probability of MSI is 0.6 * red / 255 + 0.2, its ranges set on 0 to 255."""
    return quantise(student_onnx(0.6, 0.2), [of_red([0, 128]), of_red([255, 40])])


def msi(model: bytes, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model)
    return session.run(["probabilities"], {"tiles": tiles})[0][:, 1]


def test_probabilities_are_within_a_step_of_the_formula(red_student):
    """Means are whole numbers of 0 to 255 and lose nothing; outputs go in steps of 0.8 / 255."""
    reds = np.arange(0, 256, 5)
    found = msi(red_student, of_red(reds))
    np.testing.assert_allclose(found, 0.6 * reds / 255 + 0.2, atol=0.8 / 255)
    steps = found / (0.8 / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_what_lies_outside_the_calibration_is_cut_off():
    narrow = quantise(student_onnx(0.6, 0.2), [of_red([0, 100])])
    np.testing.assert_allclose(msi(narrow, of_red([200])), msi(narrow, of_red([100])), atol=1e-6)


def test_the_ports_are_the_same(red_student):
    model = onnx.load_from_string(red_student)
    kinds = {one.data_type for one in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert [one.name for one in model.graph.input] == ["tiles"]
    assert [one.name for one in model.graph.output] == ["probabilities"]
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]


def run(model: bytes, tiles: np.ndarray, output: str = "probabilities") -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run([output], {"tiles": tiles})[0]


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """Tissue, uint8 64 x 64 x 64 x 3."""
    slide = draw_slide(SlideSpec("MSI", seed=3, width_px=512, height_px=512, mpp=1.0))
    return slide.reshape(8, SIDE_PX, 8, SIDE_PX, 3).swapaxes(1, 2).reshape(64, SIDE_PX, SIDE_PX, 3)


@pytest.fixture(scope="module")
def student(tiles) -> bytes:
    """A small ResNet of random weights whose batch norms know the tiles."""
    torch.manual_seed(0)
    network = build_network("resnet10", classes=2, width=0.25)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(20):
            network.train()(images)
    return export_onnx(network, SIDE_PX)


@pytest.fixture(scope="module")
def quantised(student, tiles) -> bytes:
    return quantise(student, [tiles[:16], tiles[16:32]])


def test_probabilities_of_tiles_it_was_not_calibrated_on(student, quantised, tiles):
    expected, found = run(student, tiles[32:]), run(quantised, tiles[32:])
    # The tiles must differ for the comparison to say something.
    assert expected[:, 1].std() > 0.01
    assert np.abs(found - expected).max() < 0.03
    assert abs((found - expected)[:, 1].mean()) < 0.01
    assert np.corrcoef(found[:, 1], expected[:, 1])[0, 1] > 0.9
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_embeddings_come_along(student, quantised, tiles):
    expected = run(student, tiles[32:], "embeddings")
    found = run(quantised, tiles[32:], "embeddings")
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.15 * np.abs(expected).mean()


def test_weights_are_int8_with_a_scale_for_each_channel(student, quantised):
    model = onnx.load_from_string(quantised)
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 12
    for node in convolutions:
        read = made_by[node.input[1]]
        assert read.op_type == "DequantizeLinear"
        weight, scale = values[read.input[0]], values[read.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        # Seven bits, so that sums do not overflow where there is no VNNI.
        assert np.abs(weight.astype(int)).max() <= 64
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
    assert len(quantised) < 0.3 * len(student)


def test_the_same_tiles_give_the_same_bytes(student, quantised, tiles):
    assert quantise(student, [tiles[:16], tiles[16:32]]) == quantised


@pytest.mark.parametrize("batches", [[], [np.empty((0, SIDE_PX, SIDE_PX, 3), np.uint8)]])
def test_without_a_tile(student, batches):
    with pytest.raises(ValueError, match="no tile to calibrate on"):
        quantise(student, batches)


def normalising(pads: int, *, by: float = 255.0, first: str = "Div") -> onnx.ModelProto:
    """uint8 tiles, divided, less the mean, over the spread, through one 3 x 3 convolution."""
    random = np.random.default_rng(0)
    constants = {
        "by": np.array(by, np.float32),
        "mean": MEAN.reshape(1, 3, 1, 1),
        "std": STD.reshape(1, 3, 1, 1),
        "weight": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bias": random.normal(size=4).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["tiles"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node(first, ["floats", "by"], ["shares"]),
            helper.make_node("Sub", ["shares", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["images"]),
            helper.make_node(
                "Conv", ["images", "weight", "bias"], ["probabilities"], pads=[pads] * 4
            ),
        ],
        "normalising",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_bytes_go_into_the_first_convolution():
    tiles = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for pads in (0, 1):
        expected = run(normalising(pads).SerializeToString(), tiles)
        model = _take_bytes(normalising(pads))
        assert [node.op_type for node in model.graph.node] == [
            "Transpose",
            "DequantizeLinear",
            "Conv",
        ]
        onnx.checker.check_model(model)
        # 0.4 of 255, the mean of the three means.
        zero = next(one for one in model.graph.initializer if one.name == "tiles_zero")
        assert numpy_helper.to_array(zero) == 102
        found = run(model.SerializeToString(), tiles)
        inside = slice(pads, -pads or None)
        np.testing.assert_allclose(
            found[:, :, inside, inside], expected[:, :, inside, inside], atol=1e-4
        )


def test_a_model_that_begins_otherwise_is_left_as_it_is():
    for model in (normalising(0, first="Mul"), onnx.load_from_string(student_onnx(1.0, 0.0))):
        before = model.SerializeToString()
        assert _take_bytes(model).SerializeToString() == before


def test_a_package_of_quantised_students_is_run_as_it_is(tmp_path, flat_slide):
    """The slide's flat colours give 0.68 by student1 and 0.64 by student2, as in float32."""
    colours = np.arange(0, 256, 5, np.uint8)
    tiles = np.zeros((len(colours), 64, 64, 3), np.uint8)
    tiles[..., 0] = colours[:, None, None]
    files = {}
    for name, formula in STUDENTS.items():
        files[f"students/{name}.onnx"] = quantise(student_onnx(*formula), [tiles])
        files[f"students/{name}.safetensors"] = save({"slope": np.array(formula)})
    write_package(tmp_path, manifest_content(STUDENTS), files)
    package = load_package(tmp_path)
    score = infer_slide(flat_slide, package, Students(package)).score
    assert score.students["student1"] == pytest.approx(0.68, abs=0.02)
    assert score.students["student2"] == pytest.approx(0.64, abs=0.02)
    assert score.tiles == 20


def test_it_says_nothing(student, tiles, capfd, caplog):
    quantise(student, [tiles[:4]])
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
