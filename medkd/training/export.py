"""From a trained network to the bytes that ship."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

OPSET = 18


class _ShippedClassifier(nn.Module):
    """Takes what a decoder gives, and gives what a report needs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> Tensor:
        """Probabilities, float32 N x classes, of RGB tiles, uint8 N x H x W x 3."""
        images = tiles.permute(0, 3, 1, 2).to(torch.float32) / 255
        return torch.softmax(self.network(images), dim=1)


def export_onnx(network: nn.Module, size_px: int) -> bytes:
    """Export a network as ONNX.

    Args:
        network: takes RGB in [0, 1], float N x 3 x H x W; gives logits.
        size_px: side of a tile, pixels.

    Returns:
        A model with the input ``tiles``, uint8 N x size_px x size_px x 3 with N free, and the
        output ``probabilities``, float32 N x classes.
    """
    shipped = _ShippedClassifier(network.cpu()).eval()
    example = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "student.onnx"
        # The exporter prints its steps to standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                shipped,
                (example,),
                path,
                input_names=["tiles"],
                output_names=["probabilities"],
                dynamic_shapes={"tiles": {0: torch.export.Dim("tiles_in_batch")}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
        return path.read_bytes()


def export_safetensors(network: nn.Module) -> bytes:
    """The network's weights as safetensors; what parts of it share stands there once."""
    once = {name for name, _ in network.named_parameters()}
    once |= {name for name, _ in network.named_buffers()}
    weights = {key: value for key, value in network.state_dict().items() if key in once}
    return save({key: value.contiguous().cpu() for key, value in weights.items()})
