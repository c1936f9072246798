"""Slide heads: from the embeddings of a slide's tiles to one logit and a weight for each tile."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn

from medkd.errors import ConfigError
from medkd.schema import hint

HeadArchitecture = Literal["mean", "max", "attention", "gated_attention", "transformer"]

HEAD_ARCHITECTURES: tuple[HeadArchitecture, ...] = get_args(HeadArchitecture)

BLOCKS = 2
HEADS = 4


class Attention(nn.Module):
    """``w . tanh(V h)``, the attention of Ilse et al. (arXiv 1802.04712, eq. 8), before softmax.

    It is the ``att`` mode of :class:`monai.networks.nets.MILModel`, where ``hidden`` is 2048.

    Args:
        dimension: of an embedding.
        hidden: rows of V.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.v = nn.Linear(dimension, hidden)
        # Softmax would cancel a bias.
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores, B x N, of embeddings, B x N x D."""
        return self.w(torch.tanh(self.v(embeddings))).squeeze(-1)


class GatedAttention(nn.Module):
    """``w . (tanh(V h) * sigmoid(U h))`` (Ilse et al., arXiv 1802.04712, eq. 9), before softmax.

    V and U have biases, as in the authors' code.

    Args:
        dimension: of an embedding.
        hidden: rows of V and of U.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.v = nn.Linear(dimension, hidden)
        self.u = nn.Linear(dimension, hidden)
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores, B x N, of embeddings, B x N x D."""
        gated = torch.tanh(self.v(embeddings)) * torch.sigmoid(self.u(embeddings))
        return self.w(gated).squeeze(-1)


class Transformer(nn.Module):
    """Self-attention among the tiles of a bag, which then have ``hidden`` channels.

    Without positions, so the order of tiles does not matter. Time grows with the square of the
    number of tiles, and in onnxruntime memory too: 4 x N x N floats, 1.6 GB for 10,000 tiles.

    Args:
        dimension: of an embedding.
        hidden: channels; the MLP has twice as many.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(dimension, hidden)
        # Scaled dot products in torch's own kernel never hold N x N weights. MONAI's blocks would
        # drop some of them in evaluation too, so there is no dropout in here.
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden, 2 * hidden, HEADS, use_flash_attention=True)
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings, B x N x hidden, of embeddings, B x N x D, and a mask, bool B x N."""
        tiles = self.project(embeddings)
        seen = None if mask is None else mask[:, None, None]
        for block in self.blocks:
            tiles = block(tiles, attn_mask=seen)
        return self.norm(tiles)


class SlideHead(nn.Module):
    """A slide's logit is a linear function of the weighted mean of its tiles' embeddings.

    The weights are the architecture: ``mean`` weighs tiles alike, ``max`` takes the one with the
    highest logit, ``attention`` and ``gated_attention`` learn them, and ``transformer`` lets tiles
    look at one another first and then learns them by ``attention``.

    With D = 512 and ``hidden`` = 128 they have 513, 513, 66,305, 131,969 and 347,393 parameters.

    Args:
        architecture: see :data:`HEAD_ARCHITECTURES`.
        dimension: D, of an embedding.
        hidden: of the attention, and channels of the transformer.
        dropout: share of an embedding's channels that is dropped in training.

    Raises:
        ConfigError: an unknown architecture, or a transformer whose ``hidden`` is no multiple of 4.
    """

    def __init__(
        self,
        architecture: HeadArchitecture,
        dimension: int,
        *,
        hidden: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if architecture not in HEAD_ARCHITECTURES:
            raise ConfigError(
                f"unknown slide head '{architecture}'",
                where="architecture",
                remedy=hint(architecture, HEAD_ARCHITECTURES),
            )
        if architecture == "transformer" and hidden % HEADS:
            raise ConfigError(
                f"a transformer of {HEADS} heads cannot have {hidden} channels",
                where="hidden",
                remedy=f"Give a multiple of {HEADS}.",
            )
        self.architecture = architecture
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))
        self.dropout = nn.Dropout(dropout)
        is_transformer = architecture == "transformer"
        self.transformer = Transformer(dimension, hidden) if is_transformer else None
        width = hidden if is_transformer else dimension
        self.attention: nn.Module | None = None
        if architecture in ("attention", "transformer"):
            self.attention = Attention(width, hidden)
        elif architecture == "gated_attention":
            self.attention = GatedAttention(width, hidden)
        self.classifier = nn.Linear(width, 1)

    @property
    def dimension(self) -> int:
        """D, of an embedding."""
        return len(self.mean)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Take embeddings less ``mean`` over ``deviation``, both (D,); 0 of it counts as 1."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 0, deviation, 1).reciprocal())

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of bags, and the weights of their tiles.

        Args:
            embeddings: B x N x D.
            mask: bool B x N, true for tiles that are there, at least one of each bag; None: all.

        Returns:
            Logits of the positive class, (B,), and weights, B x N, that sum to 1 in each bag and
            are 0 for padding.
        """
        tiles = (embeddings - self.mean) * self.scale
        if mask is not None:
            # Weights of 0 would not remove a padding that is not finite.
            tiles = tiles.masked_fill(~mask[..., None], 0)
        tiles = self.dropout(tiles)
        if self.transformer is not None:
            tiles = self.transformer(tiles, mask)
        weights = self._weights(tiles, mask)
        pooled = (weights[:, None] @ tiles).squeeze(1)
        return self.classifier(pooled).squeeze(-1), weights

    def _weights(self, tiles: Tensor, mask: Tensor | None) -> Tensor:
        if self.attention is not None:
            scores = self.attention(tiles)
        elif self.architecture == "max":
            scores = self.classifier(tiles).squeeze(-1)
        else:
            scores = torch.zeros_like(tiles[..., 0])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.architecture == "max":
            return torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1)
        return torch.softmax(scores, 1)
