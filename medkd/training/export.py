"""From a trained network to the bytes that ship."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

OPSET = 18


class ShippedClassifier(nn.Module):
    """Takes what a decoder gives, and gives what a report and a slide head need.

    Args:
        network: takes RGB in [0, 1], float N x 3 x H x W; gives logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, float32 N x classes, of RGB tiles, uint8 N x H x W x 3; embeddings."""
        images = tiles.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits, pooled = logits_and_pooled(self.network, images)
        probabilities = torch.softmax(logits, dim=1)
        return (probabilities,) if pooled is None else (probabilities, pooled)


def logits_and_pooled(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, N x classes, and pooled features, N x channels; None where it has none.

    Args:
        network: of the zoo, or a node of a cohort.
        images: RGB in [0, 1], float N x 3 x H x W.
    """
    both: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None
    both = getattr(network, "logits_and_pooled", None)
    return (network(images), None) if both is None else both(images)


def embedding_size(network: nn.Module, size_px: int) -> int | None:
    """How long its pooled features are; None where it has none."""
    with torch.no_grad():
        _, pooled = logits_and_pooled(network.cpu().eval(), torch.zeros(1, 3, size_px, size_px))
    return None if pooled is None else pooled.shape[1]


def export_onnx(network: nn.Module, size_px: int) -> bytes:
    """Export a network as ONNX.

    Args:
        network: takes RGB in [0, 1], float N x 3 x H x W; gives logits.
        size_px: side of a tile, pixels.

    Returns:
        A model with the input ``tiles``, uint8 N x size_px x size_px x 3 with N free, and the
        outputs ``probabilities``, float32 N x classes, and, of a network that has them,
        ``embeddings``, float32 N x channels: its pooled features.
    """
    shipped = ShippedClassifier(network.cpu()).eval()
    outputs = ["probabilities"]
    if embedding_size(network, size_px) is not None:
        outputs.append("embeddings")
    return onnx_of(shipped, size_px, takes="tiles", gives=outputs)


def onnx_of(shipped: nn.Module, size_px: int, *, takes: str, gives: Sequence[str]) -> bytes:
    """Export a module that takes what a decoder gives.

    Args:
        shipped: on the CPU, in evaluation mode; takes RGB, uint8 N x size_px x size_px x 3.
        size_px: side of an image, pixels.
        takes: name of the input, whose N is free.
        gives: names of the outputs, in the module's order.
    """
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
                input_names=[takes],
                output_names=list(gives),
                dynamic_shapes=({0: torch.export.Dim(f"{takes}_in_batch")},),
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
