"""A student in 8-bit integers: static quantisation by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

# Where the arithmetic is, and what lies between: rounding anything else would cost accuracy only.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu")


def quantise(model: bytes, batches: Iterable[np.ndarray]) -> bytes:
    """Quantise a student: weights as int8 by channel, activations as uint8.

    Jacob et al. 2018, arXiv 1712.05877: real = scale * (integer - zero point), the scale of an
    activation from its least and largest value over the calibration tiles.

    Args:
        model: of the package: ``tiles``, uint8 N x size_px x size_px x 3, to ``probabilities``.
        batches: calibration tiles, likewise.

    Returns:
        A model of the same inputs and outputs, in ONNX's own operators (QuantizeLinear and
        DequantizeLinear around each operator), which runs as integers where the processor can.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantise_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            tiles = next(self._left, None)
            return None if tiles is None else {"tiles": tiles}

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (
            Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "quantised")
        )
        given.write_bytes(model)
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        quantise_static(
            str(prepared),
            str(quantised),
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _without_unused_domains(quantised)


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
