"""From a trained slide head to the bytes that ship."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from medkd.networks.mil import SlideHead
from medkd.training.export import OPSET


class _ShippedHead(nn.Module):
    """One slide without padding, and what a report needs of it."""

    def __init__(self, head: SlideHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Probability, and weights, their scores and logits of tiles, of embeddings, N x D."""
        found = self.head(embeddings[None])
        of_tiles = (found.weights, found.scores, found.tile_logits)
        return torch.sigmoid(found.logits[0]), *(values[0] for values in of_tiles)


def export_slide_head(head: SlideHead) -> bytes:
    """Export a slide head as ONNX, of opset ``medkd.training.export.OPSET``, which is 18.

    Returns:
        A model with the input ``embeddings``, float32 N x D with N free, and the outputs
        ``probability``, float32, a scalar, and ``attention``, ``attention_scores`` and
        ``tile_logits``, float32 N: the weights, scores and tile logits of
        :class:`medkd.networks.mil.HeadOutput`.
    """
    shipped = _ShippedHead(copy.deepcopy(head).cpu().float()).eval()
    example = torch.zeros(3, head.dimension)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "head.onnx"
        # The exporter prints its steps to standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                shipped,
                (example,),
                path,
                input_names=["embeddings"],
                output_names=["probability", "attention", "attention_scores", "tile_logits"],
                dynamic_shapes={"embeddings": {0: torch.export.Dim("tiles")}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
        return path.read_bytes()
