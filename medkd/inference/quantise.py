"""A student in 8-bit integers: static quantisation by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkd.inference.fused import INPUT

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Where the arithmetic is, and what lies between: rounding anything else would cost accuracy only.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu")

# What the exported students do to tiles before and in their first convolution.
_NORMALISATION = ["Transpose", "Cast", "Div", "Sub", "Div", "Conv"]


def quantise(model: bytes, batches: Iterable[np.ndarray]) -> bytes:
    """Quantise a student: weights as int8 by channel, activations as uint8.

    Jacob et al. 2018, arXiv 1712.05877: real = scale * (integer - zero point), the scale of an
    activation from its least and largest value over the calibration tiles. Weights take 7 of their
    8 bits: without VNNI a processor adds pairs of 8-bit products in 16 bits, which would overflow
    without a word, and a package is to give the same answer on every machine.

    Args:
        model: of the package: ``tiles``, uint8 N x size_px x size_px x 3, to ``probabilities``.
        batches: calibration tiles, likewise.

    Returns:
        A model of the same inputs and outputs, in ONNX's own operators (QuantizeLinear and
        DequantizeLinear around each operator), which runs as integers where the processor can.

    Raises:
        ValueError: there is no tile.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantise_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = (tiles for tiles in batches if len(tiles))
            self._seen = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            tiles = next(self._left, None)
            if tiles is None and not self._seen:
                raise ValueError("there is no tile to calibrate on")
            self._seen += 1
            return None if tiles is None else {INPUT: tiles}

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (
            Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "quantised")
        )
        given.write_bytes(model)
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        onnx.save(_take_bytes(onnx.load(prepared)), prepared)
        quantise_static(
            str(prepared),
            str(quantised),
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _without_unused_domains(quantised)


def _take_bytes(model: ModelProto) -> ModelProto:
    """Let the first convolution take the tiles' bytes, if the model begins by normalising them.

    With ``(x / a - mean) / std = (x - a mean) / (a std)`` the factors go into the convolution's
    weights and bias, and what is left, ``x - z`` with one whole ``z`` for all colours, is how a
    byte of zero point ``z`` and scale 1 is read. Nothing is lost but at a tile's edge: the
    convolution pads with ``z``, which is near to but not each colour's own mean. On small networks
    these steps took more time than all that follows.

    Returns:
        The model, changed; as it was where it begins otherwise.
    """
    from onnx import helper, numpy_helper

    found = _normalisation(model)
    if found is None:
        return model
    transpose, cast, by, less, over, convolution = found
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    names = [by.input[1], less.input[1], over.input[1], *convolution.input[1:]]
    if len(names) != 5 or any(name not in constants for name in names):
        return model
    divisor, mean, std = (constants[name].astype(np.float64).reshape(-1) for name in names[:3])
    mean_bytes = np.broadcast_to(divisor * mean, 3)
    zero = round(float(mean_bytes.mean()))
    weight = constants[names[3]] / (divisor * std).reshape(1, -1, 1, 1)
    shift = (weight * (zero - mean_bytes).reshape(1, -1, 1, 1)).sum((1, 2, 3))
    bias = constants[names[4]] + shift
    new = {
        f"{INPUT}_scale": np.array(1, np.float32),
        f"{INPUT}_zero": np.array(zero, np.uint8),
        f"{INPUT}_weight": weight.astype(np.float32),
        f"{INPUT}_bias": bias.astype(np.float32),
    }
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in new.items())
    scale_name, zero_name, weight_name, bias_name = new
    read = helper.make_node(
        "DequantizeLinear",
        [transpose.output[0], scale_name, zero_name],
        [over.output[0]],
        name=f"{INPUT}_read",
    )
    convolution.input[1], convolution.input[2] = weight_name, bias_name
    graph.node.insert(list(graph.node).index(convolution), read)
    for node in (cast, by, less, over):
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for constant in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(constant)
    return model


def _normalisation(model: ModelProto) -> list[NodeProto] | None:
    """The nodes of :data:`_NORMALISATION` that follow the input, each with one reader alone."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chain = [node for node in readers.get(INPUT, []) if node.op_type == _NORMALISATION[0]]
    while 0 < len(chain) < len(_NORMALISATION):
        following = readers.get(chain[-1].output[0], [])
        if len(following) != 1:
            return None
        chain += following
    return chain if [node.op_type for node in chain] == _NORMALISATION else None


def _without_unused_domains(path: Path) -> bytes:
    """The model without the operator sets that ONNX Runtime names and nothing in it is of."""
    import onnx

    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    return model.SerializeToString()
